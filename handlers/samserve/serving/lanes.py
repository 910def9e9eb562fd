"""What lanes are called, and what a name says; the only place that knows.

    vit_t                  prompts      \\ the type's own weights
    vit_t-automask         automask     /
    vit_t.nuclei           prompts      \\ weights registered as `nuclei`
    vit_t.nuclei-automask  automask     /

Two lanes that share their weights are a *family*; it is called as its prompt lane is, and so
is the archive that both are loaded from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

WEIGHTS_NAME = re.compile(r"(?!default\Z)(?!.*-automask\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What registered weights may be called: no name of other weights, and none of a lane."""

REGISTERED = "registered"
"""Folder within the weights' own; there lies `<family>.pt` of each family of registered ones."""

_SEPARATOR = "."
_AUTOMASK = "-automask"

Mode = Literal["prompt", "automask"]


def mode_of(lane: str) -> Mode:
    """What a lane of this name answers."""
    return "automask" if lane.endswith(_AUTOMASK) else "prompt"


def family_of(lane: str) -> str:
    """The family that a lane belongs to."""
    return lane.removesuffix(_AUTOMASK)


def model_type_of(lane: str) -> str:
    """The model type of a lane, or of a family."""
    return family_of(lane).partition(_SEPARATOR)[0]


def registered_family(model_type: str, name: str) -> str:
    """The family of the weights registered under a name."""
    return f"{model_type}{_SEPARATOR}{name}"


def is_registered(family: str, model_type: str) -> bool:
    """Whether this is a family of registered weights of this type."""
    own, separator, name = family.partition(_SEPARATOR)
    return own == model_type and bool(separator) and WEIGHTS_NAME.fullmatch(name) is not None


def lane_of(family: str, mode: Mode) -> str:
    """The lane of a family that answers this."""
    return family + _AUTOMASK if mode == "automask" else family


def lanes_of(families: Iterable[str]) -> dict[str, str]:
    """Each lane and its family, prompts before automask."""
    modes: tuple[Mode, ...] = ("prompt", "automask")
    return {lane_of(name, mode): name for name in families for mode in modes}
