"""The encoder for a CPU: taken out of PyTorch once, run by OpenVINO ever after.

`export` is for building an archive; `load` is for a worker. In float32 throughout: on
processors that have faster, coarser numbers, OpenVINO would otherwise use them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .encoder import fold_batch_norms
from .reference import Sam


@torch.no_grad()
def export(model: Sam, path: Path) -> None:
    """Write the encoder to `path`, an .xml, and its weights beside it, a .bin."""
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    side = model.image_encoder.img_size
    program = torch.export.export(
        fold_batch_norms(model.image_encoder), (torch.zeros(1, 3, side, side),)
    )
    # It complains of operations that it knows and this version of PyTorch has dropped.
    logging.getLogger().addFilter(_is_not_about_decompositions)
    try:
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    finally:
        logging.getLogger().removeFilter(_is_not_about_decompositions)
    # `decoder` is kept in a name because nothing in the frontend holds on to it.
    frontend = FrontEndManager().load_by_framework("pytorch")
    openvino.save_model(frontend.convert(frontend.load(decoder)), path, compress_to_fp16=False)


def load(path: Path, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network that `export` wrote: 1×3×1024×1024 pixels -> 1×256×64×64 features.

    Args:
        threads: of the processor, used for one image.

    Raises:
        ImportError: OpenVINO is not there for this machine.
        RuntimeError: it cannot run the file.
    """
    compiled = (
        _openvino()
        .Core()
        .compile_model(
            path,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
                # The other lane's worker is on the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
    )
    request = compiled.create_infer_request()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        features = request.infer([pixels.numpy()], share_inputs=True)[0]
        return torch.from_numpy(features)

    return run


def _openvino() -> Any:
    # The package reports every import to its maker, over the internet, unless its
    # reporting package is missing. A server does not do that on its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _is_not_about_decompositions(record: logging.LogRecord) -> bool:
    return "not found in decomp table" not in record.getMessage()
