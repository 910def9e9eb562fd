"""What several tests share: real pictures, the real model, and a real server.

The server is TorchServe with the real archive, and the gateway in front of it, once for all.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from samserve.embeddings.cache import EmbeddingCache
from samserve.network.checkpoints import load_network
from samserve.network.decoder import Decoder
from samserve.network.encoder import Encoder
from samserve.network.threads import Threads
from samserve.segmenter import Segmenter
from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import running
from tests.support import random_weights, tools

ROOT = Path(__file__).resolve().parent.parent

Picture = NDArray[np.uint8]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test's fixtures are made: are the programs there that it needs?"""
    tools.check(item)


def picture(name: str) -> Picture:
    """One of scikit-image's photographs, H×W×3 uint8 RGB."""
    pixels = getattr(skimage.data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def base64_png(pixels: NDArray[Any]) -> str:
    """What a client puts into `b64img`."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def segmenter_of(model: Any) -> Segmenter:
    """All that answers with this model, remembering nothing."""
    encoder, decoder = Encoder(model), Decoder(model)
    embeddings = EmbeddingCache(encoder, decoder, identity="", memory_bytes=0, store=None)
    return Segmenter(embeddings, decoder, model.device, "pytorch", Threads(2))


@pytest.fixture(scope="session")
def model() -> Any:
    """MobileSAM with the weights that `make weights` fetched."""
    torch.set_num_threads(2)
    return load_network("vit_t", ROOT / "weights" / "vit_t.pt", torch.device("cpu"))


@pytest.fixture(scope="session")
def vit_b_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a random checkpoint of vit_b, as `make weights` leaves one."""
    folder = tmp_path_factory.mktemp("weights")
    random_weights.save("vit_b", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def reference_masks(model: Any) -> Callable[..., tuple[NDArray[np.bool_], list[float]]]:
    """`SamPredictor`'s masks and predicted IoUs for one box, each picture encoded once."""
    from mobile_sam import SamPredictor

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


@dataclass(frozen=True)
class Server:
    """The running server and its two doors."""

    options: Options
    http: LoopbackSession

    def post(
        self, path: str, body: Any = None, *, content: bytes | None = None
    ) -> requests.Response:
        """To the gateway; `content` where the body is not meant to be JSON."""
        return self._post(self.options.url + path, {}, body, content)

    def predict(
        self, lane: str, body: Any = None, *, content: bytes | None = None
    ) -> requests.Response:
        """To TorchServe itself."""
        url = f"{self.options.inference_url}/predictions/{lane}"
        return self._post(url, self.authorization("inference"), body, content)

    def authorization(self, role: str) -> dict[str, str]:
        key = json.loads(self.options.key_file.read_text())[role]["key"]
        return {"Authorization": f"Bearer {key}"}

    def _post(
        self, url: str, headers: dict[str, str], body: Any, content: bytes | None
    ) -> requests.Response:
        content = json.dumps(body).encode() if content is None else content
        headers = {"Content-Type": "application/json", **headers}
        return self.http.post(url, data=content, headers=headers)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Of its own, for the repository's may have archives of registered weights.
    store = tmp_path_factory.mktemp("model_store")
    shutil.copy(ROOT / "model_store" / "vit_t.mar", store)
    options = free_ports(Options(model_store=store))
    with running(options), LoopbackSession(300) as http:
        yield Server(options, http)
    shutil.rmtree(options.run_dir)


@pytest.fixture(params=["gateway", "torchserve"])
def door(request: pytest.FixtureRequest, server: Server) -> Any:
    """`post(mode, body)` through either door; the answers must be the same."""

    def post(mode: str, body: Any = None, *, content: bytes | None = None) -> requests.Response:
        if request.param == "gateway":
            path = "/sam/" if mode == "prompt" else "/sam/automask/"
            return server.post(path, body, content=content)
        lane = "vit_t" if mode == "prompt" else "vit_t-automask"
        return server.predict(lane, body, content=content)

    return post
