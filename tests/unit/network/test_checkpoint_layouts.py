"""A checkpoint's tensors are found in every layout, the rest is left out, and nothing is run."""

from __future__ import annotations

import builtins
import functools
import io
import logging
import os
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samserve.network.checkpoint_layouts import weights_in
from samserve.network.checkpoints import CheckpointError, load_model, opened, read
from tests.support import random_weights
from tests.unit.network.test_checkpoints import Malice

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return random_weights.state_dict("vit_t")


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


@contextmanager
def foreign() -> Iterator[types.ModuleType]:
    """A package that the reader of the file does not have, with a class and a function."""
    module = types.ModuleType("torch_em")

    def transform(value: object) -> object:
        raise AssertionError("it was called")

    class Dataset:
        def __init__(self) -> None:
            self.paths, self.transform = [Path("/data/a.tif")], module.transform

        def __setstate__(self, state: object) -> None:
            raise AssertionError("it was built")

    for name, value in (("Dataset", Dataset), ("transform", transform)):
        value.__module__, value.__qualname__ = "torch_em", name
        setattr(module, name, value)
    sys.modules["torch_em"] = module
    try:
        yield module
    finally:
        del sys.modules["torch_em"]


def training_checkpoint(tensors: Tensors, **more: Any) -> dict[str, Any]:
    """As torch_em's trainer writes it for micro-sam."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "iteration": 250,
        "epoch": 3,
        "best_epoch": 2,
        "best_metric": np.float64(0.4),
        "current_metric": np.array([0.4, 0.5]),
        "model_state": prefixed("sam.", tensors),
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": scheduler.state_dict(),
        "scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
        "init": {"name": "nuclei", "save_root": Path("/models"), "device": CPU},
        "train_time": 3600.5,
        "timestamp": "2024-05-01:00:00",
        **more,
    }


def decoder_state() -> Tensors:
    names = ("base.block.0.weight", "out_conv.weight", "decoder.samplers.0.conv.weight")
    return {name: torch.rand(2, 2) for name in names}


def written(folder: Path, content: Any, **how: Any) -> Path:
    path = folder / "vit_t.pt"
    torch.save(content, path, **how)
    return path


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
        loaded = load_model("vit_t", path, CPU).state_dict()
    assert loaded.keys() == plain.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in plain.items())
    assert len(caplog.messages) == len(notes)
    for message, note in zip(caplog.messages, notes, strict=True):
        assert message.startswith(f"{path}: ")
        assert note in message


def test_only_a_plain_file_can_be_served_as_it_is(tmp_path: Path, plain: Tensors) -> None:
    assert opened(written(tmp_path, plain)).is_plain
    assert opened(written(tmp_path, OrderedDict(plain))).is_plain
    for content in (prefixed("sam.", plain), {**plain, "decoder_state": {}}, {"model": plain}):
        assert not opened(written(tmp_path, content)).is_plain


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
        (lambda t: {"model_state": [1]}, "no named tensor: model_state"),
        (lambda t: {"model_state": {**t, "epoch": 3}}, "no named tensor: epoch"),
        (lambda t: {"model_state": {}, "epoch": 3}, "missing"),
        (lambda t: {"epoch": 3, "optimizer_state": {}}, "no named tensor: epoch, optimizer_state"),
        (lambda t: {**t, 7: torch.zeros(1)}, "no named tensor: 7"),
    ],
)
def test_it_is_still_strict(
    tmp_path: Path, plain: Tensors, change: Callable[[Tensors], Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_model("vit_t", written(tmp_path, change(plain)), CPU)


# Objects of classes that are not there


def test_foreign_objects_are_passed_over(tmp_path: Path, plain: Tensors) -> None:
    with foreign() as module:
        init = {
            "train_dataset": module.Dataset(),
            "loss": functools.partial(module.transform, 3),
            "counts": defaultdict(list, {"a": [1]}),
            "last": deque([module.Dataset(), 2]),
            "dtype": np.dtype("float32"),
            "rng": np.random.default_rng(0),
            "module": torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)),
        }
        path = written(tmp_path, training_checkpoint(plain, init=init))
    checkpoint = opened(path)
    assert checkpoint.tensors.keys() == plain.keys()
    assert "torch_em" not in sys.modules
    [line] = [note for note in checkpoint.notes if "classes were ignored" in note]
    assert int(line.split()[0]) > 5


def test_a_foreign_object_is_no_tensor(tmp_path: Path, plain: Tensors) -> None:
    with foreign() as module:
        path = written(tmp_path, {**plain, "mask_decoder.x": module.Dataset()})
    with pytest.raises(CheckpointError, match=r"no named tensor: mask_decoder\.x"):
        read(path)


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a whole model"):
        read(written(tmp_path, torch.nn.Linear(1, 1)))


# Code


class Calls:
    """Calls a function when unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class CallsLate(Malice):
    """The same by the state that the object is given, after it was made."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"x": Malice(self.victim)}


def hidden_in(where: str, malice: object, plain: Tensors) -> Any:
    if where == "weights":
        return {**plain, "mask_decoder.x": malice}
    if where == "tuple":
        return {"model_state": plain, "init": {"x": (1, (malice,))}}
    return training_checkpoint(plain, **{where: {"a": [{"b": malice}]}})


@pytest.mark.parametrize("where", ["init", "optimizer_state", "weights", "tuple", "decoder_state"])
@pytest.mark.parametrize("kind", [Malice, CallsLate])
def test_malice_is_refused_wherever_it_hides(
    tmp_path: Path, plain: Tensors, where: str, kind: type[Malice]
) -> None:
    victim = tmp_path / "it ran"
    path = written(tmp_path, hidden_in(where, kind(victim), plain))
    with pytest.raises(CheckpointError, match=r"names builtins\.getattr.*could run code"):
        load_model("vit_t", path, CPU)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(os.system, "true"), "posix.system"),
        (Calls(builtins.eval, "1"), "builtins.eval"),
        (Calls(builtins.exec, "1"), "builtins.exec"),
        (Calls(builtins.__import__, "os"), "builtins.__import__"),
        (Calls(subprocess.Popen, ["true"]), "subprocess.Popen"),
        (Calls(subprocess.getoutput, "true"), "subprocess.getoutput"),
        (Calls(functools.reduce, max, [1]), "functools.reduce"),
        (Calls(io.open, os.devnull), "io.open"),
        (Calls(sys.intern, "x"), "sys.intern"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_runs_code_is_refused_by_name(
    tmp_path: Path, plain: Tensors, call: Calls, named: str
) -> None:
    path = written(tmp_path, training_checkpoint(plain, init={"x": call}))
    with pytest.raises(CheckpointError, match=rf"names .*{named}"):
        read(path)


def with_pickle(path: Path, program: bytes) -> Path:
    """The checkpoint with this in place of its pickle."""
    with zipfile.ZipFile(path) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    [name] = [name for name in members if name.endswith("data.pkl")]
    with zipfile.ZipFile(path, "w") as changed:
        for member, content in {**members, name: program}.items():
            changed.writestr(member, content)
    return path


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", id="REDUCE"),
        pytest.param(b"\x80\x02(X\x01\x00\x00\x001ibuiltins\neval\n.", id="INST"),
        pytest.param(b"\x80\x02(cbuiltins\neval\nX\x01\x00\x00\x001o.", id="OBJ"),
        pytest.param(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93(\x8c\x011tR.", id="STACK_GLOBAL"),
        pytest.param(b"\x80\x02csubprocess\nPopen\n)\x81}X\x01\x00\x00\x00aK\x01sb.", id="NEWOBJ"),
        pytest.param(b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.", id="Python 2's name"),
        pytest.param(b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.", id="os"),
        pytest.param(b"\x80\x02c\nos.system\n(X\x04\x00\x00\x00truetR.", id="no module"),
        pytest.param(b"\x80\x02cnumpy os\nsystem\n(X\x04\x00\x00\x00truetR.", id="a space"),
        pytest.param(b"\x80\x02(X\x02\x00\x00\x00osX\x06\x00\x00\x00systemtQ.", id="BINPERSID"),
        pytest.param(b"\x80\x02Pbuiltins.eval\n.", id="PERSID"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        # On an inert object: what it is cannot be called, and what it has cannot be reached.
        pytest.param(b"\x80\x02cforeign\nf\n)R(X\x01\x00\x00\x001tR.", id="calls an object"),
        pytest.param(b"\x80\x02cforeign\nC\n)\x81(X\x01\x00\x00\x001tR.", id="calls an instance"),
        pytest.param(b"\x80\x02cforeign\nC\n)\x81X\x01\x00\x00\x00aK\x01s.", id="sets an item"),
    ],
)
def test_every_way_of_a_pickle_to_call(tmp_path: Path, plain: Tensors, program: bytes) -> None:
    path = with_pickle(written(tmp_path, {"a": torch.zeros(1)}), program)
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize("how", [{"_use_new_zipfile_serialization": False}, {}])
def test_the_old_format_is_no_way_round(
    tmp_path: Path, plain: Tensors, how: dict[str, Any]
) -> None:
    victim = tmp_path / "it ran"
    path = written(tmp_path, training_checkpoint(plain, init={"x": Malice(victim)}), **how)
    with pytest.raises(CheckpointError, match="could run code"):
        read(path)
    assert not victim.exists()


def test_a_file_that_names_classes_without_end_is_refused(tmp_path: Path) -> None:
    program = b"".join(b"cforeign\nC%d\n" % number for number in range(1001))
    path = with_pickle(written(tmp_path, {"a": torch.zeros(1)}), b"\x80\x02" + program + b".")
    with pytest.raises(CheckpointError, match="names 1001 classes; at most 1000"):
        read(path)


def test_what_stands_for_classes_is_gone_afterwards(tmp_path: Path, plain: Tensors) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = written(tmp_path, training_checkpoint(plain))
    opened(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_script_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "vit_t.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, but such files exist
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(CheckpointError):
        read(path)
