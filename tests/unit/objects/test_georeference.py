"""Where the pixels of a GeoTIFF lie, against GDAL's rules in tifffile's tags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samserve.objects.georeference import Georeference, georeference_of
from samserve.pictures.sources import read_source
from tests.support.scientific_tiffs import written

PIXELS = np.zeros((4, 5), np.uint8)
SCALE = (33550, "d", 3, (2.0, 3.0, 0.0))
TIE = (33922, "d", 6, (0.0, 0.0, 0.0, 500.0, 900.0, 0.0))


def keys(*entries: int) -> tuple[Any, ...]:
    values: tuple[int, ...] = (1, 1, 0, len(entries) // 2)
    for key, value in zip(entries[::2], entries[1::2], strict=True):
        values += (key, 0, 1, value)
    return (34735, "H", len(values), values)


def of_tags(*tags: tuple[Any, ...], **how: Any) -> Georeference | None:
    data = written(PIXELS, extratags=[(*tag, True) for tag in tags], **how)
    found = read_source(data).tags
    assert found is not None
    return georeference_of(found)


@pytest.mark.parametrize("how", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=str)
def test_scale_and_tiepoint(how: dict[str, Any]) -> None:
    found = of_tags(SCALE, TIE, keys(1025, 1, 3072, 32632), **how)
    assert found == Georeference((2, 0, 500, 0, -3, 900), 32632)


def test_a_tiepoint_elsewhere() -> None:
    tie = (33922, "d", 6, (10.0, 20.0, 0.0, 500.0, 900.0, 0.0))
    assert of_tags(SCALE, tie) == Georeference((2, 0, 480, 0, -3, 960), None)


def test_a_matrix_that_turns() -> None:
    matrix = (1.0, 2.0, 0.0, 3.0, 4.0, 5.0, 0.0, 6.0, *(0.0,) * 4, 0.0, 0.0, 0.0, 1.0)
    found = of_tags((34264, "d", 16, matrix), keys(2048, 4326))
    assert found == Georeference((1, 2, 3, 4, 5, 6), 4326)


def test_pixels_as_points_are_half_a_pixel_off() -> None:
    found = of_tags(SCALE, TIE, keys(1025, 2, 3072, 32632))
    assert found == Georeference((2, 0, 499, 0, -3, 901.5), 32632)


@pytest.mark.parametrize("code", [0, 32767])
def test_a_coordinate_system_without_a_code(code: int) -> None:
    assert of_tags(SCALE, TIE, keys(3072, code)) == Georeference((2, 0, 500, 0, -3, 900), None)


@pytest.mark.parametrize(
    "tags",
    [
        (),
        (SCALE,),
        (TIE,),
        ((33550, "d", 1, 2.0), TIE),
        ((33550, "H", 3, (1, 1, 0)), TIE),
        ((34264, "d", 4, (1.0, 0.0, 0.0, 1.0)),),
    ],
    ids=lambda tags: str([tag[0] for tag in tags]),
)
def test_incomplete_tags_say_nothing(tags: tuple[Any, ...]) -> None:
    assert of_tags(*tags) is None
