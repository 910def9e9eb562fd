"""The main job once, from picture to outline: a server, a box, an automask, and stop.

    python -m scripts.demo

Writes out/demo/*.geojson, as the server sent it, and an overlay of each on its picture.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import skimage.data
from PIL import Image, ImageChops, ImageDraw

from .options import ROOT, free_ports, parse_options
from .server import ServerError, running

OUT = ROOT / "out" / "demo"

# (name, path, picture, what is asked): a gland in a stained section, and a tray of coins.
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
    """Exit status: 0, or 1 if the server could not start or refused a request."""
    options = free_ports(parse_options([]))
    OUT.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    timings = []
    try:
        print("starting a server on free ports", flush=True)
        with running(options):
            timings.append(f"server ready {time.monotonic() - started:.1f} s")
            for name, path, picture, question in REQUESTS:
                image = Image.fromarray(getattr(skimage.data, picture)())
                print(f"{name}: POST {path} {json.dumps(question)}", flush=True)
                asked = time.monotonic()
                features = ask(f"{options.url}{path}", image, question)
                seconds = time.monotonic() - asked
                timings.append(f"{name} {seconds:.1f} s ({len(features)} objects)")
                draw(image, features, question.get("bbox")).save(OUT / f"{name}.png")
                (OUT / f"{name}.geojson").write_text(json.dumps(features))
                print(f"{name}: {relative(OUT / name)}.geojson and .png", flush=True)
            stopping = time.monotonic()
        timings.append(f"stopped in {time.monotonic() - stopping:.1f} s")
    except ServerError as error:
        print(f"samserve: {error}", file=sys.stderr)
        return 1
    print("timings: " + ", ".join(timings))
    return 0


def ask(url: str, image: Image.Image, question: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's Features for a picture.

    Raises:
        ServerError: it refused, with its own words.
    """
    png = io.BytesIO()
    image.save(png, "PNG")
    body = {"type": "vit_t", "b64img": base64.b64encode(png.getvalue()).decode(), **question}
    answer = httpx.post(url, json=body, timeout=1200, trust_env=False)
    if answer.status_code != 200:
        raise ServerError(f"{url} answered {answer.status_code}: {answer.text}")
    features: list[dict[str, Any]] = answer.json()
    return features


def draw(
    image: Image.Image, features: list[dict[str, Any]], bbox: list[int] | None = None
) -> Image.Image:
    """The picture at twice its size, each object tinted and outlined, the box if there is one."""
    scale = 2
    size = (image.width * scale, image.height * scale)
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    # Large objects first, so that what lies on them stays visible.
    for index, feature in enumerate(sorted(features, key=_area, reverse=True)):
        color = COLORS[index % len(COLORS)]
        inside = Image.new("1", size)
        outline = ImageDraw.Draw(picture)
        geometry = feature["geometry"]
        many = geometry["type"] == "MultiPolygon"
        for rings in geometry["coordinates"] if many else [geometry["coordinates"]]:
            for ring in rings:
                points = [(x * scale, y * scale) for x, y in ring]
                filled = Image.new("1", size)
                ImageDraw.Draw(filled).polygon(points, fill=1)
                inside = ImageChops.logical_xor(inside, filled)  # a hole takes away what it covers
        tint = Image.blend(picture, Image.new("RGB", size, color), 0.45)
        picture.paste(tint, mask=inside)
        for rings in geometry["coordinates"] if many else [geometry["coordinates"]]:
            for ring in rings:
                outline.line([(x * scale, y * scale) for x, y in ring], fill=color, width=2)
    if bbox is not None:
        corners = [side * scale for side in bbox]
        ImageDraw.Draw(picture).rectangle(corners, outline=(255, 255, 255), width=3)
    return picture


def _area(feature: dict[str, Any]) -> float:
    """The extent of a Feature's box, to sort by."""
    geometry = feature["geometry"]
    polygons = geometry["coordinates"]
    exteriors = [p[0] for p in (polygons if geometry["type"] == "MultiPolygon" else [polygons])]
    xs = [x for ring in exteriors for x, _ in ring]
    ys = [y for ring in exteriors for _, y in ring]
    return float((max(xs) - min(xs)) * (max(ys) - min(ys)))


def relative(path: Path) -> Path:
    return path.relative_to(ROOT)


if __name__ == "__main__":
    sys.exit(main())
