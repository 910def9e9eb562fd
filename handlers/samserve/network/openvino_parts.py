"""The heavy parts for a CPU: taken out of PyTorch once, run by OpenVINO ever after.

`export` is for building an archive; `load` is for a worker. In float32 throughout: on
processors that have faster, coarser numbers, OpenVINO would otherwise use them.
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

from .encoder import fold_batch_norms
from .exact_decoder import FactoredDecoder, Upscaler
from .originals import Sam

Network = Callable[..., torch.Tensor]


@torch.no_grad()
def export(model: Sam, folder: Path) -> None:
    """Write the encoder and the decoder's upscaling of a model to `folder`: COMPILED_FILES."""
    side = model.image_encoder.img_size
    encoder = fold_batch_norms(model.image_encoder)
    _export(encoder, (torch.zeros(1, 3, side, side),), None, folder / "encoder.xml")
    # Any number of tokens and of masks, some of a prompt's four; and an image of any shape.
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
    upscaler: Upscaler = FactoredDecoder(model).upscaler
    _export(upscaler, tuple(inputs.values()), varying, folder / "upscaler.xml")


def load(folder: Path, threads: int) -> tuple[Network, Network]:
    """The encoder and the upscaling that `export` wrote: tensors in, a tensor out.

    Both may be called from several threads at once.

    Args:
        threads: of the processor, which the encoder uses all for one image; the upscaling
            uses the one that calls it.

    Raises:
        ImportError: OpenVINO is not there for this machine.
        RuntimeError: it cannot run the files.
    """
    core = _openvino().Core()
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    # Not pinned to cores: the other lane's worker is on the same ones.
    with_all = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    # No stream of its own: it runs in the thread that calls, where the data is.
    by_caller = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 0}
    encoder = core.compile_model(folder / "encoder.xml", "CPU", exactly | with_all)
    # One for each thread: calls of one that has no stream of its own wait for each other.
    upscalers = [
        core.compile_model(folder / "upscaler.xml", "CPU", exactly | by_caller)
        for _ in range(threads)
    ]
    return _callable([encoder]), _callable(upscalers)


def _export(module: nn.Module, inputs: tuple[torch.Tensor, ...], varying: Any, path: Path) -> None:
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = torch.export.export(module, inputs, dynamic_shapes=varying)
    # It complains of operations that it knows and this version of PyTorch has dropped.
    logging.getLogger().addFilter(_is_not_about_decompositions)
    try:
        # Kept in a name because nothing in the frontend holds on to it.
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    finally:
        logging.getLogger().removeFilter(_is_not_about_decompositions)
    frontend = FrontEndManager().load_by_framework("pytorch")
    openvino.save_model(frontend.convert(frontend.load(decoder)), path, compress_to_fp16=False)


def _callable(compiled: list[Any]) -> Network:
    """What runs on whichever of these, all the same network, is free."""
    free: queue.LifoQueue[Any] = queue.LifoQueue()
    for network in compiled:
        # OpenVINO fills its table of types when it is first asked for one. Two threads that both
        # come first wait for each other for ever, one for the table and one for the interpreter.
        network.inputs[0].get_element_type().to_dtype()
        free.put(network.create_infer_request())

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        arrays = [tensor.numpy() for tensor in inputs]
        request = free.get()
        try:
            return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])
        finally:
            free.put(request)

    return run


def _openvino() -> Any:
    # The package reports every import to its maker, over the internet, unless its
    # reporting package is missing. A server does not do that on its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _is_not_about_decompositions(record: logging.LogRecord) -> bool:
    return "not found in decomp table" not in record.getMessage()
