"""This module reads a checkpoint that names foreign classes, without importing any of them.

A training program's checkpoint has objects of the program beside the weights: its data sets, its
transforms, NumPy's scalars. PyTorch's `weights_only` unpickler refuses such a file, because it
accepts only classes on its list. This module puts an inert class in the place of each foreign one:
nothing is imported or called, and the content of the object is dropped.

Names from Python's standard library are treated differently. A few stand for plain values. With
any other (`builtins.eval`, `os.system`, `subprocess.Popen`) the file is refused, and the error
names it.
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
"""The largest number of foreign classes. PyTorch searches all of them for every object, so loading
takes time in proportion to their number."""

_NAMED_GLOBALS = 5

# Plain values of Python's library, also under the names in pickles of older versions.
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
    """The file names a function or class that may run code. The message says which."""


class Inert:
    """Stands for any object of a class that is not loaded: takes all arguments and keeps none."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take the arguments that the pickle passes to the class."""

    def __setstate__(self, state: object) -> None:
        """Take the state that the pickle puts into the object."""


def _plain_dict(*args: object, **kwargs: object) -> dict[object, object]:
    """Stand for `collections.defaultdict`, into which a pickle puts items one by one."""
    return {}


def _plain_list(*args: object, **kwargs: object) -> list[object]:
    """Stand for `collections.deque`, to which a pickle appends items one by one."""
    return []


_CONTAINERS: dict[str, Callable[..., object]] = {
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
}


def strangers_in(path: Path) -> list[str]:
    """Return the classes and functions that the checkpoint names, except those PyTorch accepts.

    Raises:
        RefusedGlobals: some of them may run code, or there are too many.
        pickle.UnpicklingError, OSError, RuntimeError, ValueError: the file cannot be read.
    """
    if not is_mappable(path):
        return []  # written before PyTorch 1.6: the unpickler itself refuses unknown classes
    strangers = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    refused = [name for name in map(_by_python_3, strangers) if not _may_be_inert(name)]
    if refused:
        more = f" and {len(refused) - _NAMED_GLOBALS} more" if len(refused) > _NAMED_GLOBALS else ""
        raise RefusedGlobals(f"it names {', '.join(refused[:_NAMED_GLOBALS])}{more}")
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
    """Return a name as in Python 3: a pickle of protocol 2 has `commands` for `subprocess`."""
    module, dot, rest = name.partition(".")
    return IMPORT_MAPPING.get(module, module) + dot + rest


def _may_be_inert(name: str) -> bool:
    """Return whether a global is a plain value of Python's library, or outside that library."""
    module, _, _ = name.partition(".")
    return name in _PLAIN_VALUES or (
        all(part.isidentifier() for part in name.split("."))
        and module not in sys.stdlib_module_names
        and module not in _RUN_CODE
    )


# These are not in the library of every Python, but import or run code by name.
_RUN_CODE = frozenset(
    {
        *("cloudpickle", "compiler", "dill", "distutils", "ihooks", "imp", "joblib", "new", "nt"),
        *("os2", "pip", "pkg_resources", "popen2", "rexec", "setuptools", "user"),
    }
)
