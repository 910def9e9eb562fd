"""The network's tensors are found in every layout, and all other entries are left out."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samserve.network.checkpoint_layouts import weights_in
from samserve.network.checkpoints import CheckpointError, load_network, open_checkpoint
from tests.support import random_weights
from tests.support.checkpoints import (
    CPU,
    Tensors,
    decoder_state,
    prefixed,
    training_checkpoint,
    written,
)


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return random_weights.state_dict("vit_t")


LAYOUTS: dict[str, tuple[Callable[[Tensors], Any], list[str]]] = {
    "published": (lambda t: t, []),
    "an OrderedDict": (OrderedDict, []),
    "a wrapper's": (lambda t: prefixed("sam.", t), []),
    "DataParallel": (lambda t: prefixed("module.", t), []),
    "DataParallel of a wrapper": (lambda t: prefixed("module.sam.", t), []),
    "torch.compile": (lambda t: prefixed("_orig_mod.", t), []),
    "training": (training_checkpoint, ["11 entries: iteration, epoch", "classes were ignored"]),
    "training with a decoder": (
        lambda t: training_checkpoint(t, decoder_state=decoder_state()),
        ["11 entries", "a decoder for AIS, 1 entries: decoder_state", "classes"],
    ),
    "training in parallel": (
        lambda t: training_checkpoint({}, model_state=prefixed("module.sam.", t)),
        ["11 entries", "classes were ignored"],
    ),
    "export with a decoder": (
        lambda t: {**t, "decoder_state": decoder_state()},
        ["a decoder for AIS, 1 parts: decoder_state"],
    ),
    "prefixed, decoder within": (
        lambda t: {**prefixed("sam.", t), **prefixed("decoder.", decoder_state())},
        ["a decoder for AIS, 1 parts: decoder"],
    ),
    "a U-Net's parts beside": (
        lambda t: {**t, **decoder_state()},
        ["a decoder for AIS, 3 parts: base, decoder, out_conv"],
    ),
    "lightning": (
        lambda t: {"state_dict": prefixed("model.", t), "epoch": 1, "hyper_parameters": {}},
        ["2 entries: epoch, hyper_parameters"],
    ),
    "a model in a checkpoint": (
        lambda t: {"model": {"state_dict": t, "arch": "vit_t"}, "args": {}},
        ["1 entries: args", "1 entries: arch"],
    ),
    "parameters": (
        lambda t: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()},
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "notes"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_gives_the_same_tensors(
    tmp_path: Path,
    plain: Tensors,
    caplog: pytest.LogCaptureFixture,
    layout: Callable[[Tensors], Any],
    notes: list[str],
) -> None:
    path = written(tmp_path, layout(plain))
    with caplog.at_level(logging.INFO):
        loaded = load_network("vit_t", path, CPU).state_dict()
    assert loaded.keys() == plain.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in plain.items())
    assert len(caplog.messages) == len(notes)
    for message, note in zip(caplog.messages, notes, strict=True):
        assert message.startswith(f"{path}: ")
        assert note in message


def test_only_a_plain_file_can_be_served_as_it_is(tmp_path: Path, plain: Tensors) -> None:
    assert open_checkpoint(written(tmp_path, plain)).is_plain
    assert open_checkpoint(written(tmp_path, OrderedDict(plain))).is_plain
    for content in (prefixed("sam.", plain), {**plain, "decoder_state": {}}, {"model": plain}):
        assert not open_checkpoint(written(tmp_path, content)).is_plain


def test_the_networks_own_decoder_is_not_the_other_one(plain: Tensors) -> None:
    found = weights_in({**plain, "decoder.x": torch.zeros(1)})
    assert found.tensors.keys() == plain.keys()
    assert any(key.startswith("mask_decoder.") for key in found.tensors)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {**prefixed("sam.", t), "head.bias": torch.zeros(3)}, "1 unexpected: head.bias"),
        (lambda t: {**prefixed("sam.", t), "base.x": torch.zeros(3)}, "1 unexpected: base.x"),
        (lambda t: {**prefixed("sam.", t), **prefixed("ema.", t)}, "unexpected: sam."),
        (lambda t: {**prefixed("sam.", t), **t}, "unexpected: sam."),
        (lambda t: training_checkpoint(dict(list(t.items())[1:])), "1 missing: "),
        (lambda t: {"model_state": [1]}, "not named tensors: model_state"),
        (lambda t: {"model_state": {**t, "epoch": 3}}, "not named tensors: epoch"),
        (lambda t: {"model_state": {}, "epoch": 3}, "missing"),
        (
            lambda t: {"epoch": 3, "optimizer_state": {}},
            "not named tensors: epoch, optimizer_state",
        ),
        (lambda t: {**t, 7: torch.zeros(1)}, "not named tensors: 7"),
    ],
)
def test_it_is_still_strict(
    tmp_path: Path, plain: Tensors, change: Callable[[Tensors], Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_network("vit_t", written(tmp_path, change(plain)), CPU)
