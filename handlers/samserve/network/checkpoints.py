"""A checkpoint file turned into a network ready to run.

Does not download: `scripts/fetch_weights.py` puts the files where they belong.
A checkpoint is data from elsewhere: only tensors and plain values are ever unpickled, and the
keys must be the network's own, no fewer and no more. What a training program wrote round them,
`checkpoint_layouts.py` takes away.

On a CPU the network's weights are the file's own pages, mapped: vit_h is there in a
moment, and all processes that map one file hold its 2.5 GB once between them.
"""

from __future__ import annotations

import logging
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from samserve.model_types import MODEL_TYPES, is_mappable

from . import checkpoint_layouts, checkpoint_pickles
from .originals import Sam, sam_builder

logger = logging.getLogger(__name__)

EXPORT = (
    "python -c \"import torch; c = torch.load('in.pt', map_location='cpu', weights_only=False); "
    "torch.save(c.get('model_state', c), 'out.pt')\""
)
"""Runs whatever the file holds, so it is for the file's owner, where its classes are installed."""

_LONGEST_KEY = 200  # a file's own names may be of any length
_NAMED_KEYS = 5  # a wrong file differs in hundreds of keys; the first few tell which


class CheckpointError(ValueError):
    """The operator's file is no checkpoint of the type it is served as."""


def load_model(
    model_type: str, path: Path, device: torch.device, precision: torch.dtype = torch.float32
) -> Sam:
    """The network of this type with the file's weights, for inference only.

    Args:
        precision: of the image encoder's weights; see `serving_form`.

    Raises:
        CheckpointError: the file is unreadable, carries code, or is another network's.
    """
    return model_from(model_type, read(path), origin=str(path), precision=precision).to(device)


def model_from(
    model_type: str,
    state_dict: Mapping[str, torch.Tensor],
    origin: str,
    precision: torch.dtype = torch.float32,
) -> Sam:
    """The network of this type on the CPU, with these very tensors where they fit as they are.

    Args:
        origin: names the weights in errors.
    """
    model = unallocated_model(model_type)
    _refuse_other_keys(model_type, model.state_dict(), state_dict, origin)
    model.load_state_dict(serving_form(state_dict, precision), assign=True)
    # Only now: TinyViT's attention copies its biases aside when eval() is called,
    # and the builder has already called it, on the random ones.
    model.eval()
    return model.requires_grad_(False)


def blank_model(model_type: str) -> Sam:
    """The network of this type with random weights."""
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"no model type {model_type!r}; there are {', '.join(MODEL_TYPES)}")
    # Never with the builder's own `checkpoint`: it unpickles whatever it is given.
    return sam_builder(model_type)()


def unallocated_model(model_type: str) -> Sam:
    """The network of this type whose layers have weights with a shape, but no memory."""
    with _Unallocated():
        return blank_model(model_type)


def serving_form(
    state_dict: Mapping[str, torch.Tensor], precision: torch.dtype
) -> dict[str, torch.Tensor]:
    """The weights as they are computed with: the image encoder's in `precision`.

    All others are float32, for the decoder's logits decide on pixels; and so are those of an
    encoder with BatchNorm, which `Encoder` folds into the convolutions before it rounds. What
    has its precision already is not copied.
    """
    folds = any(key.endswith(".running_var") for key in state_dict)

    def of(key: str) -> torch.dtype:
        return precision if key.startswith("image_encoder.") and not folds else torch.float32

    return {
        key: tensor.to(of(key)) if tensor.is_floating_point() else tensor
        for key, tensor in state_dict.items()
    }


def alone(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors, each in separate memory.

    A file has the whole memory of every tensor that is written to it, and a tensor cut from a
    larger one shares that one's.
    """
    return {
        key: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        for key, tensor in state_dict.items()
    }


class _Unallocated(TorchFunctionMode):
    """Within it, uninitialised tensors get no memory, and initialising them is free.

    Not the `meta` device for everything: a network also computes a little as it is built,
    TinyViT the indices of its biases, and that must be real.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{**kwargs, "device": "meta"} if func is torch.empty else kwargs)


# Damaged bytes fail in torch's unpickler at whatever line they reach first.
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: the network's, by the names that the network has for them; mapped rather than read
            where that is possible.
        notes: what the file holds besides and is left out, a line for each kind.
        is_plain: whether the file holds just these tensors by these names, so that it can be
            served as it is.
    """

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    is_plain: bool


def read(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's named tensors; the log says what is left out.

    Raises:
        CheckpointError: the file is unreadable, or holds anything else.
    """
    checkpoint = opened(path)
    for note in checkpoint.notes:
        logger.warning("%s: %s", path, note)
    return checkpoint.tensors


def opened(path: Path) -> Checkpoint:
    """Return a checkpoint's tensors, and notes about the entries that are left out.

    Raises:
        CheckpointError: the file is unreadable, holds code, or holds no named tensors.
    """
    try:
        strangers = checkpoint_pickles.strangers_in(path)
        with checkpoint_pickles.inert(strangers):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_mappable(path)
            )
    except pickle.UnpicklingError as error:
        named = f" ({error})" if isinstance(error, checkpoint_pickles.RefusedGlobals) else ""
        raise CheckpointError(
            f"{path}: no checkpoint, or one that holds more than tensors{named}; "
            "it is refused because unpickling the rest could run code. Where the file is trusted, "
            f"this writes its tensors alone: {EXPORT}"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if isinstance(content, checkpoint_pickles.Inert):
        raise CheckpointError(f"{path}: holds a whole model or another object, not named tensors")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    found = checkpoint_layouts.weights_in(content)
    others = [str(key) for key, value in found.tensors.items() if not _is_named_tensor(key, value)]
    if others:
        raise CheckpointError(f"{path}: {_listed(others, 'entries that are no named tensor')}")
    notes = list(found.notes)
    if strangers:
        notes.append(_listed(strangers, "named classes were ignored, with their data"))
    return Checkpoint(found.tensors, tuple(notes), found.is_plain and not strangers)


def _is_named_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _refuse_other_keys(
    model_type: str,
    expected: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    origin: str,
) -> None:
    misshapen = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    unlike = [
        f"{key} {_kind_of(given[key])} instead of {_kind_of(tensor)}"
        for key, tensor in expected.items()
        if key in given and not _is_loadable(given[key], tensor)
    ]
    faults = [
        _listed(keys, kind)
        for keys, kind in (
            ([key for key in expected if key not in given], "missing"),
            ([key for key in given if key not in expected], "unexpected"),
            (misshapen, "of the wrong shape"),
            (unlike, "of the wrong kind"),
        )
        if keys
    ]
    if faults:
        raise CheckpointError(f"{origin}: no {model_type} checkpoint: {'; '.join(faults)}")


def _is_loadable(given: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether the tensor holds plain numbers of the expected kind, in any precision."""
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        return False
    if expected.is_floating_point():
        return given.is_floating_point()
    is_integer = not (given.is_floating_point() or given.is_complex())
    return is_integer and given.dtype != torch.bool


def _kind_of(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    device = f"{tensor.device} " if tensor.is_meta else ""
    return f"{device}{layout}{tensor.dtype}".replace("torch.", "")


def _listed(keys: list[str], kind: str) -> str:
    """`3 missing: a, b, c`, or `9 missing: a, b, c, d, e and 4 more`."""
    more = len(keys) - _NAMED_KEYS
    tail = f" and {more} more" if more > 0 else ""
    named = ", ".join(key[:_LONGEST_KEY] for key in keys[:_NAMED_KEYS])
    return f"{len(keys)} {kind}: {named}{tail}"
