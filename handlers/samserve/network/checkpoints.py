"""This module loads a checkpoint file into a network.

A checkpoint is untrusted data: only tensors and plain values are unpickled, and the keys must be
exactly those of the network. `checkpoint_layouts.py` removes the entries that training programs
add. `samserve.weights.fetch` downloads the published checkpoints.

On a CPU the weights are mapped from the file: vit_h loads in a moment, and all processes that map
one file share its 2.5 GB in the page cache.
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
from .families import Network
from .originals import sam_builder
from .sam2 import SHAPES, Sam2

logger = logging.getLogger(__name__)

EXPORT = (
    "python -c \"import torch; c = torch.load('in.pt', map_location='cpu', weights_only=False); "
    "torch.save(c.get('model_state', c), 'out.pt')\""
)
"""A command that the file's owner can run to write its tensors only. It runs any code in the file,
and needs the file's classes installed."""

_LONGEST_KEY = 200  # the names in a file may have any length
_NAMED_KEYS = (
    5  # a wrong file differs in hundreds of keys; the first few are enough to recognise it
)


class CheckpointError(ValueError):
    """The file is no checkpoint of the model type that it is loaded as."""


def load_network(
    model_type: str, path: Path, device: torch.device, precision: torch.dtype = torch.float32
) -> Network:
    """Return the network of a model type with a file's weights, for inference only.

    Args:
        model_type: a name in `MODEL_TYPES`.
        path: the checkpoint.
        device: the device that the network is moved to.
        precision: the dtype of the image encoder's weights; see `serving_form`.

    Raises:
        CheckpointError: the file is unreadable, has code, or is a checkpoint of another network.
    """
    return model_from(model_type, read(path), origin=str(path), precision=precision).to(device)


def model_from(
    model_type: str,
    state_dict: Mapping[str, torch.Tensor],
    origin: str,
    precision: torch.dtype = torch.float32,
) -> Network:
    """Return the network of a model type on the CPU. Tensors of the right dtype are not copied.

    Args:
        model_type: a name in `MODEL_TYPES`.
        state_dict: the weights by the network's names.
        origin: the name of the weights in errors.
        precision: the dtype of the image encoder's weights; see `serving_form`.

    Raises:
        CheckpointError: the names, shapes or kinds of the tensors are not the network's, or a
            number is NaN or infinite, or a variance below zero.
    """
    model = unallocated_model(model_type)
    _refuse_other_keys(model_type, model.state_dict(), state_dict, origin)
    served = serving_form(state_dict, precision)
    senseless = [key for key, tensor in served.items() if not _has_sense(key, tensor)]
    if senseless:
        kind = "tensors have NaN, infinity or a negative variance"
        raise CheckpointError(f"{origin}: {_listed(senseless, kind)}")
    model.load_state_dict(served, assign=True)
    # TinyViT's attention copies its biases when eval() is called. The builder has called it with
    # the random biases, so call it again.
    model.eval()
    return model.requires_grad_(False)


def blank_model(model_type: str) -> Network:
    """Return the network of a model type with random weights.

    Raises:
        CheckpointError: the model type is unknown.
    """
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"no model type {model_type!r}; there are {', '.join(MODEL_TYPES)}")
    if model_type in SHAPES:
        return Sam2(SHAPES[model_type])
    # Never pass the builder a `checkpoint`: it would unpickle the file without restrictions.
    return sam_builder(model_type)()


def unallocated_model(model_type: str) -> Network:
    """Return the network of a model type, with weights that have shapes but no memory."""
    with _Unallocated():
        return blank_model(model_type)


def serving_form(
    state_dict: Mapping[str, torch.Tensor], precision: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights in the dtypes that they are computed in.

    The image encoder's weights get `precision`. All others are float32, because rounding the
    decoder's logits would change pixels of the masks. The weights of an encoder with BatchNorm are
    float32, too, because `Encoder` folds BatchNorm into the convolutions before it rounds. Tensors
    that have their dtype already are not copied.
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

    `torch.save` writes the whole storage of a tensor. A slice of a larger tensor shares that
    tensor's storage, so the file would have all of it.
    """
    return {
        key: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        for key, tensor in state_dict.items()
    }


class _Unallocated(TorchFunctionMode):
    """A context in which `torch.empty` allocates no memory, so initialising weights takes no time.

    It does not put everything on the `meta` device, because constructors also compute values that
    must be real, such as TinyViT's indices of its biases.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{**kwargs, "device": "meta"} if func is torch.empty else kwargs)


# Exceptions that torch's unpickler raises for damaged bytes.
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
    """The content of a checkpoint file.

    Attributes:
        tensors: the network's tensors by the network's names; mapped from the file if possible.
        notes: a line for each kind of entry that was left out.
        is_plain: whether the file has exactly these tensors under these names, so that it can be
            served unchanged.
    """

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    is_plain: bool


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's named tensors, and log a warning for each kind of entry left out.

    Raises:
        CheckpointError: see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    for note in checkpoint.notes:
        logger.warning("%s: %s", path, note)
    return checkpoint.tensors


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint's tensors, and notes about the entries that are left out.

    Raises:
        CheckpointError: the file is unreadable, has code, or has no named tensors.
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
            f"{path}: not a checkpoint, or one with more than tensors{named}. "
            "It is refused because unpickling the rest could run code. If you trust the file, "
            f"this command writes its tensors only: {EXPORT}"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if isinstance(content, checkpoint_pickles.Inert):
        raise CheckpointError(f"{path}: has a whole model or another object, not named tensors")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: has a {type(content).__name__}, not named tensors")
    entries = checkpoint_layouts.weights_in(content)
    others = [
        str(key) for key, value in entries.tensors.items() if not _is_named_tensor(key, value)
    ]
    if others:
        raise CheckpointError(f"{path}: {_listed(others, 'entries that are not named tensors')}")
    notes = list(entries.notes)
    if strangers:
        notes.append(_listed(strangers, "named classes were ignored, with their data"))
    return Checkpoint(entries.tensors, tuple(notes), entries.is_plain and not strangers)


def _is_named_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _refuse_other_keys(
    model_type: str,
    expected: Mapping[str, torch.Tensor],
    actual: Mapping[str, torch.Tensor],
    origin: str,
) -> None:
    """Raise CheckpointError unless names, shapes and kinds of tensors are the expected ones."""
    misshapen = [
        f"{key} {tuple(actual[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in actual and actual[key].shape != tensor.shape
    ]
    unlike = [
        f"{key} {_kind_of(actual[key])} instead of {_kind_of(tensor)}"
        for key, tensor in expected.items()
        if key in actual and not _is_loadable(actual[key], tensor)
    ]
    faults = [
        _listed(keys, kind)
        for keys, kind in (
            ([key for key in expected if key not in actual], "missing"),
            ([key for key in actual if key not in expected], "unexpected"),
            (misshapen, "of the wrong shape"),
            (unlike, "of the wrong kind"),
        )
        if keys
    ]
    if faults:
        raise CheckpointError(f"{origin}: not a {model_type} checkpoint: {'; '.join(faults)}")


def _is_loadable(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether the tensor holds plain numbers of the expected kind, in any precision."""
    if actual.layout != torch.strided or actual.is_quantized or actual.is_meta:
        return False
    if expected.is_floating_point():
        return actual.is_floating_point()
    is_integer = not (actual.is_floating_point() or actual.is_complex())
    return is_integer and actual.dtype != torch.bool


def _has_sense(key: str, tensor: torch.Tensor) -> bool:
    """Return whether a tensor has finite numbers, and variances no negative ones.

    With one NaN in it, a network answers every prompt with NaN. Nothing is copied here.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = torch.aminmax(tensor)  # both are NaN if any number is
    finite = bool(torch.isfinite(least) and torch.isfinite(most))
    return finite and not (key.endswith(".running_var") and least < 0)


def _kind_of(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    device = f"{tensor.device} " if tensor.is_meta else ""
    return f"{device}{layout}{tensor.dtype}".replace("torch.", "")


def _listed(keys: list[str], kind: str) -> str:
    """Return `3 missing: a, b, c`, or `9 missing: a, b, c, d, e and 4 more`."""
    more = len(keys) - _NAMED_KEYS
    tail = f" and {more} more" if more > 0 else ""
    named = ", ".join(key[:_LONGEST_KEY] for key in keys[:_NAMED_KEYS])
    return f"{len(keys)} {kind}: {named}{tail}"
