"""This module finds the network's tensors in the layouts of checkpoints that programs write.

    {"image_encoder.…": tensor, …}                       as segment-anything publishes it
    {"sam.image_encoder.…": tensor, …}                   a wrapper's state dict
    {"model_state": {"sam.image_encoder.…": tensor, …},  torch_em's training checkpoint, as
     "optimizer_state": …, "epoch": …, …}                micro-sam writes it
    {"image_encoder.…": …, "decoder_state": {…}}         micro-sam's export with a decoder for AIS
    {"model": {"sam_mask_decoder.…": tensor, …}}         SAM 2, as Meta publishes it

The prefixes `module.` of `DataParallel` and `_orig_mod.` of `torch.compile`, and any other prefix
that all of the network's tensors share, are removed. Entries of unknown kinds stay, so that the
caller refuses the file and names them. SAM 2's checkpoints have parts that only videos need; they
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .sam2 import is_video_part

_CONTAINERS = ("model_state", "model_state_dict", "state_dict", "model")
"""Entries under which training programs keep a model's state dict."""

_MAX_DEPTH = 3  # a state dict within a model within a checkpoint

_NETWORK = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)(?:image_encoder|(?:sam_)?prompt_encoder|(?:sam_)?mask_decoder)\..+",
    re.DOTALL,
)

# micro-sam's decoder for automatic instance segmentation (AIS) is a U-Net on the image encoder's
# output, which samserve does not use. Its other parts are recognised only beside a `decoder`.
_DECODER = ("decoder", "decoder_state", "unetr")
_DECODER_PARTS = (
    *("encoder", "base", "out_conv", "deconv1", "deconv2", "deconv3", "deconv4", "deconv_out"),
    *("decoder_head", "final_conv"),
)


@dataclass(frozen=True)
class NetworkEntries:
    """The entries of a checkpoint that should be the network's tensors.

    Attributes:
        tensors: the entries by the network's names.
        notes: a line for each kind of entry that was left out.
        is_plain: whether nothing was left out and no name changed.
    """

    tensors: dict[Any, Any]
    notes: tuple[str, ...]
    is_plain: bool


def weights_in(content: Mapping[Any, Any]) -> NetworkEntries:
    """Return the network's entries of a checkpoint in any known layout."""
    notes: list[str] = []
    weights = content
    for _ in range(_MAX_DEPTH):
        container = _container(weights)
        if container is None:
            break
        beside = [key for key in weights if key != container]
        decoders = [key for key in beside if key in _DECODER]
        _note(notes, [key for key in beside if key not in _DECODER], "of the training", "entries")
        _note(notes, decoders, "a decoder for AIS", "entries")
        weights = weights[container]
    prefixes = {match["prefix"] for key in weights if (match := _matched(key))}
    decoder_keys = _decoder_keys(weights)
    _note(notes, sorted({_top(key) for key in decoder_keys}), "a decoder for AIS", "parts")
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    tensors = {
        key.removeprefix(prefix) if isinstance(key, str) else key: value
        for key, value in weights.items()
        if key not in decoder_keys
    }
    video = _video_keys(tensors)
    is_plain = weights is content and not prefix and not decoder_keys and not video
    for key in video:
        del tensors[key]
    return NetworkEntries(tensors, tuple(notes), is_plain)


def _video_keys(tensors: Mapping[Any, Any]) -> list[Any]:
    """Return the names of SAM 2's tensors that only videos need."""
    names = [key for key in tensors if isinstance(key, str)]
    if not any(name.startswith("sam_mask_decoder.") for name in names):
        return []
    return [name for name in names if is_video_part(name)]


def _container(content: Mapping[Any, Any]) -> str | None:
    """Return the name of the entry with the state dict; None if the checkpoint itself is one."""
    if any(_matched(key) for key in content):
        return None
    return next((name for name in _CONTAINERS if isinstance(content.get(name), dict)), None)


def _matched(key: object) -> re.Match[str] | None:
    return _NETWORK.fullmatch(key) if isinstance(key, str) else None


def _decoder_keys(weights: Mapping[Any, Any]) -> set[Any]:
    """Return the names of the entries of a decoder for automatic instance segmentation (AIS)."""
    others = [key for key in weights if isinstance(key, str) and not _matched(key)]
    if not any(_top(key) in _DECODER for key in others):
        return set()
    return {key for key in others if _top(key) in (*_DECODER, *_DECODER_PARTS)}


def _top(key: str) -> str:
    """Return the first part of a name, without the prefixes of wrappers such as DataParallel."""
    parts = key.split(".")
    while len(parts) > 1 and parts[0] in ("module", "_orig_mod", "model"):
        parts = parts[1:]
    return parts[0]


def _note(notes: list[str], left_out: list[Any], what: str, unit: str) -> None:
    """Add a note about the entries that were left out, if there are any."""
    if left_out:
        # The file determines the number and the length of the names.
        names = ", ".join(str(name)[:80] for name in left_out[:12])
        more = ", …" if len(left_out) > 12 else ""
        notes.append(f"left out {what}, {len(left_out)} {unit}: {names}{more}")
