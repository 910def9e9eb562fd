"""Measure SAM 2's types against the package sam2, side by side in one run.

    python -m bench.sam2 --types sam2_t sam2_bp

Each contender is a process that gets the same pictures in turn: the reference, the reference with
the allocator's settings of our workers (*kept pages*), and samserve's library as a worker runs it,
with the compiled parts. The published weights are used if they are in `weights/`, else random ones.
Random weights make noisy masks, which cost samserve more and the reference as much: every pixel is
near an outline.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samserve.model import load_model
from samserve.network import openvino_parts
from samserve.network.checkpoints import load_network
from samserve.network.sam2 import SHAPES
from samserve.segmenter import Segmenter
from tests.support.random_weights import lively
from tests.support.sam2_reference import (
    reference_generator,
    reference_network,
    reference_predictor,
)

from . import ROOT
from .cases import KEPT_PAGES, REFERENCE
from .contenders import environment
from .pictures import picture

SIZE = (1800, 1200)
BOX = (600, 300, 1100, 800)
CASES = ("new picture", "known box", "automask")
CONTENDERS = (REFERENCE, KEPT_PAGES, "samserve")

SPARSE = 14.0
THRESHOLDS = {"pred_iou_thresh": 0.12, "stability_score_thresh": 0.4}
"""With random weights: see `random_weights.lively`. Many masks pass, and their boxes differ."""


def main() -> None:
    """Print a table for each type."""
    parser = argparse.ArgumentParser(prog="python -m bench.sam2", description=__doc__)
    parser.add_argument("--types", nargs="+", choices=SHAPES, default=["sam2_t", "sam2_bp"])
    parser.add_argument("--repeats", type=int, default=5, help="of each case but automask")
    parser.add_argument("--points", type=int, default=32, help="along a side of automask's grid")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, model_type, folder = arguments.child
        _serve(name, model_type, Path(folder), arguments.points)
        return
    for model_type in arguments.types:
        print(table(model_type, arguments.repeats, arguments.points), flush=True)


def table(model_type: str, repeats: int, points: int) -> str:
    """Return the measured seconds of a type as a table in Markdown."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        origin = _prepare(model_type, folder)
        ask = {
            name: stack.enter_context(_contender(name, model_type, folder, points))
            for name in CONTENDERS
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        found: dict[str, str] = {}
        for case in CASES:
            for number in range(1 if case == "automask" else repeats + 1):
                for name in CONTENDERS:
                    took, count = ask[name](f"{case} {number}")
                    found[name] = count
                    if number or case == "automask":  # the first one is a warm-up
                        seconds.setdefault((case, name), []).append(took)
    lines = [
        f"{model_type}, {origin} weights, {SIZE[0]}x{SIZE[1]}, {points}x{points} points; masks: "
        + ", ".join(f"{name} {count}" for name, count in found.items()),
        "",
        "| | " + " | ".join(CONTENDERS) + " | times as fast |",
        "|---|" + "--:|" * (len(CONTENDERS) + 1),
    ]
    for case in CASES:
        medians = [statistics.median(seconds[case, name]) for name in CONTENDERS]
        ratios = " / ".join(f"{median / medians[-1]:.1f}" for median in medians[:-1])
        lines.append(f"| {case} | " + " | ".join(f"{m:.3f} s" for m in medians) + f" | {ratios} |")
    return "\n".join([*lines, ""])


def _prepare(model_type: str, folder: Path) -> str:
    """Put weights and compiled parts into the folder. Return where the weights come from."""
    published = ROOT / "weights" / f"{model_type}.pt"
    weights = folder / "weights.pt"
    if published.is_file():
        weights.symlink_to(published)
    else:
        torch.save({"model": lively(model_type, sparse=SPARSE)}, weights)
    openvino_parts.export(load_network(model_type, weights, torch.device("cpu")), folder)
    return "published" if published.is_file() else "random"


@contextmanager
def _contender(
    name: str, model_type: str, folder: Path, points: int
) -> Iterator[Callable[[str], tuple[float, str]]]:
    """Start a contender, and yield a function that runs a case: seconds, and masks found."""
    command = [sys.executable, "-m", "bench.sam2", "--points", str(points)]
    environ = environment(kept_pages=name != REFERENCE)
    process = subprocess.Popen(
        [*command, "--child", name, model_type, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip

    def ask(case: str) -> tuple[float, str]:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the contender has no pipes")
        print(case, file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended with status {process.wait()}")
        took, count = line.split()
        return float(took), count

    with process:
        try:
            yield ask
        finally:
            if process.stdin is not None:
                process.stdin.close()


def _serve(name: str, model_type: str, folder: Path, points: int) -> None:
    """Run the cases that the standard input names, and print the seconds of each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    torch.set_num_threads(os.cpu_count() or 1)
    random = not (ROOT / "weights" / f"{model_type}.pt").is_file()
    thresholds = THRESHOLDS if random else {}
    make = _ours if name == "samserve" else _reference
    run = make(model_type, folder, points, thresholds)
    base = np.array(picture([], SIZE))
    for line in sys.stdin:
        case, _, number = line.strip().rpartition(" ")
        pixels = base.copy()
        if case == "new picture":
            pixels[0, 0] = int(number), 0, 0
        start = time.perf_counter()
        count = run(case, pixels)
        print(time.perf_counter() - start, count, file=answers, flush=True)


def _ours(
    model_type: str, folder: Path, points: int, thresholds: dict[str, Any]
) -> Callable[[str, NDArray[np.uint8]], int]:
    model = load_model(model_type, folder / "weights.pt", compiled_parts=folder)
    segmenter = Segmenter(model)

    def run(case: str, pixels: NDArray[np.uint8]) -> int:
        embedded = segmenter.embed(pixels)
        if case == "automask":
            return len(segmenter.automask(embedded, points_per_side=points, **thresholds))
        return len(segmenter.prompt(embedded, box=BOX))

    return run


def _reference(
    model_type: str, folder: Path, points: int, thresholds: dict[str, Any]
) -> Callable[[str, NDArray[np.uint8]], int]:
    weights = torch.load(folder / "weights.pt", weights_only=True)["model"]
    network = reference_network(model_type, weights)
    predictor = reference_predictor(network)

    def run(case: str, pixels: NDArray[np.uint8]) -> int:
        if case == "automask":
            generator = reference_generator(network, points_per_side=points, **thresholds)
            return len(generator.generate(pixels))
        # samapi encodes a picture again only if another one came between.
        if case == "new picture" or not predictor._is_image_set:
            predictor.set_image(pixels)
        masks, _, _ = predictor.predict(box=np.array(BOX), multimask_output=False)
        return len(masks)

    return run


if __name__ == "__main__":
    main()
