"""Segment Anything as a library: pictures and prompts in, masks and GeoJSON out.

    import samserve

    segmenter = samserve.load("vit_t")
    picture = segmenter.embed("cells.png")
    masks = segmenter.prompt(picture, box=(10, 20, 200, 180))
    features = samserve.to_geojson(masks)

At a server, without PyTorch here:

    picture = samserve.Client("http://127.0.0.1:8000").picture("cells.png")
    cell = picture.segment(box=(10, 20, 200, 180))

Importing `samserve` is fast: PyTorch is imported when `load` or another name that needs it is used
for the first time. The library knows nothing of TorchServe; `sam_handler.py` connects the two. Nor
does it know the client, the package `samserve_client`, whose names are here for users only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from samserve_client.aio import AsyncClient as AsyncClient
    from samserve_client.client import Client as Client

    from .answers.features import to_geojson as to_geojson
    from .boxes import Box as Box
    from .errors import SamserveError as SamserveError
    from .masks.mask import AutoMask as AutoMask
    from .masks.mask import ObjectMask as ObjectMask
    from .masks.mask import PromptMask as PromptMask
    from .objects.collection import Objects as Objects
    from .objects.interface import SegmentablePicture as SegmentablePicture
    from .objects.segmented import SegmentedObject as SegmentedObject
    from .parameters import AutomaskParameters as AutomaskParameters
    from .prompts import Prompt as Prompt
    from .segmenter import EmbeddedPicture as EmbeddedPicture
    from .segmenter import Segmenter as Segmenter
    from .segmenter import load as load

_MODULE_OF = {
    "AsyncClient": "samserve_client.aio",
    "AutoMask": ".masks.mask",
    "AutomaskParameters": ".parameters",
    "Box": ".boxes",
    "Client": "samserve_client.client",
    "EmbeddedPicture": ".segmenter",
    "ObjectMask": ".masks.mask",
    "Objects": ".objects.collection",
    "Prompt": ".prompts",
    "PromptMask": ".masks.mask",
    "SamserveError": ".errors",
    "SegmentablePicture": ".objects.interface",
    "SegmentedObject": ".objects.segmented",
    "Segmenter": ".segmenter",
    "load": ".segmenter",
    "to_geojson": ".answers.features",
}
"""Public name -> the module that defines it, imported when the name is first used (PEP 562)."""

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 (all of them are strings)


if not TYPE_CHECKING:  # a type checker would accept any name because of this function

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
