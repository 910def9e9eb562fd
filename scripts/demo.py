"""Start a server, segment two pictures with it, and stop it: one box, and one automask.

    python -m scripts.demo

Writes the answers to out/demo/*.geojson, and draws each on its picture.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import sys
from typing import Any

import skimage.data
from PIL import Image, ImageChops, ImageDraw, ImageStat

from samserve import places
from samserve.weights.steps import step
from samserve_launcher import loopback
from samserve_launcher.errors import ServerError
from samserve_launcher.options import free_ports, parse_options
from samserve_launcher.server import running

OUT = places.state_folder() / "out" / "demo"
SCALE = 2  # of the overlays

# (name, path, picture, other fields): a gland in a stained section, and a tray of coins.
REQUESTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("ihc-box", "/sam/", "immunohistochemistry", {"bbox": [248, 303, 385, 510]}),
    (
        "coins-automask",
        "/sam/automask/",
        "coins",
        {"points_per_side": 16, "include_image_edge": False},  # without the background
    ),
]

COLORS = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
]  # fmt: skip


def main() -> int:
    """Return the exit status: 0, or 1 if the server could not start or refused a request."""
    options = free_ports(parse_options([]))
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            with step("server: starting on free ports"):
                stack.enter_context(running(options))
            for name, path, picture, fields in REQUESTS:
                image = Image.fromarray(getattr(skimage.data, picture)())
                with step(f"{name}: POST {path} {json.dumps(fields)}"):
                    answer = ask(f"{options.url}{path}", image, fields)
                features = json.loads(answer)
                (OUT / f"{name}.geojson").write_bytes(answer)
                draw(image, features, fields.get("bbox")).save(OUT / f"{name}.png")
                folder = OUT.relative_to(places.state_folder())
                print(f"{name}: {len(features)} object(s) in {folder}/{name}.geojson and .png")
            with step("server: stopping"):
                stack.close()
    except ServerError as error:
        print(f"samserve: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(options.run_dir)  # the logs are only needed after a failure
    print(f"Done. Look at {OUT.relative_to(places.state_folder())}/. Next: make serve")
    return 0


def ask(url: str, image: Image.Image, fields: dict[str, Any]) -> bytes:
    """Send a request about a picture and return the answer, a JSON array of Features.

    Raises:
        ServerError: the server refused; the message has its answer.
    """
    png = io.BytesIO()
    image.save(png, "PNG")
    body = {"type": "vit_t", "b64img": base64.b64encode(png.getvalue()).decode(), **fields}
    answer = loopback.post(url, timeout_s=1200, json=body)
    if answer.status_code != 200:
        raise ServerError(f"{url} answered {answer.status_code}: {answer.text}")
    return answer.content


def draw(
    image: Image.Image, features: list[dict[str, Any]], bbox: list[int] | None = None
) -> Image.Image:
    """Return the picture at `SCALE` times its size, with each object and the box drawn on it."""
    size = (image.width * SCALE, image.height * SCALE)
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    outlines = [_rings(feature["geometry"]) for feature in features]
    objects = [(rings, _inside(rings, size)) for rings in outlines]
    # Draw large objects first, so that smaller ones on them stay visible.
    objects.sort(key=lambda drawn: ImageStat.Stat(drawn[1]).sum[0], reverse=True)
    for index, (rings, inside) in enumerate(objects):
        color = COLORS[index % len(COLORS)]
        tinted = Image.blend(picture, Image.new("RGB", size, color), 0.45)
        picture.paste(tinted, mask=inside)
        for ring in rings:
            ImageDraw.Draw(picture).line(ring, fill=color, width=2)
    if bbox is not None:
        corners = [side * SCALE for side in bbox]
        ImageDraw.Draw(picture).rectangle(corners, outline=(255, 255, 255), width=3)
    return picture


def _rings(geometry: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """Return all rings, exteriors and holes, at the drawing's scale."""
    many = geometry["type"] == "MultiPolygon"
    polygons = geometry["coordinates"] if many else [geometry["coordinates"]]
    return [[(x * SCALE, y * SCALE) for x, y in ring] for rings in polygons for ring in rings]


def _inside(rings: list[list[tuple[int, int]]], size: tuple[int, int]) -> Image.Image:
    """Return the area that the rings enclose by the even-odd rule, so that holes are left out."""
    inside = Image.new("1", size)
    for ring in rings:
        filled = Image.new("1", size)
        ImageDraw.Draw(filled).polygon(ring, fill=1)
        inside = ImageChops.logical_xor(inside, filled)
    return inside


if __name__ == "__main__":
    sys.exit(main())
