"""This module has the strict mode, in which a request may have no fields that are not known.

Normally unknown fields are ignored, as samapi does, so that a newer client still gets its answer.
But then nobody hears of a misspelled field. A client asks for the strict mode with the field
`strict`, or with the header `Prefer: handling=strict` (RFC 7240).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from samserve.errors import InvalidField, quoted

from .requests import LowResLogits, PromptFields

APPLIED = "handling=strict"
"""The value of the header `Preference-Applied` in the answer."""

_NESTED: Mapping[str, type[BaseModel]] = {"prompts": PromptFields, "mask_input": LowResLogits}
"""The fields whose values have fields of their own: one object, or a list of them."""

_LONGEST_NAME = 100
"""Characters of a name that is compared with the known ones. Longer ones would take time."""


def prefers_strict(prefer: str | None) -> bool:
    """Return whether a `Prefer` header asks for the strict mode."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "handling":  # the first one counts (RFC 7240, section 2)
            return value.strip().strip('"').lower() == "strict"
    return False


def check_known(fields: Mapping[str, Any], model: type[BaseModel], path: str = "") -> None:
    """Check that all fields of a request are known, and the fields within them.

    Args:
        fields: the JSON object, parsed.
        model: the model that has the known fields.
        path: the prefix of the fields' paths in the error.

    Raises:
        InvalidField: it names the first unknown field, and the known name that is nearest.
    """
    for name, value in fields.items():
        if name not in model.model_fields:
            raise unknown_field(name, model.model_fields, path)
        nested = _NESTED.get(name)
        if nested is None:
            continue
        if isinstance(value, dict):
            check_known(value, nested, f"{path}{name}.")
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    check_known(entry, nested, f"{path}{name}.{index}.")


def unknown_field(name: str, known: Collection[str], path: str = "") -> InvalidField:
    """Return the error for a field that is not among the known ones."""
    shown = path + (name if name.isprintable() and len(name) <= _LONGEST_NAME else quoted(name))
    near = get_close_matches(name, known, n=1) if len(name) <= _LONGEST_NAME else []
    meant = f" Did you mean {near[0]}?" if near else ""
    return InvalidField(f"{shown}: there is no such field here.{meant}", path + name)
