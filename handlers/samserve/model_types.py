"""This module lists the model types with the published file of each.

It imports nothing heavy: the gateway and the download need the names, not the networks.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

COMPILED_FILES = ("encoder.xml", "encoder.bin", "upscaler.xml", "upscaler.bin")
"""What `compiled.export` leaves, and an archive carries."""

MADE_FROM_WEIGHTS = ("compiled", "float32", "bfloat16", "float16")
"""Ends of the names of folders that an archive's making leaves beside the weights' file."""

Precision = Literal["float32", "bfloat16", "float16"]
"""What the image encoder computes in, by PyTorch's names."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ModelType:
    """One of SAM's networks, and the file its authors published for it."""

    name: str
    filename: str
    url: str
    n_bytes: int
    sha256: str


_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/"
_SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM_2_1 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"

MODEL_TYPES: dict[str, ModelType] = {
    model_type.name: model_type
    for model_type in (
        ModelType(
            name="vit_t",
            filename="mobile_sam.pt",
            url=_MOBILE_SAM + "mobile_sam.pt",
            n_bytes=40_728_226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        ModelType(
            name="vit_b",
            filename="sam_vit_b_01ec64.pth",
            url=_SEGMENT_ANYTHING + "sam_vit_b_01ec64.pth",
            n_bytes=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        ModelType(
            name="vit_l",
            filename="sam_vit_l_0b3195.pth",
            url=_SEGMENT_ANYTHING + "sam_vit_l_0b3195.pth",
            n_bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        ModelType(
            name="vit_h",
            filename="sam_vit_h_4b8939.pth",
            url=_SEGMENT_ANYTHING + "sam_vit_h_4b8939.pth",
            n_bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        ModelType(
            name="sam2_t",
            filename="sam2.1_hiera_tiny.pt",
            url=_SAM_2_1 + "sam2.1_hiera_tiny.pt",
            n_bytes=156_008_466,
            sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        ),
        ModelType(
            name="sam2_s",
            filename="sam2.1_hiera_small.pt",
            url=_SAM_2_1 + "sam2.1_hiera_small.pt",
            n_bytes=184_416_285,
            sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        ),
        ModelType(
            name="sam2_bp",
            filename="sam2.1_hiera_base_plus.pt",
            url=_SAM_2_1 + "sam2.1_hiera_base_plus.pt",
            n_bytes=323_606_802,
            sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        ),
        ModelType(
            name="sam2_l",
            filename="sam2.1_hiera_large.pt",
            url=_SAM_2_1 + "sam2.1_hiera_large.pt",
            n_bytes=898_083_611,
            sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        ),
    )
}


DEFAULT_WEIGHTS = "default"
"""The name of a model type's published weights."""

UNSUPPORTED_TYPES = ("sam3",)
"""Model types that samapi's clients offer and this server lacks."""

KNOWN_TYPES = (*MODEL_TYPES, *UNSUPPORTED_TYPES)
"""All types that samapi's clients offer."""

_MASTER = "(?:master|HEAD|refs/heads/master|f706ad9c4eb7f219c00d9050e46328518ffb65d2)"
_META = r"dl\.fbaipublicfiles\.com"

_DEFAULT_ADDRESSES: dict[str, re.Pattern[str]] = {
    model_type: re.compile(rf"https?://(?:{address})(?:[?#]\S*)?", re.IGNORECASE)
    for model_type, address in {
        "vit_t": r"(?:(?:www\.)?github\.com/ChaoningZhang/MobileSAM/(?:raw|blob)"
        rf"|raw\.githubusercontent\.com/ChaoningZhang/MobileSAM)/{_MASTER}/weights/mobile_sam\.pt",
        **{
            name: _META + "/segment_anything/" + re.escape(MODEL_TYPES[name].filename)
            for name in ("vit_b", "vit_l", "vit_h")
        },
        # SAM 2.0's files are other weights, and can be registered.
        **{
            name: _META + "/segment_anything_2/092824/" + re.escape(MODEL_TYPES[name].filename)
            for name in ("sam2_t", "sam2_s", "sam2_bp", "sam2_l")
        },
    }.items()
}


NOT_LOADED = "not-loaded:"
"""With a model type behind it, the address of the entry that says that the type is not loaded."""


def is_default_address(model_type: str, address: str) -> bool:
    """Return whether this address stands for the type's own weights.

    Scripts and QuPath's workflows that were recorded with samapi name, in `checkpoint_url`, the
    address where samapi downloads the type's weights. All spellings count that lead to that file.

    QuPath keeps its list of weights while the server restarts. So the address of the entry that
    said "not loaded" stands for the type's weights as soon as the type is loaded.
    """
    if address == NOT_LOADED + model_type:
        return True
    pattern = _DEFAULT_ADDRESSES.get(model_type)
    return pattern is not None and pattern.fullmatch(address.strip()) is not None


def is_mappable(weights: Path) -> bool:
    """Return whether a checkpoint can be memory-mapped: files from before PyTorch 1.6 cannot."""
    return zipfile.is_zipfile(weights)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex. The file is read in pieces, because vit_h has 2.5 GB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
