"""This module exports the encoder and the decoder's upscaler to OpenVINO, and runs them on a CPU.

`export` is called when an archive is built, `load` when a worker starts. Everything is
in float32: on processors with bfloat16 or float16, OpenVINO would otherwise use these.
"""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from .exact_decoder import ExactDecoder, Upscaler
from .families import NETWORK_SIDE, Network, family_of

Compiled = Callable[..., Any]


@torch.no_grad()
def export(model: Network, folder: Path) -> None:
    """Write the encoder and the decoder's upscaler of a model to `folder`, as `COMPILED_FILES`."""
    family = family_of(model)
    pixels = torch.zeros(1, 3, NETWORK_SIDE, NETWORK_SIDE)
    _export_module(family.encoder(model), (pixels,), None, folder / "encoder.xml")
    # The number of tokens, the number of masks and the shape of the image vary.
    rank, masks = Dim("rank", min=16, max=4096), Dim("masks", min=1, max=4)
    height, width = Dim("height", min=1, max=64), Dim("width", min=1, max=64)
    inputs = {
        "upscaled": torch.zeros(64, 48, 256),
        "attention": torch.zeros(112, 64, 48),
        "u": torch.zeros(112, 256),
        "d0": torch.zeros(64, 48),
        "d1": torch.zeros(64, 48),
        "hyper": torch.zeros(3, 32),
    }
    area = {0: height, 1: width}
    varying = {
        "upscaled": area,
        "attention": {0: rank, 1: height, 2: width},
        "u": {0: rank},
        "d0": area,
        "d1": area,
        "hyper": {0: masks},
    }
    for name, (_, _, channels) in zip(("coarse", "fine"), family.map_shapes, strict=False):
        inputs[name] = torch.zeros(64, 48, channels)
        varying[name] = area
    upscaler: Upscaler = ExactDecoder(model).upscaler
    _export_module(upscaler, tuple(inputs.values()), varying, folder / "upscaler.xml")


def load(folder: Path, threads: int) -> tuple[Compiled, Compiled]:
    """Return the encoder and the upscaler that `export` wrote.

    Both take tensors, return a tensor or a tuple of them, and may be called from several threads at
    once.

    Args:
        folder: the folder with the exported files.
        threads: the number of threads that the encoder uses for one image. The upscaler runs in
            the calling thread only.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: OpenVINO cannot run the files.
    """
    core = _openvino().Core()
    full_precision = {"INFERENCE_PRECISION_HINT": "f32"}
    # Threads are not pinned to cores, because the other lane's worker runs on the same cores.
    all_threads = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    # Without a stream it runs in the calling thread, whose cache has the data.
    in_caller = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 0}
    encoder = core.compile_model(folder / "encoder.xml", "CPU", full_precision | all_threads)
    # One per thread, because calls of a network without a stream wait for each other.
    upscalers = [
        core.compile_model(folder / "upscaler.xml", "CPU", full_precision | in_caller)
        for _ in range(threads)
    ]
    return _callable([encoder]), _callable(upscalers)


def _export_module(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], varying: Any, path: Path
) -> None:
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = torch.export.export(module, inputs, dynamic_shapes=varying)
    # OpenVINO logs operations that it knows and this version of PyTorch no longer has.
    logging.getLogger().addFilter(_is_not_about_decompositions)
    try:
        # The frontend keeps no reference to the decoder, so this name keeps it alive.
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    finally:
        logging.getLogger().removeFilter(_is_not_about_decompositions)
    frontend = FrontEndManager().load_by_framework("pytorch")
    openvino.save_model(frontend.convert(frontend.load(decoder)), path, compress_to_fp16=False)


def _callable(compiled: list[Any]) -> Compiled:
    """Return a function that runs whichever of these copies of one network is free."""
    free: queue.LifoQueue[Any] = queue.LifoQueue()
    for network in compiled:
        # OpenVINO fills its table of types at the first look-up. If two threads do that at the same
        # time, they deadlock: one holds the table's lock, the other the interpreter's.
        network.inputs[0].get_element_type().to_dtype()
        free.put(network.create_infer_request())

    def run(*inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        arrays = [tensor.numpy() for tensor in inputs]
        request = free.get()
        try:
            results = request.infer(arrays, share_inputs=True)
            first, *others = (torch.from_numpy(results[i]) for i in range(len(results)))
            return (first, *others) if others else first
        finally:
            free.put(request)

    return run


def _openvino() -> Any:
    # The package reports every import over the internet, unless openvino_telemetry is missing. A
    # server must not send reports that its administrator did not ask for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _is_not_about_decompositions(record: logging.LogRecord) -> bool:
    return "not found in decomp table" not in record.getMessage()
