"""This module makes and reads the names of lanes. No other code knows how they are built.

    vit_t                  prompts      \\ the type's own weights
    vit_t-automask         automask     /
    vit_t.nuclei           prompts      \\ weights registered as `nuclei`
    vit_t.nuclei-automask  automask     /

The two lanes with the same weights are a *family*. A family and its archive have the name of the
family's prompt lane.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

WEIGHTS_NAME = re.compile(r"(?!default\Z)(?!.*-automask\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""The allowed names of registered weights. None can be mistaken for `default` or for a lane."""

REGISTERED = "registered"
"""Folder within the weights folder that holds `<family>.pt` for all registered weights."""

_SEPARATOR = "."
_AUTOMASK = "-automask"

Mode = Literal["prompt", "automask"]


def mode_of(lane: str) -> Mode:
    """Return the mode of the lane with this name."""
    return "automask" if lane.endswith(_AUTOMASK) else "prompt"


def family_of(lane: str) -> str:
    """Return the family of a lane."""
    return lane.removesuffix(_AUTOMASK)


def model_type_of(lane: str) -> str:
    """Return the model type of a lane or of a family."""
    return family_of(lane).partition(_SEPARATOR)[0]


def registered_family(model_type: str, name: str) -> str:
    """Return the family of the weights that are registered under this name."""
    return f"{model_type}{_SEPARATOR}{name}"


def is_registered(family: str, model_type: str) -> bool:
    """Return whether this is a family of registered weights of this model type."""
    of_type, separator, name = family.partition(_SEPARATOR)
    return of_type == model_type and bool(separator) and WEIGHTS_NAME.fullmatch(name) is not None


def lane_of(family: str, mode: Mode) -> str:
    """Return the lane of a family for this mode."""
    return family + _AUTOMASK if mode == "automask" else family


def lanes_of(families: Iterable[str]) -> dict[str, str]:
    """Return each lane with its family; the prompt lane stands before the automask lane."""
    modes: tuple[Mode, ...] = ("prompt", "automask")
    return {lane_of(name, mode): name for name in families for mode in modes}
