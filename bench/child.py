"""One contender of the benchmark, in a process that `bench.contenders` starts.

    python -m bench.child reference weights/vit_t.pt
    python -m bench.child handler <folder of the unpacked archive> vit_t-automask

The process reads one command per line, `{"do", "body", "answer"}` with the paths of two files,
runs it, and writes a line with its times. It ends at the end of its input. A failure ends it with
a traceback, so that no failed run is timed.

It imports no module of the clone: `samserve` must come from the archive, as in a worker.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Contender(Protocol):
    """One way to answer a request."""

    def task(self, do: str, body: bytes) -> Callable[[], Any]:
        """Prepare a command, and return the function to be timed."""

    def answer(self, result: Any) -> bytes:
        """Return the task's result as bytes; exit if there is no object in it. Not timed."""


def main() -> None:
    """Run the commands of the standard input until it ends."""
    # Libraries print to stdout; send that to stderr, and keep stdout for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, path, *rest = sys.argv[1:]
    contender: Contender
    contender = Reference(Path(path)) if kind == "reference" else Handler(Path(path), *rest)
    for line in sys.stdin:
        command = json.loads(line)
        task = contender.task(command["do"], Path(command["body"]).read_bytes())
        wall, cpu = time.perf_counter(), time.process_time()
        result = task()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        Path(command["answer"]).write_bytes(contender.answer(result))
        print(json.dumps({"wall": wall, "cpu": cpu}), file=answers, flush=True)


class Reference:
    """The samapi server's work for a request, with the reference's classes.

    Its HTTP server and its validation of a request are left out, which makes it faster.
    """

    def __init__(self, weights: Path) -> None:
        import torch
        from mobile_sam import SamPredictor, sam_model_registry

        model = sam_model_registry["vit_t"]()
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # TinyViT's attention copies its biases when eval() is called. The builder called it with
        # the random biases, so call it again with the loaded ones.
        model.eval()
        self.predictor = SamPredictor(model)
        self.last_image = ""

    def task(self, do: str, body: bytes) -> Callable[[], Any]:
        match do:
            case "prompt":
                return lambda: self.prompt(body, again=False)
            case "prompt-again":
                return lambda: self.prompt(body, again=True)
            case "predict":
                boxes = _boxes(json.loads(body))
                return lambda: self.predict(boxes)
            case "automask":
                return lambda: self.automask(body)
            case "masks":
                return lambda: self.generate(json.loads(body))
        raise ValueError(do)

    def answer(self, result: Any) -> bytes:
        """Return GeoJSON as it is, and masks as an .npz of packed bits and their scores."""
        if not result or result == b"[]":
            sys.exit("reference: no object in the answer")
        if isinstance(result, bytes):
            return result
        packed = io.BytesIO()
        np.savez(
            packed,
            masks=np.stack([np.packbits(record["segmentation"]) for record in result]),
            scores=json.dumps([{**r, "segmentation": None} for r in result]),
        )
        return packed.getvalue()

    def prompt(self, body: bytes, *, again: bool) -> bytes:
        """Answer a request for one box or several: `set_image`, then `predict` for each.

        Args:
            again: do not encode the picture if the last request had the same, as samapi does.
        """
        request = json.loads(body)
        if not (again and request["b64img"] == self.last_image):
            self.predictor.set_image(_picture(request["b64img"]))
            self.last_image = request["b64img"]
        return _dumps(self.predict(_boxes(request)))

    def predict(self, boxes: list[list[float]]) -> list[dict[str, Any]]:
        """Return `SamPredictor.predict`'s mask for each box on the encoded picture."""
        records = []
        for box in boxes:
            masks, quality, _ = self.predictor.predict(box=np.array(box), multimask_output=False)
            records.append({"segmentation": masks[0], "predicted_iou": float(quality[0])})
        return records

    def automask(self, body: bytes) -> bytes:
        """Answer an automask request."""
        return _dumps(self.generate(json.loads(body)))

    def generate(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the records of `SamAutomaticMaskGenerator.generate` for the request's picture."""
        from mobile_sam import SamAutomaticMaskGenerator

        generator = SamAutomaticMaskGenerator(
            self.predictor.model, points_per_side=request["points_per_side"]
        )
        records: list[dict[str, Any]] = generator.generate(_picture(request["b64img"]))
        return records


def _picture(b64img: str) -> NDArray[np.uint8]:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(base64.b64decode(b64img))))


def _boxes(request: dict[str, Any]) -> list[list[float]]:
    if "prompts" in request:
        return [prompt["bbox"] for prompt in request["prompts"]]
    return [request["bbox"]]


def _dumps(records: list[dict[str, Any]]) -> bytes:
    """Return GeoJSON as samapi makes it: each mask's longest contour at 0.5."""
    from skimage.measure import find_contours

    features = []
    for record in records:
        # A border of zeros closes the contours of masks that touch the picture's edge.
        closed = np.pad(record["segmentation"], 1)
        contours = find_contours(closed, 0.5)  # type: ignore[no-untyped-call]
        longest = max(contours, key=len, default=np.empty((0, 2))) - 1
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [longest[:, ::-1].tolist()]},
                "properties": {"quality": record["predicted_iou"]},
            }
        )
    return json.dumps(features).encode()


class Handler:
    """Our handler from its archive, with the same context as in a worker."""

    def __init__(self, model_dir: Path, lane: str) -> None:
        sys.path.insert(0, str(model_dir))
        import ts
        from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
        from ts.service import Service

        import samserve
        from sam_handler import SamHandler

        if not Path(samserve.__file__).is_relative_to(model_dir):
            sys.exit(f"handler: samserve comes from {samserve.__file__}, not from the archive")
        metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
        metrics.initialize_cache()
        metrics.model_name = lane
        manifest = json.loads((model_dir / "MAR-INF" / "MANIFEST.json").read_text())
        service = Service(lane, str(model_dir), manifest, None, None, 1, True, metrics)
        self.unpack = service.retrieve_data_for_inference
        self.context = service.context
        self.handler = SamHandler()
        self.handler.initialize(self.context)

    def task(self, do: str, body: bytes) -> Callable[[], Any]:
        parameter = {"name": "body", "value": body, "contentType": "application/json"}
        sent = {"requestId": b"bench", "parameters": [parameter], "headers": []}
        headers, rows, ids = self.unpack([sent])
        self.context.request_processor, self.context.request_ids = headers, ids
        return lambda: self.handler.handle(rows, self.context)

    def answer(self, result: Any) -> bytes:
        [answer] = result
        status, _ = self.context.get_response_status(0)
        if status != 200 or answer in (b"", b"[]"):
            sys.exit(f"handler: answered {status}: {answer[:1000]!r}")
        return bytes(answer)


if __name__ == "__main__":
    main()
