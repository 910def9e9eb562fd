"""What lanes are called, and what their names say."""

from __future__ import annotations

import pytest

from samserve.serving.lanes import (
    WEIGHTS_NAME,
    family_of,
    is_registered,
    lane_of,
    lanes_of,
    mode_of,
    model_type_of,
    registered_family,
)


@pytest.mark.parametrize("family", ["vit_t", registered_family("vit_t", "nuclei-2")])
def test_a_name_says_all(family: str) -> None:
    assert list(lanes_of([family]).values()) == [family, family]
    prompt, automask = lanes_of([family])
    assert (mode_of(prompt), mode_of(automask)) == ("prompt", "automask")
    for lane in (prompt, automask):
        assert lane_of(family_of(lane), mode_of(lane)) == lane
        assert model_type_of(lane) == "vit_t"


def test_registered_families_are_of_one_type() -> None:
    assert is_registered("vit_t.nuclei", "vit_t")
    for other in ("vit_t", "vit_b.nuclei", "vit_t.", "vit_t.a.b", "vit_t.a-automask", "vit_tx.a"):
        assert not is_registered(other, "vit_t")


@pytest.mark.parametrize("name", ["a", "7", "Default", "a_b-c", "automask", "x" * 64])
def test_good_names(name: str) -> None:
    assert WEIGHTS_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "default", "a-automask", "-automask", "a.b", "a/b", "..", "a b", "a\n", "é", "_a"),
        "x" * 65,
    ],
)
def test_bad_names(name: str) -> None:
    assert not WEIGHTS_NAME.fullmatch(name)
