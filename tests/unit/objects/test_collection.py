"""Objects export themselves: as GeoJSON, labels, COCO, a table, and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco

from samserve.boxes import Box
from samserve.masks.polygons import mask_to_geometry
from samserve.objects import drawing
from samserve.objects.collection import Objects
from samserve.objects.frame import Frame
from samserve.objects.georeference import Georeference
from samserve.objects.segmented import SegmentedObject

H, W = 40, 60
PIXELS = np.full((H, W, 3), 100, np.uint8)
FRAME = Frame((H, W), lambda: PIXELS, "cells.png")
UTM = Georeference((2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0), 32632)


def thing(x0: int, y0: int, x1: int, y1: int, frame: Frame = FRAME, **more: Any) -> SegmentedObject:
    """Return a rectangle, made of an outline as the client makes it."""
    outline = mask_to_geometry(np.ones((y1 - y0, x1 - x0), np.bool_), (x0, y0))
    properties = {"label": "object", "quality": 0.9, "sam_model": "vit_t", **more}
    return SegmentedObject.from_outline(frame, {"geometry": outline, "properties": properties})


def ring() -> SegmentedObject:
    """Return an object with a hole, made of pixels as the library makes it."""
    mask = np.ones((10, 12), np.bool_)
    mask[3:6, 4:9] = False
    return SegmentedObject.from_mask(FRAME, 0.8, {}, mask, Box(5, 20, 17, 30))


@pytest.fixture
def objects() -> Objects:
    return Objects([thing(2, 3, 22, 13), thing(10, 5, 30, 30), ring()], FRAME)


def test_an_object_of_an_outline_and_one_of_pixels_are_the_same() -> None:
    pixels = ring()
    outline = SegmentedObject.from_outline(FRAME, pixels.__geo_interface__)
    assert (outline.area, outline.box, outline.quality) == (105, pixels.box, 0.8)
    assert pixels.area == 105
    assert np.array_equal(outline.mask, pixels.mask)
    assert np.array_equal(outline.full(), pixels.full())
    assert outline.polygon.equals(pixels.polygon)
    assert outline.polygon.area == 105
    assert shapely.geometry.shape(outline.__geo_interface__["geometry"]).equals(outline.polygon)
    assert "105 pixels" in repr(outline)


def test_nothing_is_an_object_without_pixels() -> None:
    empty = SegmentedObject.nothing(FRAME, {"prompt_idx": 2})
    assert (empty.area, empty.quality, empty.prompt_idx) == (0, 0.0, 2)
    assert empty.polygon.is_empty
    assert not empty.full().any()
    both = Objects([empty, thing(1, 1, 3, 3)], FRAME)
    assert len(both.to_geojson()["features"]) == 1
    assert len(both.to_coco()["annotations"]) == 1
    assert len(both.to_geodataframe()) == 1
    assert both.labels().max() == 2  # an object's label is its place in the list
    assert empty._repr_png_()


def test_it_is_a_sequence(objects: Objects) -> None:
    assert len(objects) == len(list(objects)) == 3
    assert objects[-1] is objects[2]
    assert isinstance(objects[:2], Objects)
    assert len(objects[:2]) == 2
    assert objects[:2].labels().shape == (H, W)
    assert [o.area for o in objects.where(lambda o: o.area > 150)] == [200, 500]
    with pytest.raises(IndexError):
        _ = objects[3]
    assert repr(objects) == "<3 objects in cells.png>"
    assert repr(objects[:1]) == "<1 object in cells.png>"


def test_the_smaller_object_lies_on_top_in_labels(objects: Objects, tmp_path: Path) -> None:
    labels = objects.labels(tmp_path / "l.png")
    assert labels.dtype == np.uint16
    assert labels[8, 15] == 1  # 200 pixels, over 500
    assert labels[25, 20] == 2
    assert labels[22, 12] == 3  # 105 pixels, over 500
    assert labels[24, 10] == 2  # the hole of the third
    assert labels[0, 0] == 0
    assert [(labels == value).sum() for value in (1, 3)] == [200, 105]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "l.png")), labels)
    objects.labels(tmp_path / "l.tif")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "l.tif")), labels)


def test_many_labels_take_32_bits(tmp_path: Path) -> None:
    one = thing(1, 1, 2, 2)
    many = Objects([one] * 65_536, FRAME)
    labels = many.labels(tmp_path / "l.tif")
    assert labels.dtype == np.uint32
    assert labels.max() == 65_536  # of equal objects, the last one lies on top
    assert np.asarray(Image.open(tmp_path / "l.tif")).max() == 65_536
    with pytest.raises(ValueError, match="65,535"):
        many.labels(tmp_path / "l.png")
    with pytest.raises(ValueError, match=r"\.jpg would lose"):
        many[:3].labels(tmp_path / "l.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["l.tif"]


def test_geojson(objects: Objects, tmp_path: Path) -> None:
    collection = objects.to_geojson(tmp_path / "new" / "o.geojson")
    assert json.loads((tmp_path / "new" / "o.geojson").read_text()) == json.loads(
        json.dumps(collection)
    )
    assert collection == objects.__geo_interface__
    first = collection["features"][0]["properties"]
    assert first == {"object_idx": 0, "label": "object", "quality": 0.9, "sam_model": "vit_t"}
    table = geopandas.read_file(tmp_path / "new" / "o.geojson")
    pixels = table.geometry.set_crs(None, allow_override=True)
    assert pixels.area.tolist() == [200, 500, 105]


def test_coco(objects: Objects, tmp_path: Path) -> None:
    objects[1].name = "nucleus"
    found = objects.to_coco(tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text()) == found
    [image] = found["images"]
    assert (image["height"], image["width"], image["file_name"]) == (H, W, "cells.png")
    assert [c["name"] for c in found["categories"]] == ["nucleus", "object"]
    for annotation, wanted in zip(found["annotations"], objects, strict=True):
        assert np.array_equal(coco.decode(annotation["segmentation"]).astype(bool), wanted.full())
        assert annotation["area"] == wanted.area
        assert coco.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
    assert [a["category_id"] for a in found["annotations"]] == [2, 1, 2]


def test_a_table_in_pixels(objects: Objects) -> None:
    table = objects.to_geodataframe()
    assert table.crs is None
    assert table["area"].tolist() == table.geometry.area.tolist() == [200, 500, 105]
    assert table["quality"].tolist() == [0.9, 0.9, 0.8]
    nothing = Objects([], FRAME).to_geodataframe()
    assert len(nothing) == 0
    assert {"name", "quality", "area", "geometry"} <= set(nothing.columns)


def test_a_table_on_the_earth(tmp_path: Path) -> None:
    frame = Frame((H, W), lambda: PIXELS, "map.tif", 0, UTM)
    objects = Objects([thing(2, 3, 22, 13, frame)], frame)
    table = objects.to_geodataframe()
    assert table.crs.to_epsg() == 32632
    assert table.total_bounds.tolist() == [500_004, 4_999_974, 500_044, 4_999_994]
    objects.to_geopackage(tmp_path / "o.gpkg")
    written = geopandas.read_file(tmp_path / "o.gpkg")
    assert written.crs == table.crs
    assert written.total_bounds.tolist() == table.total_bounds.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["o.gpkg"]
    collection = objects.to_geojson(georeferenced=True)
    (x, y), *_ = collection["features"][0]["geometry"]["coordinates"][0]
    assert (x, y) == (pytest.approx(9, abs=0.01), pytest.approx(45.15, abs=0.05))
    assert objects.to_geojson()["features"][0]["geometry"]["coordinates"][0][0] == (
        pytest.approx([2, 3])
    )


@pytest.mark.parametrize(
    ("where", "words"),
    [(None, "not georeferenced"), (Georeference(UTM.affine, None), "no EPSG code")],
)
def test_a_picture_that_does_not_say_where_it_lies(where: Georeference | None, words: str) -> None:
    frame = Frame((H, W), lambda: PIXELS, "map.tif", 0, where)
    with pytest.raises(ValueError, match=words):
        Objects([thing(2, 3, 22, 13, frame)], frame).to_geojson(georeferenced=True)


def test_an_overlay_colours_the_objects_and_nothing_else(objects: Objects, tmp_path: Path) -> None:
    drawn = np.asarray(objects.overlay(tmp_path / "o.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), drawn)
    labels = objects.labels()
    assert np.array_equal((drawn != PIXELS).any(axis=2), labels > 0)
    inside = {tuple(drawn[row, column]) for row, column in ((8, 15), (25, 25), (22, 11))}
    assert len(inside) == 3
    assert (PIXELS == 100).all()  # the picture itself is not drawn on
    png = objects._repr_png_()
    assert png
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("start", [0, 1, 7])
def test_the_rows_of_an_overlay_are_drawn_in_parts(
    start: int, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.asarray(objects.overlay())
    monkeypatch.setattr(drawing, "_ROWS", start + 1)
    assert np.array_equal(np.asarray(objects.overlay()), whole)


def test_a_file_that_cannot_be_written_leaves_the_old_one(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "o.xyz"
    path.write_text("old")
    with pytest.raises(ValueError, match="extension"):
        objects.overlay(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["o.xyz"]
