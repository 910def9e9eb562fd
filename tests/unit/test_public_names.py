"""The public names of the package: all of them exist, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import samserve


def test_the_public_names_are_these() -> None:
    assert sorted(samserve.__all__) == [
        "AsyncClient",
        "AutoMask",
        "AutomaskParameters",
        "Box",
        "Client",
        "EmbeddedPicture",
        "ObjectMask",
        "Objects",
        "Prompt",
        "PromptMask",
        "SamserveError",
        "SegmentablePicture",
        "SegmentedObject",
        "Segmenter",
        "__version__",
        "load",
        "to_geojson",
    ]


@pytest.mark.weights
@pytest.mark.parametrize("name", samserve.__all__)
def test_each_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(samserve, name)
    assert name in dir(samserve)
    assert name == "__version__" or value.__doc__


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'segment'"):
        _ = samserve.segment  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pydantic", "cv2", "PIL", "openvino", "requests")
    code = f"import sys, samserve; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_needs_nothing_heavy() -> None:
    heavy = ("torch", "cv2", "imagecodecs", "openvino", "mobile_sam", "fastapi", "geopandas")
    code = (
        "import sys, numpy, samserve\n"
        "picture = samserve.Client('http://127.0.0.1:9').picture(numpy.zeros((9, 9), 'uint8'))\n"
        "picture.frame.pixels(), samserve.AsyncClient, samserve.Objects\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
