"""Measure every model type on a CUDA GPU against the reference's classes, in one run.

    python -m bench.gpu --types vit_b vit_h

Print a Markdown table. All runs in one process through the library, because HTTP would hide the
GPU's times. A type without a weights file gets random weights of its shapes. They give true times
for everything but automask, which then finds almost no mask; the table says `random weights`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samserve.embeddings.cache import EmbeddingCache
from samserve.model import Model, prompts_that_fit
from samserve.model_types import MODEL_TYPES
from samserve.network.checkpoints import blank_model, model_from, read
from samserve.network.decoder import Decoder
from samserve.network.encoder import Encoder, compiled_by_inductor
from samserve.network.threads import Threads
from samserve.segmenter import Segmenter

from . import ROOT
from .pictures import picture, random_boxes, stamped

SIZE = (1024, 1024)
POINTS = 32
BATCHES = (1, 4, 8)
HEADER = ["box, new picture", "box, known picture", f"{POINTS * POINTS} points"]
HEADER += [f"images/s, {n} at once" for n in BATCHES]

Pixels = NDArray[np.uint8]
Row = list[str]


def main() -> None:
    """Exit with the reason if there is no CUDA GPU."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", choices=MODEL_TYPES, default=list(MODEL_TYPES))
    parser.add_argument(
        "--repeats",
        type=int,
        default=20,
        help="repetitions of each measurement (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench-gpu: PyTorch sees no CUDA GPU on this machine; nothing was measured.")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {SIZE[0]}x{SIZE[1]}\n")
    print(f"| | {' | '.join(HEADER)} |\n|---{'|--:' * len(HEADER)}|")
    for model_type in arguments.types:
        for name, row in rows(model_type, arguments.repeats):
            print(f"| {name} | {' | '.join(row)} |", flush=True)


def rows(model_type: str, repeats: int) -> Iterator[tuple[str, Row]]:
    """Yield the names and cells of a type's rows: reference and samserve, in each precision."""
    weights = ROOT / "weights" / f"{model_type}.pt"
    state_dict = read(weights) if weights.is_file() else blank_model(model_type).state_dict()
    label = model_type if weights.is_file() else f"{model_type}, random weights"
    device = torch.device("cuda", 0)
    contenders: dict[str, Callable[[], Reference | Ours]] = {
        "reference float32": lambda: Reference(_model(model_type, state_dict).to(device), None),
        # Not bfloat16: the reference converts its results to NumPy, which has no such type.
        "reference float16": lambda: Reference(
            _model(model_type, state_dict).to(device), torch.float16
        ),
        "samserve float32": lambda: Ours(model_type, state_dict, torch.float32, device),
        "samserve bfloat16": lambda: Ours(model_type, state_dict, torch.bfloat16, device),
        "samserve float16": lambda: Ours(model_type, state_dict, torch.float16, device),
        "samserve float16, compiled": lambda: Ours(
            model_type, state_dict, torch.float16, device, compiled=True
        ),
    }
    for name, build in contenders.items():
        yield f"{label}: {name}", row(build(), repeats)
        torch.cuda.empty_cache()


def row(contender: Reference | Ours, repeats: int) -> Row:
    """Return the median of each measurement, after one run that is not counted."""
    image = picture([], SIZE)
    pictures = iter([np.asarray(stamped(image, number)) for number in range(repeats + 1)])
    boxes = iter(random_boxes(SIZE, 2 * (repeats + 1)))
    known = np.asarray(image)
    contender.see(known)

    def new_box() -> None:
        contender.see(next(pictures))
        contender.box(next(boxes))

    cells = [
        _milliseconds(_times(new_box, repeats)),
        _milliseconds(_times(lambda: contender.box(next(boxes)), repeats)),
    ]
    contender.see(known)
    cells.append(_milliseconds(_times(contender.grid, max(1, repeats // 4))))
    for n in BATCHES:
        pixels = torch.randn(n, 3, 1024, 1024, device="cuda")
        times = _times(lambda pixels=pixels: contender.encode(pixels), repeats)  # type: ignore[misc]
        cells.append(f"{n / statistics.median(times):.1f}")
    return cells


class Reference:
    """`SamPredictor` and `SamAutomaticMaskGenerator`, under autocast if in another precision."""

    def __init__(self, model: Any, precision: torch.dtype | None) -> None:
        # segment_anything or mobile_sam, whichever the network comes from.
        reference = import_module(type(model).__module__.partition(".")[0])
        self._predictor = reference.SamPredictor(model)
        self._generator = reference.SamAutomaticMaskGenerator(model, points_per_side=POINTS)
        self._precision = precision
        self._image: Pixels | None = None

    def see(self, image: Pixels) -> None:
        self._image = image
        with self._autocast():
            self._predictor.set_image(image)

    def box(self, box: list[int]) -> None:
        with self._autocast():
            self._predictor.predict(box=np.array(box), multimask_output=False)

    def grid(self) -> None:
        """Run the generator, which encodes the picture again."""
        with self._autocast():
            self._generator.generate(self._image)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> None:
        with self._autocast():
            self._predictor.model.image_encoder(pixels)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._precision is None:
            return contextlib.nullcontext()
        return torch.autocast("cuda", self._precision)


class Ours:
    """The library, set up as in a worker."""

    def __init__(
        self,
        model_type: str,
        state_dict: Any,
        precision: torch.dtype,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        sam = model_from(model_type, state_dict, model_type, precision).to(device)
        network = compiled_by_inductor(sam, precision) if compiled else None
        self._encoder, decoder = Encoder(sam, network, precision), Decoder(sam)
        decoder.prompts_at_once = prompts_that_fit(self._encoder, decoder, reserved=0)
        cache = EmbeddingCache(self._encoder, decoder, identity="", memory_bytes=0, store=None)
        model = Model(model_type, cache, decoder, device, "pytorch", Threads(2))
        self._segmenter = Segmenter(model)

    def see(self, image: Pixels) -> None:
        self._pixels = image
        self._picture = self._segmenter.embed(image)

    def box(self, box: list[int]) -> None:
        self._segmenter.prompt(self._picture, box=box)

    def grid(self) -> None:
        """Run automask. Encode the picture again, as the reference does."""
        self.see(self._pixels)
        self._segmenter.automask(self._picture, points_per_side=POINTS)

    def encode(self, pixels: torch.Tensor) -> None:
        self._encoder.outputs(pixels)


def _model(model_type: str, state_dict: Any) -> Any:
    return model_from(model_type, state_dict, model_type)


def _times(work: Callable[[], None], repeats: int) -> list[float]:
    """Return the seconds of each run, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times


def _milliseconds(times: list[float]) -> str:
    return f"{1000 * statistics.median(times):.1f} ms"


if __name__ == "__main__":
    main()
