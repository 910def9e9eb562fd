"""The groups of tests that pytest-xdist runs in one process: `pytest -n 2 --dist loadscope`.

pytest-xdist's own `loadgroup` has no effect with pytest 9.2, which keeps a test's id elsewhere.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

STARTS_ITS_OWN_SERVER = (
    "test_qupath",
    "test_weights",
    "test_types",
    "test_redis",
    "test_readme",
    "test_bench",
    "test_serve",
    "test_wheel",
)
"""Modules of tests/server that do not use the fixture `server`."""

NETWORK_NAMESPACES = ("test_hosts", "test_haproxy", "test_compose_run", "test_offline_images")
"""Modules of tests/deploy that make hosts or images. Each pair of them would need all cores."""


def group_of(nodeid: str) -> str:
    """Return the group of a test: its module, or a name that several modules share."""
    path = PurePath(nodeid.partition("::")[0])
    if path.stem in NETWORK_NAMESPACES:
        return "hosts"
    if path.parent.name in ("server", "page") and path.stem not in STARTS_ITS_OWN_SERVER:
        return "server"
    return str(path)


def turn_of(item: pytest.Item) -> int:
    """Return when a test runs, from 0 (first).

    Tests of a server mostly wait, and tests of the networks mostly compute. So the largest group of
    the former starts together with the latter, and two processes share the cores well.
    """
    if group_of(item.nodeid) == "server":
        return 0
    if item.get_closest_marker("weights"):
        return 1
    return 2 if item.get_closest_marker("server") or item.get_closest_marker("hosts") else 3


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """A scheduler that gives each group to one process, in the order of the tests."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
