"""Pictures come from paths, URLs, bytes, PIL images and arrays."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from samserve.errors import InvalidField, InvalidImage, Unreachable
from samserve.pictures.decoding import decode_image
from samserve.pictures.sources import PictureFile, read_source, whole_number
from tests.support.scientific_tiffs import COLOUR, FLOAT, LIMIT, WIDE, H, W, written
from tests.support.scripted_server import Reply, scripted

GREY = COLOUR[:, :, 0]


def encoded(pixels: NDArray[Any], kind: str, **how: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind, **how)
    return stream.getvalue()


def pixels_of(file: PictureFile) -> NDArray[np.uint8]:
    return decode_image(file.content, LIMIT, page=file.page)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_the_header_of_each_kind_says_the_size(kind: str) -> None:
    file = read_source(encoded(COLOUR, kind))
    assert (file.size, file.page, file.pages, file.name) == ((H, W), 0, 1, "")
    assert (file.tags is not None) == (kind == "TIFF")


def test_a_path_and_a_url_have_a_name(tmp_path: Path) -> None:
    png = encoded(COLOUR, "PNG")
    (tmp_path / "cells.png").write_bytes(png)
    assert read_source(tmp_path / "cells.png").name == "cells.png"
    assert read_source(str(tmp_path / "cells.png")).content == png
    assert read_source(Image.open(tmp_path / "cells.png")).name == "cells.png"
    with scripted(Reply(200, png), Reply(404), Reply(200, png, breaks=True)) as server:
        file = read_source(f"{server.url}/a/cells.png?token=secret")
        assert (file.content, file.name) == (png, "cells.png")
        with pytest.raises(Unreachable, match="answers 404"):
            read_source(f"{server.url}/a/cells.png")
        with pytest.raises(Unreachable, match="cannot be fetched") as raised:
            read_source(f"{server.url}/a/cells.png?token=secret")
        assert "secret" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        read_source("nowhere.png")


@pytest.mark.parametrize(
    ("array", "file"),
    [
        pytest.param(COLOUR, encoded(COLOUR, "PNG"), id="RGB"),
        pytest.param(GREY, encoded(GREY, "PNG"), id="grey"),
        pytest.param(GREY[:, :, None], encoded(GREY, "PNG"), id="one channel"),
        pytest.param(WIDE, written(WIDE), id="16 bits"),
        pytest.param(WIDE.astype(">u2"), written(WIDE), id="the other byte order"),
        pytest.param(WIDE.astype(np.int64), written(WIDE), id="64 bits"),
        pytest.param(FLOAT, written(FLOAT), id="floats"),
        pytest.param(
            np.where(GREY > 100, np.nan, FLOAT).astype(np.float32),
            written(np.where(GREY > 100, np.nan, FLOAT).astype(np.float32)),
            id="NaN",
        ),
        pytest.param(
            COLOUR.astype(np.uint16) * 9,
            written(COLOUR.astype(np.uint16) * 9, photometric="rgb"),
            id="RGB with 16 bits",
        ),
        pytest.param(GREY > 90, encoded((GREY > 90).astype(np.uint8) * 255, "PNG"), id="bool"),
        pytest.param(np.dstack([COLOUR, GREY]), encoded(COLOUR, "PNG"), id="RGBA"),
    ],
)
def test_an_array_has_the_pixels_that_a_file_of_it_has(array: NDArray[Any], file: bytes) -> None:
    found = read_source(array)
    assert found.size == (H, W)
    assert np.array_equal(pixels_of(found), decode_image(file, LIMIT))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "F"])
def test_pil_images_of_many_modes(mode: str) -> None:
    image = Image.fromarray(WIDE) if mode in ("I;16", "F") else Image.fromarray(COLOUR)
    file = read_source(image.convert(mode))
    assert pixels_of(file).shape == (H, W, 3)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(pixels_of(file), COLOUR)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 5)),
        np.zeros(7),
        np.zeros((0, 5), np.uint8),
        np.zeros((4, 5), complex),
        np.array([["a"]]),
        np.full((4, 5, 3), -1.0),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_that_are_no_picture(array: NDArray[Any]) -> None:
    with pytest.raises(InvalidImage):
        read_source(array)


@pytest.mark.parametrize("source", [3, None, [1, 2], {"path": "cells.png"}], ids=str)
def test_sources_of_another_type(source: Any) -> None:
    with pytest.raises(TypeError, match="picture must be a path"):
        read_source(source)


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff", b"BM"],
    ids=repr,
)
def test_bytes_that_are_no_picture(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidImage):
        read_source(content)
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InvalidImage, match=r"^bad\.png"):
        read_source(tmp_path / "bad.png")


STACKS = {
    "directories": written(np.stack([GREY] * 3)),
    "ImageJ": written(np.stack([WIDE] * 3), imagej=True, photometric=None),
    "truncated": written(np.stack([WIDE] * 3), truncate=True),
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_a_stack_needs_a_page(stack: bytes) -> None:
    with pytest.raises(
        InvalidField, match="3 pages: choose one of them with page=0 to page=2"
    ) as e:
        read_source(stack)
    assert e.value.field == "page"
    for page in (0, 2, np.int64(2)):
        file = read_source(stack, page)  # type: ignore[arg-type]
        assert (file.page, file.pages, file.size) == (page, 3, (H, W))
    with pytest.raises(
        InvalidField, match="page 3 does not exist: the picture has 3 pages, 0 to 2"
    ):
        read_source(stack, 3)


def test_the_overviews_of_a_picture_are_no_pages_of_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)
        writer.write(GREY > 9, photometric="mask", subfiletype=4)
    file = read_source(path)
    assert (file.page, file.pages, file.size) == (0, 3, (H, W))
    assert read_source(path, 1).size == (H // 2, W // 2)


@pytest.mark.parametrize("page", [-1, 1.0, True, "1"], ids=repr)
def test_pages_that_are_no_numbers(page: Any) -> None:
    with pytest.raises(InvalidField, match="page must be an integer"):
        read_source(STACKS["directories"], page)


def test_a_picture_with_one_page_has_no_second() -> None:
    with pytest.raises(InvalidField, match=r"page 1 does not exist: the picture has 1 page\."):
        read_source(encoded(GREY, "PNG"), 1)


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_whole_numbers_of_numpy_are_taken(number: Any) -> None:
    assert type(whole_number(number, "page")) is int
