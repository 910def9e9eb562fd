"""A Georeference says where on the earth the pixels of a GeoTIFF lie.

It is read from the tags of OGC's GeoTIFF 1.1: ModelPixelScale with ModelTiepoint, or
ModelTransformation, and the EPSG code in the GeoKeyDirectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samserve.pictures.tiff_directory import Directory

_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS = 33550, 33922, 34264, 34735
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_PIXEL_IS_POINT = 2
_USER_DEFINED = 32767


@dataclass(frozen=True)
class Georeference:
    """The affine map from pixels to a coordinate system of the earth.

    Attributes:
        affine: (a, b, c, d, e, f), for which X = a·x + b·y + c and Y = d·x + e·y + f. (x, y) is a
            corner of pixels: (0, 0) is the top-left corner of the first pixel.
        epsg: the EPSG code of the coordinate system; None if the file names another one.
    """

    affine: tuple[float, float, float, float, float, float]
    epsg: int | None

    def moved(self, geometry: Any) -> Any:
        """Return a shapely geometry in pixels in the coordinate system of the earth."""
        from shapely.affinity import affine_transform

        a, b, c, d, e, f = self.affine
        return affine_transform(geometry, (a, b, d, e, c, f))


def georeference_of(tags: Directory) -> Georeference | None:
    """Return where the pixels of this page of a TIFF lie; None if its tags do not say."""
    affine = _affine(tags)
    if affine is None:
        return None
    keys = _geo_keys(tags)
    if keys.get(_RASTER_TYPE) == _PIXEL_IS_POINT:
        # The tags then say where the centre of the first pixel lies.
        a, b, c, d, e, f = affine
        affine = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    code = keys.get(_PROJECTED) or keys.get(_GEOGRAPHIC)
    return Georeference(affine, None if code in (None, 0, _USER_DEFINED) else code)


def _affine(tags: Directory) -> tuple[float, float, float, float, float, float] | None:
    matrix = tags.doubles(_TRANSFORMATION)
    if matrix is not None and len(matrix) == 16:
        return matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    scale, tie = tags.doubles(_PIXEL_SCALE), tags.doubles(_TIEPOINT)
    if scale is None or tie is None or len(scale) < 2 or len(tie) < 6:
        return None
    return scale[0], 0.0, tie[3] - tie[0] * scale[0], 0.0, -scale[1], tie[4] + tie[1] * scale[1]


def _geo_keys(tags: Directory) -> dict[int, int]:
    """Return the keys whose value is a short integer in the directory itself."""
    values = tags.integers(_KEYS, 2**16) or ()
    entries = [values[start : start + 4] for start in range(4, len(values) - 3, 4)]
    return {key: value for key, location, count, value in entries if location == 0 and count == 1}
