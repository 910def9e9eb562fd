"""The page deploy/sizing.md is what the command says; resources are those of the manifests."""

from __future__ import annotations

import re
import sys

import pytest

from bench.sizing import __main__ as command
from bench.sizing.costs import GIB, Prices, Resources, cluster, redis_bytes, worker
from bench.sizing.figures import FIGURES
from bench.sizing.people import Habits
from bench.sizing.plan import Outcome, Wish, busy_pods, costs_table, needed, outcomes
from bench.sizing.simulation import KINDS, percentile


@pytest.mark.slow
def test_the_tables_of_the_page_are_made_by_the_command() -> None:
    page = command.PAGE.read_text()
    tables = command.page_tables()
    assert set(re.findall(r"<!-- (\w+) -->\n\|", page)) == set(tables)
    assert page == command.filled(page, tables)


@pytest.mark.slow
def test_the_command_takes_ones_own_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def euros(*options: str) -> float:
        monkeypatch.setattr(sys, "argv", ["sizing", "--users", "40", *options])
        command.main()
        *_, last = capsys.readouterr().out.strip().splitlines()
        assert last.startswith("| 40 | ")
        return float(last.split("|")[-3].replace(",", ""))

    usual = euros("--clicks", "300", "--automasks", "5")
    assert euros("--clicks", "300", "--automasks", "60") > usual
    assert euros("--core-price", "0.08") > 1.5 * usual
    assert euros("--automasks", "0") <= usual


@pytest.mark.parametrize(
    "options",
    [
        ("--users", "0"),
        ("--users", "1e3"),
        ("--clicks", "-1"),
        ("--clicks", "nan"),
        ("--new-pictures", "1.1"),
        ("--think", "0"),
        ("--patience", "0"),
        ("--type", "vit_x"),
    ],
)
def test_wrong_numbers_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.parser().parse_args(options)
    assert options[0] in capsys.readouterr().err


def test_resources_are_those_of_the_manifests() -> None:
    assert worker("vit_t") == Resources(2, 7 * GIB, 16 * GIB)
    assert worker("vit_b") == worker("vit_h") == Resources(2, 16 * GIB, 26 * GIB)
    assert worker("vit_h-gpu") == Resources(4, 16 * GIB, 24 * GIB, 1)
    # Two gateways of 0.2 cores, two HAProxys of 0.1, and Redis.
    others = cluster("vit_t", 0, 0)
    assert others.cores == pytest.approx(0.7)
    assert others.memory == pytest.approx((2 * 512 + 2 * 128 + 1280) * 2**20)
    assert cluster("vit_t", 3, 0).cores == pytest.approx(others.cores + 6)


def test_redis_grows_with_the_pictures() -> None:
    assert redis_bytes(0) == redis_bytes(100) == 1280 * 2**20
    assert redis_bytes(1000) == pytest.approx(1.25 * 4.2e9)
    more = cluster("vit_t", 1, 1000).memory - cluster("vit_t", 1, 0).memory
    assert more == pytest.approx(redis_bytes(1000) - redis_bytes(0))


def test_money_is_the_sum_of_its_parts() -> None:
    prices = Prices(core=1, gib=10, gpu=100)
    assert Resources(2, 3 * GIB, 9 * GIB, 1).euros_a_month(prices) == pytest.approx(730 * 132)


@pytest.mark.slow
def test_the_least_number_that_is_enough_is_found() -> None:
    wish = Wish(40, "vit_t", Habits(automasks=60), patience=3)
    results = list(outcomes(wish))
    least = needed(results)
    assert least is not None
    assert [result.pods for result in results] == [*range(results[0].pods, least.pods + 2)]
    assert results[0].pods >= busy_pods(wish)
    assert not any(result.enough for result in results if result.pods < least.pods)
    limits = FIGURES["vit_t"].alone_s()
    for kind, limit in zip(KINDS, limits, strict=True):
        assert percentile(least.answers[kind], 95) <= 3 * limit


def test_a_wish_that_no_number_fulfils_is_said_so() -> None:
    wish = Wish(10, "vit_t", Habits(), patience=3)
    poor = Outcome(30, {kind: [] for kind in KINDS}, 1, 1, enough=False)
    table = costs_table([(wish, [poor]), (wish, [])], Prices())
    assert table.count("more than 30") == 2
    assert {line.count("|") for line in table.splitlines()} == {11}
