"""Draws the page's sample pictures that are no photographs. Its output is committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SAMPLES = Path(__file__).parent / "static" / "samples"
SIZE = (640, 480)


def cells() -> Image.Image:
    """Return round nuclei that shine on black, as a fluorescence microscope shows them."""
    rng = np.random.default_rng(7)
    light = Image.new("L", SIZE, 8)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < 42:
        x, y, radius = rng.uniform(25, 615), rng.uniform(25, 455), rng.uniform(14, 27)
        if all(np.hypot(x - a, y - b) > 0.95 * (radius + c) for a, b, c in placed):
            placed.append((x, y, radius))
    for x, y, radius in placed:
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        wave = 1 + 0.10 * np.cos(2 * angles + rng.uniform(0, 6)) + 0.03 * np.cos(3 * angles)
        points = np.stack([x + radius * wave * np.cos(angles), y + radius * wave * np.sin(angles)])
        nucleus = Image.new("L", SIZE, 0)
        draw = ImageDraw.Draw(nucleus)
        draw.polygon([tuple(p) for p in points.T], fill=int(rng.uniform(110, 220)))
        for _ in range(4):
            a, r = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6) * radius
            cx, cy, s = x + r * np.cos(a), y + r * np.sin(a), rng.uniform(2, 4)
            draw.ellipse([cx - s, cy - s, cx + s, cy + s], fill=int(rng.uniform(150, 255)))
        light.paste(nucleus, mask=nucleus.point(lambda v: 255 if v else 0))
    pixels = np.asarray(light.filter(ImageFilter.GaussianBlur(1.6)), float)
    pixels = np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255) / 255
    rgb = np.stack([60 * pixels, 170 * pixels**1.1, 255 * pixels], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def leaves() -> Image.Image:
    """Return leaves of several colours that lie on sand."""
    rng = np.random.default_rng(3)
    grain = rng.normal(0, 10, SIZE[::-1])
    sand = np.clip(np.array([226, 212, 186]) + grain[:, :, None], 0, 255).astype(np.uint8)
    picture = Image.fromarray(sand).filter(ImageFilter.GaussianBlur(0.8))
    colors = [(84, 130, 53), (190, 92, 40), (214, 158, 46), (120, 50, 44), (60, 100, 80)]
    centres = [(x, y) for y in (85, 240, 395) for x in (95, 245, 395, 545)]
    for i, (x, y) in enumerate(centres):
        leaf(picture, x + rng.uniform(-15, 15), y + rng.uniform(-12, 12), colors[i % 5], rng)
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def leaf(
    picture: Image.Image, x: float, y: float, color: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Draw one leaf with its shadow and its veins."""
    length, width, turn = rng.uniform(58, 72), rng.uniform(22, 34), rng.uniform(0, 2 * np.pi)
    t = np.linspace(-1, 1, 50)
    edge = width * (1 - t**2) ** 0.8 * (1 - 0.3 * t) + 1.5 * np.sin(24 * t) * (1 - t**2)
    along = np.concatenate([length * t, length * t[::-1]])
    across = np.concatenate([edge, -edge[::-1]])

    def turned(a: np.ndarray, b: np.ndarray, dx: float = 0, dy: float = 0) -> list[tuple]:
        px = x + dx + a * np.cos(turn) - b * np.sin(turn)
        py = y + dy + a * np.sin(turn) + b * np.cos(turn)
        return list(zip(px.tolist(), py.tolist(), strict=True))

    shadow = Image.new("L", picture.size, 0)
    ImageDraw.Draw(shadow).polygon(turned(along, across, 4, 6), fill=110)
    shadow = shadow.filter(ImageFilter.GaussianBlur(4))
    picture.paste((90, 78, 60), mask=shadow)
    draw = ImageDraw.Draw(picture)
    draw.polygon(turned(along, across), fill=color)
    vein = tuple(min(255, c + 36) for c in color)
    draw.line(turned(np.array([-1.2, 0.95]) * length, np.zeros(2)), fill=vein, width=3)
    for s in np.linspace(-0.7, 0.6, 6):
        half = 0.75 * width * (1 - s**2)
        for side in (-1, 1):
            line = turned(np.array([s, s + 0.22]) * length, np.array([0, side * half]))
            draw.line(line, fill=vein, width=1)


if __name__ == "__main__":
    cells().save(SAMPLES / "cells.jpg", quality=85)
    leaves().save(SAMPLES / "leaves.jpg", quality=82)
