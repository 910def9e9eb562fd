"""Fixtures that several tests share, and the markers and groups of all tests.

Heavy packages are imported within the fixtures, so that tests without a model start fast.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import tools
from tests.support.paths import ROOT

if TYPE_CHECKING:
    import numpy as np
    import requests
    from numpy.typing import NDArray

    from tests.support.servers import Server


# Tests run in two processes, and beside servers. An OpenMP thread that spins while it waits would
# keep a core from the other process. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WEIGHTS_FIXTURES = {"model", "vit_b_weights"}
"""Fixtures that need weights or torch."""


# First, because pytest-xdist reads the groups in this hook too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs, and group tests that must run in one process.

    pytest-xdist with `--dist loadgroup` runs a group in one process. The group of a test is its
    module, but all users of the fixture `server` are one group, so that it starts once. Tests that
    need neither a server nor weights have no group.
    """
    for item in items:
        room, *_ = item.path.relative_to(ROOT / "tests").parts
        fixtures = set(getattr(item, "fixturenames", ()))
        name = item.path.stem
        if name in ("test_hosts", "test_haproxy"):
            # Both make network namespaces of the same names.
            item.add_marker("hosts")
            item.add_marker(pytest.mark.xdist_group("hosts"))
        elif room == "server" or name == "test_worker":
            item.add_marker("server")
            item.add_marker(pytest.mark.xdist_group("server" if "server" in fixtures else name))
        elif fixtures & WEIGHTS_FIXTURES or item.get_closest_marker("weights"):
            item.add_marker("weights")
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
        elif item.path.parent.name == "scripts":
            item.add_marker("slow")  # makes virtual environments


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test before its fixtures are made if it lacks a program that it needs."""
    tools.check(item)


@pytest.fixture(scope="session")
def model() -> Any:
    """MobileSAM with the weights that `make weights` fetched."""
    import torch

    from samserve.network.checkpoints import load_network

    # One of two test processes has one of two cores.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    return load_network("vit_t", ROOT / "weights" / "vit_t.pt", torch.device("cpu"))


@pytest.fixture(scope="session")
def vit_b_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a random checkpoint of vit_b, in the layout that `make weights` writes."""
    from tests.support import random_weights

    folder = tmp_path_factory.mktemp("weights")
    random_weights.save("vit_b", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def reference_masks(model: Any) -> Callable[..., tuple[NDArray[np.bool_], list[float]]]:
    """Return a function that gives `SamPredictor`'s masks and predicted IoUs for one box.

    It encodes each picture once.
    """
    import numpy as np
    from mobile_sam import SamPredictor

    from tests.support.sample_pictures import picture

    predictors: dict[str, Any] = {}

    def predict(name: str, bbox: list[float], multimask_output: bool = False) -> Any:
        if name not in predictors:
            predictors[name] = SamPredictor(model)
            predictors[name].set_image(picture(name))
        masks, quality, _ = predictors[name].predict(
            box=np.array(bbox), multimask_output=multimask_output
        )
        return masks, quality.tolist()

    return predict


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """TorchServe with the real archive, and the gateway in front of it: one for all tests."""
    from samserve_launcher.options import Options, free_ports
    from tests.support.servers import running_server

    # A folder of its own: the repository's model_store may hold archives of registered weights.
    store = tmp_path_factory.mktemp("model_store")
    shutil.copy(ROOT / "model_store" / "vit_t.mar", store)
    with running_server(free_ports(Options(model_store=store))) as server:
        yield server


@pytest.fixture(params=["gateway", "torchserve"])
def door(request: pytest.FixtureRequest, server: Server) -> Any:
    """Return `post(mode, body)` to the gateway and to TorchServe; both must answer the same."""

    def post(mode: str, body: Any = None, *, content: bytes | None = None) -> requests.Response:
        if request.param == "gateway":
            path = "/sam/" if mode == "prompt" else "/sam/automask/"
            return server.post(path, body, content=content)
        lane = "vit_t" if mode == "prompt" else "vit_t-automask"
        return server.predict(lane, body, content=content)

    return post
