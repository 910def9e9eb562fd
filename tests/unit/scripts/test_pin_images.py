"""Every foreign image of deploy/ can be pinned, and pinned again; ours are left alone."""

from __future__ import annotations

import re

import pytest

from scripts.pin_images import DEPLOY, pinned

ONE, OTHER = (f"sha256:{digit * 64}" for digit in "1a")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("    image: redis:8\n", f"    image: redis:8@{ONE}\n"),
        (f"image: redis:8@{OTHER}\n", f"image: redis:8@{ONE}\n"),
        ("image: prom/prometheus:v3.5.0\n", f"image: prom/prometheus:v3.5.0@{ONE}\n"),
        ("ARG BASE=python:3.11-slim\n", f"ARG BASE=python:3.11-slim@{ONE}\n"),
        ("BASE: ${BASE:-python:3.11-slim}\n", f"BASE: ${{BASE:-python:3.11-slim@{ONE}}}\n"),
        ("image: samserve-worker\n", "image: samserve-worker\n"),
        ("image: samserve-worker:1\n", "image: samserve-worker:1\n"),
    ],
)
def test_a_line(line: str, expected: str) -> None:
    assert pinned(line, lambda image: ONE) == expected


def test_every_foreign_image_of_deploy_is_found() -> None:
    for path in DEPLOY.rglob("*.yaml"):
        for image in re.findall(r"image: (.*)", pinned(path.read_text(), lambda image: ONE)):
            assert image.startswith("samserve-") or image.endswith(ONE), (path, image)
