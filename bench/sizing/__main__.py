"""Turn people and clicks a day into pods, memory and money, by a simulated day.

    python -m bench.sizing --users 40 --clicks 300 --automasks 5

prints the answer times with more and more pods, and what the least number that is enough takes and
costs.
`--page` makes the tables of deploy/sizing.md anew instead.
"""

from __future__ import annotations

import argparse
import re

from .. import ROOT
from .costs import Prices
from .figures import FIGURES
from .people import Habits
from .plan import Outcome, Wish, answers_table, costs_table, outcomes

PAGE = ROOT / "deploy" / "sizing.md"
PAGE_USERS = (1, 10, 50, 200, 1000)
PAGE_TYPES = ("vit_b", "vit_h-gpu")
PAGE_TYPES_USERS = 50
PATIENCE = 3.0


def main() -> None:
    """Print the tables, or write them into the page."""
    arguments = parser().parse_args()
    if arguments.page:
        PAGE.write_text(filled(PAGE.read_text(), page_tables()))
        return
    habits = Habits(
        arguments.clicks,
        arguments.automasks,
        arguments.sessions,
        arguments.new_pictures,
        arguments.think,
    )
    prices = Prices(arguments.core_price, arguments.memory_price, arguments.gpu_price)
    wish = Wish(arguments.users, arguments.type, habits, arguments.patience)
    results = [(wish, list(outcomes(wish)))]
    print(f"Answers in the busiest hour: p50 / p95 / p99.\n\n{answers_table(results)}\n")
    print(costs_table(results, prices))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    habits, prices = Habits(), Prices()
    made = argparse.ArgumentParser(
        prog="python -m bench.sizing",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--users", type=_whole, default=40, help="people")
    made.add_argument("--clicks", type=_number, default=habits.clicks, help="a person a day")
    made.add_argument("--automasks", type=_number, default=habits.automasks, help="a person a day")
    made.add_argument("--sessions", type=_whole, default=habits.sessions, help="a person a day")
    made.add_argument(
        "--new-pictures", type=_share, default=habits.new_pictures, help="share of the clicks"
    )
    made.add_argument(
        "--think", type=_positive, default=habits.think_s, help="median seconds before a click"
    )
    made.add_argument("--type", choices=FIGURES, default="vit_t", help="model type and machine")
    made.add_argument(
        "--patience",
        type=_positive,
        default=PATIENCE,
        help="95 of 100 answers may take so many times as long as on an idle server",
    )
    made.add_argument("--core-price", type=_number, default=prices.core, help="euros an hour")
    made.add_argument("--memory-price", type=_number, default=prices.gib, help="… a GiB an hour")
    made.add_argument("--gpu-price", type=_number, default=prices.gpu, help="euros an hour")
    made.add_argument("--page", action="store_true", help="write the tables of deploy/sizing.md")
    return made


def _whole(text: str) -> int:
    if not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 100000, not {text}")
    return int(text)


def _number(text: str) -> float:
    if not 0 <= float(text) < 1e6:
        raise argparse.ArgumentTypeError(f"must be from 0 to a million, not {text}")
    return float(text)


def _positive(text: str) -> float:
    if not 0 < float(text) < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0 and below a million, not {text}")
    return float(text)


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return float(text)


def page_tables() -> dict[str, str]:
    """Return the tables of the page by their names."""
    habits, prices = Habits(), Prices()

    def of(users: int, model: str) -> tuple[Wish, list[Outcome]]:
        wish = Wish(users, model, habits, PATIENCE)
        return wish, list(outcomes(wish))

    by_users = [of(users, "vit_t") for users in PAGE_USERS]
    by_type = [of(PAGE_TYPES_USERS, model) for model in PAGE_TYPES]
    return {
        "answers": answers_table(by_users),
        "costs": costs_table(by_users, prices),
        "types": costs_table(by_type, prices),
    }


def filled(page: str, tables: dict[str, str]) -> str:
    """Return the page with each table between its marks."""
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = mark.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    main()
