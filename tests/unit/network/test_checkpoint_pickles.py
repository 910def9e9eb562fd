"""Foreign objects in a checkpoint are passed over, and no code in a checkpoint runs."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samserve.network.checkpoints import CheckpointError, load_network, open_checkpoint, read
from tests.support import random_weights
from tests.support.checkpoints import CPU, Malice, Tensors, foreign, training_checkpoint, written


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return random_weights.state_dict("vit_t")


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
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == plain.keys()
    assert "torch_em" not in sys.modules
    [line] = [note for note in checkpoint.notes if "classes were ignored" in note]
    assert int(line.split()[0]) > 5


def test_a_foreign_object_is_no_tensor(tmp_path: Path, plain: Tensors) -> None:
    with foreign() as module:
        path = written(tmp_path, {**plain, "mask_decoder.x": module.Dataset()})
    with pytest.raises(CheckpointError, match=r"not named tensors: mask_decoder\.x"):
        read(path)


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has a whole model"):
        read(written(tmp_path, torch.nn.Linear(1, 1)))


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class CallsLate(Malice):
    """The same through the state that an object gets after it was created."""

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
        load_network("vit_t", path, CPU)
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
    """Replace the pickle in a checkpoint, and return its path."""
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
        # On an inert object, which cannot be called and has no attributes.
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
    open_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_script_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "vit_t.pt"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch.jit is deprecated, but such files exist
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(CheckpointError):
        read(path)
