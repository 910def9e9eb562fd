"""Objects is the list of objects that `segment` and `automask` return."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from . import drawing, files
from .frame import Frame
from .segmented import SegmentedObject

if TYPE_CHECKING:
    import geopandas
    from PIL.Image import Image

    StrPath = str | os.PathLike[str]

NOTEBOOK_PIXELS = 800
"""The long side of the picture that a notebook shows."""


class Objects(Sequence[SegmentedObject]):
    """The objects in one picture. It is a sequence: index it, slice it, loop over it.

    Args:
        objects: the objects.
        frame: the picture that they lie in.
    """

    def __init__(self, objects: Iterable[SegmentedObject], frame: Frame) -> None:
        self._objects = list(objects)
        self.frame = frame

    def __len__(self) -> int:
        return len(self._objects)

    @overload
    def __getitem__(self, index: int) -> SegmentedObject: ...

    @overload
    def __getitem__(self, index: slice) -> Objects: ...

    def __getitem__(self, index: int | slice) -> SegmentedObject | Objects:
        if isinstance(index, slice):
            return Objects(self._objects[index], self.frame)
        return self._objects[index]

    def where(self, keep: Callable[[SegmentedObject], object]) -> Objects:
        """Return the objects for which the function returns true.

        `cells.where(lambda cell: cell.area > 100)`
        """
        return Objects((found for found in self if keep(found)), self.frame)

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The objects as a GeoJSON FeatureCollection in pixels. An object without pixels is not
        in it."""
        features = [found.__geo_interface__ for found in self if found.area]
        for index, feature in enumerate(features):
            feature["properties"] = {"object_idx": index, **feature["properties"]}
        return {"type": "FeatureCollection", "features": features}

    def to_geojson(
        self, path: StrPath | None = None, *, georeferenced: bool = False
    ) -> dict[str, Any]:
        """Return the objects as a GeoJSON FeatureCollection, and write it to `path`.

        Args:
            georeferenced: False: coordinates are pixels of the picture, y points down. True:
                longitude and latitude, as RFC 7946 wants.

        Raises:
            ValueError: the picture does not say where on the earth it lies.
        """
        collection = self.__geo_interface__
        if georeferenced:
            self._on_earth()
            table = self.to_geodataframe().to_crs(4326)
            for feature, geometry in zip(collection["features"], table.geometry, strict=True):
                feature["geometry"] = geometry.__geo_interface__
        if path is not None:
            files.write(path, orjson.dumps(collection, option=orjson.OPT_SERIALIZE_NUMPY))
        return collection

    def labels(self, path: StrPath | None = None) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return the label image, H×W, and write it to `path` as PNG or TIFF.

        Object i has the value i + 1 and the background 0. Where objects overlap, the smaller one
        lies on top. The type is uint16, or uint32 if there are more than 65,535 objects.
        """
        labels = drawing.labels(self._objects, self.frame.size)
        if path is not None:
            with files.written(path) as part:
                drawing.label_image(labels).save(part, drawing.label_format(labels, path))
        return labels

    def overlay(self, path: StrPath | None = None) -> Image:
        """Return the picture with the objects drawn on it, each in a colour of its own.

        Args:
            path: a file to write; its ending chooses the format.

        Raises:
            InvalidImage: the pixels cannot be decoded here.
        """
        image = drawing.overlay(self._objects, self.frame)
        if path is not None:
            with files.written(path) as part:
                image.save(part)
        return image

    def to_coco(self, path: StrPath | None = None) -> dict[str, Any]:
        """Return the objects as a COCO data set with one image, and write it to `path` as JSON.

        The masks are run lengths, which keep holes. The categories are the objects' names.
        """
        from .coco import data_set  # pycocotools is imported only where it is needed

        found = data_set([found for found in self if found.area], self.frame)
        if path is not None:
            files.write(path, orjson.dumps(found))
        return found

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """Return the objects as a table of geopandas, one row each.

        For a GeoTIFF, the geometries are in its coordinate system. For other pictures they are in
        pixels, y points down, and there is no coordinate system.

        Raises:
            ImportError: geopandas is not installed.
        """
        try:
            import geopandas
        except ModuleNotFoundError as exc:
            raise ImportError(
                "to_geodataframe needs geopandas: pip install 'samserve[geo]'"
            ) from exc
        where = self.frame.georeference
        found = [found for found in self if found.area]
        polygons = [o.polygon if where is None else where.moved(o.polygon) for o in found]
        rows = [{"name": o.name, "quality": o.quality, **_flat(o)} for o in found]
        crs = None if where is None else where.epsg
        columns = None if rows else ["name", "quality", "area"]
        return geopandas.GeoDataFrame(rows, columns=columns, geometry=polygons, crs=crs)

    def to_geopackage(self, path: StrPath) -> None:
        """Write the objects to a GeoPackage, georeferenced if the picture is; see
        `to_geodataframe`."""
        table = self.to_geodataframe()
        with files.written(path) as part:
            table.to_file(part, driver="GPKG", layer="objects")

    def _on_earth(self) -> None:
        where = self.frame.georeference
        if where is None:
            raise ValueError(
                f"{self.frame.name or 'The picture'} is not georeferenced: it has no GeoTIFF tags."
            )
        if where.epsg is None:
            raise ValueError(
                f"The coordinate system of {self.frame.name or 'the picture'} has no EPSG code, so "
                "longitudes and latitudes are not known."
            )

    def _repr_png_(self) -> bytes | None:
        image = self.overlay()
        image.thumbnail((NOTEBOOK_PIXELS, NOTEBOOK_PIXELS))
        png = io.BytesIO()
        image.save(png, "PNG")
        return png.getvalue()

    def __repr__(self) -> str:
        name = f" in {self.frame.name}" if self.frame.name else ""
        return f"<{len(self)} object{'' if len(self) == 1 else 's'}{name}>"


def _flat(found: SegmentedObject) -> dict[str, Any]:
    """Return what describes an object, without lists: they fit into no column of a table."""
    numbers = {k: v for k, v in found.properties.items() if isinstance(v, int | float | str)}
    return {**numbers, "area": found.area}
