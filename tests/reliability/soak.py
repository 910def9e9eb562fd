"""Mixed traffic for a long time: memory, open files, shared memory and logs must stay flat."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options

from .watching import CLICK, JSON, Processes, size_of

CLIENTS = 3


def run(options: Options, seconds: float) -> dict[str, Any]:
    """Send clicks, new pictures, automasks and wrong requests. Return what grew after a quarter."""
    processes = Processes(options)
    counts = [0] * CLIENTS
    wrong: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        with LoopbackSession(300) as http:
            while time.monotonic() < end:
                path, body = any_request(rng)
                answer = http.post(options.url + path, data=body, headers=JSON)
                counts[number] += 1
                if answer.status_code not in (200, 400, 422, 429, 503):
                    wrong.append(f"{answer.status_code} {answer.text[:200]}")

    def now() -> dict[str, float]:
        return {
            "requests": sum(counts),
            "gateway": processes.memory(processes.gateway),
            "worker": processes.memory(processes.workers),
            "files": processes.files(),
            "shared": size_of(options.cache_dir),
            "logs": size_of(options.run_dir / "logs"),
        }

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    samples = [now()]
    while time.monotonic() < end:
        time.sleep(min(10.0, max(end - time.monotonic(), 0.1)))
        samples.append(now())
    for thread in threads:
        thread.join()
    samples.append(now())
    ended = processes.ended()
    return {"seconds": seconds, "samples": samples, "wrong": wrong[:5], "ended": ended}


def any_request(rng: random.Random) -> tuple[str, bytes]:
    """Return the path and the body of some request."""
    kind = rng.random()
    if kind < 0.90:
        return "/sam/", CLICK
    if kind < 0.93:
        return "/sam/", b'{"type": "vit_t", "bbox": [1, 2]}'
    side = rng.choice((64, 300, 512))
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (8, 8, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(stream, "PNG")
    fields: dict[str, Any] = {
        "type": "vit_t",
        "b64img": base64.b64encode(stream.getvalue()).decode(),
    }
    if kind < 0.995:
        return "/sam/", json.dumps({**fields, "bbox": [5, 5, 50, 50]}).encode()
    return "/sam/automask/", json.dumps({**fields, "points_per_side": 4}).encode()


def text(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    samples = result["samples"]
    first, last = samples[0], samples[-1]
    requests = max(1, last["requests"] - first["requests"])
    # The last third against the first third: single samples are noisy.
    third = max(1, len(samples) // 3)
    lines = ["| | first | last | a 10,000 requests |", "|---|--:|--:|--:|"]
    for name, unit in (("gateway", 2**20), ("worker", 2**20), ("shared", 2**20), ("files", 1)):
        early = sorted(s[name] for s in samples[:third])[third // 2]
        late = sorted(s[name] for s in samples[-third:])[third // 2]
        growth = (late / max(early, 1) - 1) * 10_000 / (requests * 2 / 3)
        lines.append(f"| {name} | {early / unit:.1f} | {late / unit:.1f} | {growth:+.2%} |")
    logs = (last["logs"] - first["logs"]) / requests
    return (
        f"{result['seconds'] / 60:.0f} minutes, {last['requests']:.0f} requests; the first quarter "
        f"is warm-up. Memory in MiB.\n\n" + "\n".join(lines) + f"\n\nLog: {logs:.0f} bytes a "
        f"request. Wrong answers: {result['wrong'] or 'none'}. Processes that ended: "
        f"{result['ended'] or 'none'}."
    )
