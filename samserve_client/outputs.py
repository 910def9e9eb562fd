"""The files that are written about the objects of a picture, by the names of their formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from samserve.objects.collection import Objects


@dataclass(frozen=True)
class Output:
    """One format of files.

    Attributes:
        ending: the end of the file's name, behind the picture's.
        meaning: what is in the file, for `--help`.
        write: writes the objects to a path, completely or not at all.
    """

    ending: str
    meaning: str
    write: Callable[[Objects, Path], object]


OUTPUTS = {
    "geojson": Output(".geojson", "outlines in pixels", lambda found, path: found.to_geojson(path)),
    "labels": Output(
        ".labels.png",
        "label image of 16 bits: object i has the value i, the background 0",
        lambda found, path: found.labels(path),
    ),
    "overlay": Output(
        ".overlay.png",
        "the picture, the objects in colours",
        lambda found, path: found.overlay(path),
    ),
    "coco": Output(
        ".coco.json", "COCO data set, masks as run lengths", lambda found, path: found.to_coco(path)
    ),
    "gpkg": Output(
        ".gpkg",
        "GeoPackage for QGIS, georeferenced if the picture is; needs geopandas",
        lambda found, path: found.to_geopackage(path),
    ),
}
"""Format -> what it writes. A new format is a new line here."""

GEOREFERENCED = Output(
    ".geojson",
    "outlines in longitude and latitude",
    lambda found, path: found.to_geojson(path, georeferenced=True),
)
"""In place of `geojson`, where longitudes and latitudes are asked for."""

_FORMAT_OF_ENDING = {
    ".labels.png": "labels",
    ".coco.json": "coco",
    ".geojson": "geojson",
    ".json": "geojson",
    ".png": "overlay",
    ".jpg": "overlay",
    ".jpeg": "overlay",
    ".tif": "labels",
    ".tiff": "labels",
    ".gpkg": "gpkg",
}
"""The format of a file that is named by its user, if the user does not say it."""


def format_of(path: Path) -> str | None:
    """Return the format that the ending of a file's name stands for; None for a folder."""
    name = path.name.lower()
    endings = (ending for ending in _FORMAT_OF_ENDING if name.endswith(ending))
    ending = next(endings, None)
    return None if ending is None or path.is_dir() else _FORMAT_OF_ENDING[ending]


def is_output(path: Path) -> bool:
    """Return whether this is an image that was written about another picture."""
    images = (output.ending for output in OUTPUTS.values() if output.ending.endswith(".png"))
    return path.name.lower().endswith(tuple(images))


def chosen_outputs(names: Sequence[str], *, georeferenced: bool) -> dict[str, Output]:
    """Return the formats with these names.

    Raises:
        ValueError: there is no such format, or it needs a package that is not installed.
    """
    if not names:
        raise ValueError(f"-f names no format; there are {', '.join(OUTPUTS)}")
    chosen = {}
    for name in dict.fromkeys(names):
        if name not in OUTPUTS:
            raise ValueError(f"there is no format {name!r}; there are {', '.join(OUTPUTS)}")
        needs_geo = name == "gpkg" or (name == "geojson" and georeferenced)
        if needs_geo and find_spec("geopandas") is None:
            raise ValueError(f"{name} needs geopandas: pip install 'samserve[geo]'")
        chosen[name] = GEOREFERENCED if name == "geojson" and georeferenced else OUTPUTS[name]
    return chosen
