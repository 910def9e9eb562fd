"""This module reads a checkpoint that names foreign classes, without importing any of them.

A checkpoint that a training program wrote holds the program's own objects beside the weights: its
data sets, its transforms, NumPy's scalars. PyTorch's `weights_only` unpickler refuses such a file,
since it looks up no class that is not on its list. Here each of those names gets an inert class in
its place: nothing is imported, nothing is called, and what was in the object is dropped.

A name from Python's own library is another matter. A few stand for plain values; every other one
(`builtins.eval`, `os.system`, `subprocess.Popen`) has no place beside weights, and the file is
refused by that name.
"""

from __future__ import annotations

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from samserve.model_types import is_mappable

MAX_STRANGERS = 1000
"""PyTorch looks through all of them for every object, so that more would take for ever."""

_TOLD = 5

# Plain values of Python's library, and how the pickles of older versions spell them.
_PLAIN_VALUES = frozenset(
    {
        *("builtins." + name for name in ("bool", "bytes", "dict", "float", "frozenset", "int")),
        *("builtins." + name for name in ("list", "object", "range", "slice", "str", "tuple")),
        *("collections.defaultdict", "collections.deque"),
        *("datetime." + name for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "functools.partial"),
        *("argparse.Namespace", "types.SimpleNamespace", "random.Random", "re._compile"),
        *(
            f"{module}.{kind}"
            for module in ("pathlib", "pathlib._local")
            for kind in (
                *("Path", "PosixPath", "WindowsPath"),
                *("PurePath", "PurePosixPath", "PureWindowsPath"),
            )
        ),
    }
)


class RefusedGlobals(pickle.UnpicklingError):
    """The file names something that may run code; the message says what."""


class Inert:
    """Stands for any object of a class that is not loaded: takes everything and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Takes what the pickle gives to the class."""

    def __setstate__(self, state: object) -> None:
        """Takes what the pickle puts into the object."""


def _plain_dict(*args: object, **kwargs: object) -> dict[object, object]:
    """Stands for `collections.defaultdict`, into which a pickle puts items one by one."""
    return {}


def _plain_list(*args: object, **kwargs: object) -> list[object]:
    """Stands for `collections.deque`, likewise."""
    return []


_CONTAINERS: dict[str, Callable[..., object]] = {
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
}


def strangers_in(path: Path) -> list[str]:
    """Return the classes and functions that the checkpoint names, except PyTorch's plain ones.

    Raises:
        RefusedGlobals: some of them may run code.
        pickle.UnpicklingError, OSError, RuntimeError, ValueError: the file cannot be read.
    """
    if not is_mappable(path):
        return []  # of before PyTorch 1.6: the unpickler itself refuses what it does not know
    strangers = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    refused = [name for name in map(_by_python_3, strangers) if not _may_be_inert(name)]
    if refused:
        more = f" and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
        raise RefusedGlobals(f"it names {', '.join(refused[:_TOLD])}{more}")
    if len(strangers) > MAX_STRANGERS:
        raise RefusedGlobals(f"it names {len(strangers)} classes; at most {MAX_STRANGERS} are read")
    return strangers


@contextmanager
def inert(strangers: Iterable[str]) -> Iterator[None]:
    """Let `torch.load` create an inert object for each of these names, within the block."""
    stands_for: dict[str, Callable[..., object]] = {name: Inert for name in strangers}
    stands_for |= {name: make for name, make in _CONTAINERS.items() if name in stands_for}
    with torch.serialization.safe_globals([(stub, name) for name, stub in stands_for.items()]):
        yield


def _by_python_3(name: str) -> str:
    """Return Python 3's name: a pickle of protocol 2 says `commands` for `subprocess`."""
    module, dot, rest = name.partition(".")
    return IMPORT_MAPPING.get(module, module) + dot + rest


def _may_be_inert(name: str) -> bool:
    """Return whether this is a plain value of Python's library, or no part of that library."""
    module, _, _ = name.partition(".")
    return name in _PLAIN_VALUES or (
        all(part.isidentifier() for part in name.split("."))
        and module not in sys.stdlib_module_names
        and module not in _RUN_CODE
    )


# Not in the library of every Python, but made to import or run things by name.
_RUN_CODE = frozenset(
    {
        *("cloudpickle", "compiler", "dill", "distutils", "ihooks", "imp", "joblib", "new", "nt"),
        *("os2", "pip", "pkg_resources", "popen2", "rexec", "setuptools", "user"),
    }
)
