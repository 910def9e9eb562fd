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

WEIGHTS_FIXTURES = {"model", "vit_b_weights", "sam2_t_weights"}
"""Fixtures that need weights or torch."""

SERVERS_OF_DEPLOY = {"test_worker", "test_compose_run", "test_offline_images"}
"""Files of tests/deploy that start servers, or build images."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of tests/deploy/test_compose_run.py."""
    parser.addoption("--whole-images", action="store_true", help="build images with all packages")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by what it needs."""
    room, *_ = item.path.relative_to(ROOT / "tests").parts
    if item.path.stem in ("test_hosts", "test_haproxy"):
        item.add_marker("hosts")
    elif room in ("server", "page") or item.path.stem in SERVERS_OF_DEPLOY:
        item.add_marker("server")
    elif WEIGHTS_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker("weights")
    elif item.path.parent.name == "scripts":
        item.add_marker("slow")  # makes virtual environments


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist, sort the tests so that two processes share the cores well."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.support.groups import turn_of

        items.sort(key=turn_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`, run each group of tests in one process."""
    if config.getvalue("dist") != "loadscope":
        return None
    from tests.support.groups import Groups

    return Groups(config, log)


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
    yield from random_weights_of("vit_b", tmp_path_factory)


@pytest.fixture(scope="session")
def sam2_t_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a random checkpoint of sam2_t, likewise."""
    yield from random_weights_of("sam2_t", tmp_path_factory)


def random_weights_of(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with a random checkpoint, and remove it afterwards."""
    from tests.support import random_weights

    folder = tmp_path_factory.mktemp("weights")
    random_weights.save(model_type, folder)
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
