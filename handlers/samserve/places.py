"""This module knows where the files are that the package reads and writes.

Two kinds of files: those that come with the package (the handler, the settings in `config/`), and
those that it makes (weights, archives, the files of a running server), its *state*.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_data_path

LIBRARY = Path(__file__).resolve().parent
"""The folder of this package. An archive takes all of its modules."""


def clone() -> Path | None:
    """Return the root of the git clone that this package runs from.

    Returns:
        None where the package was installed from a wheel.
    """
    root = LIBRARY.parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def state_folder() -> Path:
    """Return the folder for weights, archives and the files of running servers.

    It is the clone where there is one. Otherwise it is the user's data folder, as the operating
    system names it (on Linux `$XDG_DATA_HOME/samserve` or `~/.local/share/samserve`).
    """
    return clone() or user_data_path("samserve", appauthor=False)


def weights_folder() -> Path:
    """Return the folder of the weights."""
    return state_folder() / "weights"


def model_store_folder() -> Path:
    """Return the folder of the .mar archives."""
    return state_folder() / "model_store"


def run_folder() -> Path:
    """Return the folder in which each running server has a folder, named after its port."""
    return state_folder() / "run"


def handler_file() -> Path:
    """Return TorchServe's handler, `sam_handler.py`."""
    return _location("sam_handler")


def config_folder() -> Path:
    """Return the folder of TorchServe's settings and of the models' settings."""
    root = clone()
    # A container mounts the settings over the clone's folder, without its __init__.py.
    return root / "config" if root else _location("samserve_config").parent


def _location(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"The module {module} is not installed; install samserve again.")
    return Path(spec.origin)
