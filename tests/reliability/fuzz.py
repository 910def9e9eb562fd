"""Random requests: any answer is right but a fault of the server's own.

Three sources: requests that the server's own OpenAPI document describes, or nearly so
(schemathesis); right requests of which some bytes or fields are changed; and raw bytes.
"""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from samserve_gateway import probe
from samserve_launcher.options import Options

from .attack import send
from .watching import Processes

ALLOWED = ("503", "504")
"""5xx that say that the server has too much to do."""

PATHS = (
    "/sam/", "/sam/automask/", "/sam/automask/?stream=1", "/sam/weights/", "/sam/images/?type=vit_t"
)  # fmt: skip

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, "", "x", "\0",
    "ä" * 300, "vit_h", [], [[]], [None], [[1, 2]], [1, 2, 3, 4], {}, {"bbox": [1, 2, 3, 4]},
    "nan", "../../etc/passwd", "label_png", "mask_png", [[0, 0], [50, 0], [0, 50]],
    {"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [0, 50], [0, 0]]]},
    {"shape": [256, 256], "dtype": "float16", "data": "AAAA"},
]  # fmt: skip

FIELDS = (
    "type", "bbox", "b64img", "b64mask", "point_coords", "point_labels", "multimask_output",
    "mask_input", "prompts", "page", "simplify", "output_format", "checkpoint_url", "tile_size",
    "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh",
    "crop_n_layers", "min_mask_region_area", "output_type", "include_image_edge", "timeout_s",
    "strict", "return_logits", "region", "min_area", "max_area",
)  # fmt: skip


def run(options: Options, requests: int, seed: int = 0) -> dict[str, Any]:
    """Send at least this many requests. Return what was answered, and how the server is after."""
    processes = Processes(options)
    rng = random.Random(seed)
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    warm = min(500, requests // 4)
    before = (0, 0)
    for number in range(requests):
        if number == warm:
            before = (processes.memory(processes.gateway), processes.files())
        content = changed(rng) if rng.random() < 0.9 else noise(rng)
        status = send(options.port, [content])
        statuses[status.partition(" ")[0]] += 1
        if status.startswith("5") and not status.startswith(ALLOWED):
            wrong.append(f"{status}: {content[:300]!r}")
    after = (processes.memory(processes.gateway), processes.files())
    schema = conformance(options, requests // 50)
    return {
        "requests": requests,
        "statuses": dict(sorted(statuses.items())),
        "wrong": wrong[:5],
        "ended": processes.ended(),
        "gateway_growth": (after[0] - before[0]) / 2**20,
        "files_growth": after[1] - before[1],
        "schema": schema,
    }


def changed(rng: random.Random) -> bytes:
    """Return a right request of which some fields or bytes were changed."""
    path = rng.choice(PATHS)
    fields = (probe.automask if "automask" in path else probe.prompt)("vit_t")
    picture = bytearray(base64.b64decode(fields["b64img"]))
    for _ in range(rng.choice((0, 0, 1, 3))):
        picture[rng.randrange(len(picture))] = rng.randrange(256)
    fields["b64img"] = base64.b64encode(bytes(picture)).decode()
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        name = rng.choice(FIELDS)
        if rng.random() < 0.2:
            fields.pop(name, None)
        else:
            fields[name] = rng.choice(ODD)
    body = bytearray(json.dumps(fields).encode())
    for _ in range(rng.choice((0, 0, 0, 1, 5))):
        body[rng.randrange(len(body))] = rng.randrange(256)
    kind = rng.choice(("application/json", "application/json; charset=utf-16", "text/plain", ""))
    method = "PUT" if "images" in path else "POST"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\n"
    )
    strict = "Prefer: handling=strict\r\n"
    accept = rng.choice(
        ("", strict, "Accept: image/png\r\n", "Accept: */*\r\n", "Accept: ;;q=\r\n")
    )
    length = len(body) if rng.random() < 0.97 else rng.randrange(len(body))
    return f"{head}{accept}Content-Length: {length}\r\n\r\n".encode() + bytes(body)


def noise(rng: random.Random) -> bytes:
    """Return bytes that are hardly HTTP."""
    line = rng.choice(
        (b"GET /healthz HTTP/1.1", b"POST /sam/ HTTP/1.1", b"\x16\x03\x01", b"PRI * HTTP/2.0")
    )
    parts = [
        line,
        b"\r\n",
        b"Host: localhost\r\n",
        b"Connection: close\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ]
    parts += [
        b"Content-Length: -1\r\n",
        b"A\0: b\r\n",
        b": \r\n",
        b" folded\r\n",
        rng.randbytes(20),
    ]
    chosen = [line, b"\r\n", *rng.sample(parts, rng.randrange(6)), b"\r\n\r\n", rng.randbytes(9)]
    return b"".join(chosen) + b"0\r\n\r\n"


def conformance(options: Options, examples: int) -> str:
    """Let schemathesis test the server by its OpenAPI document. Return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run",
                f"{options.url}/openapi.json", "--checks",
                "not_a_server_error,content_type_conformance,response_schema_conformance",
                "--phases", "coverage,fuzzing", "--max-examples", str(max(examples, 5)),
                "--request-timeout", "60", "--exclude-path-regex", "weights|docs|metrics",
                "--suppress-health-check", "all", "--no-color", "--generation-database", "none",
            ],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    cases = re.search(r"(\d+) generated.*", text)
    if done.returncode:
        return f"FAILED\n{text[-6000:]}{done.stderr[-500:]}"
    return cases[0] if cases else "passed"


def text(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    statuses = ", ".join(f"{count} x {status}" for status, count in result["statuses"].items())
    return (
        f"{result['requests']} requests: {statuses}. Wrong: {result['wrong'] or 'none'}. Processes "
        f"that ended: {result['ended'] or 'none'}. Growth of the gateway's memory: "
        f"{result['gateway_growth']:.1f} MiB; of open files: {result['files_growth']}.\n\n"
        f"By the OpenAPI document: {result['schema']}"
    )
