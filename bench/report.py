"""The benchmark's figures as tables, and as a page that explains them.

The input is the results that `--json` writes.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from samserve.machine import usable_cores

from . import ROOT
from .agreement import BOXES, SAME
from .cases import (
    BARE,
    GATEWAY,
    IN_PROCESS,
    KEPT_PAGES,
    MANY,
    REFERENCE,
    SAME_PICTURE,
    TORCHSERVE,
)
from .pictures import named

Results = dict[str, Any]

PACKAGES = [
    "torch",
    "torchvision",
    "mobilesam-mirror",
    "openvino",
    "torchserve",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "samserve",
]

TITLES = {
    "first-box": "One box on a picture never seen",
    "known-box": "One box on a picture already seen, sent again in full",
    "16-boxes": f"{MANY} boxes on one picture already seen, in one request",
    "automask": "Automask of a picture never seen",
}

CONTENDERS = {
    REFERENCE: "what the samapi server does for a request whose picture is not that of the "
    "request just before: base64 and Pillow, `SamPredictor.set_image`, `predict` for each box, "
    "or `SamAutomaticMaskGenerator.generate`, contours at 0.5, JSON. In a process of its own, "
    "without HTTP. Several boxes share one `set_image`, its own best.",
    KEPT_PAGES: "the same with the allocator's settings of our workers, so that what those "
    "settings give and what our code gives are seen apart.",
    SAME_PICTURE: "the same where the picture is that of the request just before: samapi "
    "remembers one picture, the last, and does not encode it again.",
    BARE: "`SamPredictor.predict` alone, on the picture that is set: no body, no picture, no "
    "outline. No request can be asked of it; it is there to compare with.",
    IN_PROCESS: "our `SamHandler` out of its archive, called without a server: the body's bytes "
    "in, the answer's bytes out.",
    TORCHSERVE: "the same over HTTP, asked of TorchServe itself.",
    GATEWAY: "the same through the gateway, as clients ask.",
}


def about(settings: dict[str, Any], pictures: list[str]) -> Results:
    """Return the machine, the versions and the settings of a run that begins now."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "CPU": _cpu_model(),
            "usable cores": str(usable_cores()),
            "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
            "system": f"{_system()}, kernel {platform.release()}",
            "load before the run": f"{psutil.getloadavg()[0]:.1f}",
        },
        "versions": {
            "Python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES},
            "commit": _commit(),
        },
        "settings": settings,
        "pictures": pictures,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _commit() -> str:
    def git(*arguments: str) -> str:
        completed = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return completed.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def page(results: Results, plot: Path) -> str:
    """Return the text of docs/benchmarks.md."""
    run = results["about"]
    facts = {**run["machine"], **run["versions"], "date": run["date"]}
    settings = run["settings"]
    contenders = "\n".join(
        textwrap.fill(f"- **{name}**: {meaning}", 100, subsequent_indent="  ")
        for name, meaning in CONTENDERS.items()
    )
    return f"""# Benchmarks

`make bench` measures all of this anew and writes this page and its plot; it took
{run["minutes"]:.0f} minutes here. `make bench FLAGS=--help` lists the ways to run a part of it or
to use pictures of your own. The contenders of a table take turns ({settings["repeats"]} rounds,
after a call that is not timed), on an otherwise idle machine: the ratios hold elsewhere, the times
are this machine's. Pictures: {", ".join(run["pictures"])}.

{_table(["", ""], [[name, value] for name, value in facts.items()])}
![Median times of the contenders, on a logarithmic axis]({plot.name})

## Who is compared

{contenders}

Times are medians, with the lowest and the highest. Ratios are against *{REFERENCE}*, so that 2.0×
is twice as fast. CPU is the seconds of processor of a call, on average, over all processes
concerned: with the server, TorchServe's and the gateway's too. Memory is the most that the process
that does the work has held since it was started for this size of picture; the tables stand in the
order of measuring.

{tables(results)}"""


def tables(results: Results) -> str:
    """Return the tables of the cases that were run, under their headings."""
    sections = [_timed(results, case, title) for case, title in TITLES.items()]
    sections += [
        _transport(results),
        _clients(
            results, "clients-known", "Clients at the same time, boxes on one picture already seen"
        ),
        _clients(results, "clients-new", "Clients at the same time, every picture never seen"),
        _agreement(results),
    ]
    return "\n".join(section for section in sections if section)


def _timed(results: Results, case: str, title: str) -> str:
    points = results["about"]["settings"]["points"]
    suffix = f", {points}×{points} points" if case == "automask" else ""
    parts = []
    for size in sizes(results["times"], case):
        rows = [row for row in results["times"] if row["case"] == case and row["size"] == size]
        reference = statistics.median(rows[0]["wall"])
        body = [
            [
                row["contender"] + _once(row, rows),
                seconds(statistics.median(row["wall"])),
                _spread(row["wall"]),
                seconds(statistics.mean(row["cpu"])),
                _gigabytes(max(row["peak"])),
                f"{reference / statistics.median(row['wall']):.1f}×",
            ]
            for row in rows
        ]
        header = [named(size), "median", "lowest – highest", "CPU", "memory", "ratio"]
        parts.append(_table(header, body))
    return _section(title + suffix, parts)


def _once(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return a remark if the contender ran less often than the others."""
    turns = len(row["wall"])
    return f" ({turns} run)" if turns < max(len(other["wall"]) for other in rows) else ""


def _transport(results: Results) -> str:
    rows = [row for row in results["times"] if row["case"] == "transport"]
    if not rows:
        return ""
    alone = statistics.median(rows[0]["wall"])
    body = [
        [
            row["contender"],
            seconds(statistics.median(row["wall"])),
            _spread(row["wall"]),
            f"{1000 * (statistics.median(row['wall']) - alone):+.1f} ms" if index else "",
            seconds(statistics.mean(row["cpu"])),
        ]
        for index, row in enumerate(rows)
    ]
    [size] = sizes(results["times"], "transport")
    header = [named(size), "median", "lowest – highest", "transport adds", "CPU"]
    return _section(
        f"Transport of a body of {results['transport_bytes'] / 1e6:.2f} MB, one box on a picture "
        f"already seen ({len(rows[0]['wall'])} rounds)",
        [_table(header, body)],
    )


def _clients(results: Results, case: str, title: str) -> str:
    parts = []
    for size in sizes(results["clients"], case):
        body = []
        for row in results["clients"]:
            if row["case"] != case or row["size"] != size:
                continue
            latencies = row["latencies"]
            enough = len(latencies) >= 20  # percentiles of fewer answers mean nothing
            p95, p99 = np.percentile(latencies, [95, 99]) if enough else (None, None)
            body.append(
                [
                    row["contender"],
                    f"{len(latencies) / row['seconds']:.2f}",
                    seconds(statistics.median(latencies)) if latencies else "–",
                    seconds(p95) if p95 is not None else "–",
                    seconds(p99) if p99 is not None else "–",
                    str(len(latencies)),
                    str(row["errors"]),
                    seconds(row["cpu"] / max(1, len(latencies))),
                    _gigabytes(row["peak"]),
                ]
            )
        header = [named(size), "answers/s", "p50", "p95", "p99", "answers", "errors", "CPU each"]
        parts.append(_table([*header, "memory"], body))
    note = (
        "The reference has one predictor for everybody, so it answers one request after another:\n"
        "its rate is one over its latency, however many clients there are.\n"
    )
    return _section(title, [note, *parts]) if parts else ""


def _agreement(results: Results) -> str:
    if not results["automask"]:
        return ""
    parts = [
        f"Automask with the same points, *{KEPT_PAGES}* against *{IN_PROCESS}*: a reference\n"
        f"mask counts as found where one of ours has an IoU of {SAME} or more with it; ours are\n"
        "extra where no reference mask has that.\n",
        _table(
            ["picture", "reference masks", "found", "of them identical", "missing", "extra"],
            [
                [
                    f"{row['picture']} {named(row['size'])}",
                    str(row["reference"]),
                    f"{row['same']} ({row['same'] / row['reference']:.1%})",
                    str(row["identical"]),
                    str(len(row["missing"])),
                    str(len(row["extra"])),
                ]
                for row in results["automask"]
            ],
        ),
    ]
    strays = [
        [
            row["picture"],
            kind,
            f"{stray['predicted_iou']:.4f}",
            f"{stray['stability_score']:.4f}",
            str(stray["area"]),
            f"{stray['best_iou']:.4f}",
        ]
        for row in results["automask"]
        for kind in ("missing", "extra")
        for stray in row[kind]
    ]
    if strays:
        header = ["picture", "", "predicted IoU", "stability", "area", "best IoU"]
        parts.append(_table(header, strays))
    parts.append(
        f"{BOXES} boxes at random on each, against `SamPredictor.predict`: the share of the "
        "picture's pixels that differ.\n"
    )
    parts.append(
        _table(
            ["picture", "mean", "highest", "lowest IoU"],
            [
                [
                    f"{row['picture']} {named(row['size'])}",
                    f"{statistics.mean(row['differing']):.4%}",
                    f"{max(row['differing']):.4%}",
                    f"{min(row['iou']):.5f}",
                ]
                for row in results["boxes"]
            ],
        )
    )
    return _section("Agreement with the reference", parts)


def sizes(rows: list[dict[str, Any]], case: str) -> list[Any]:
    """Return the sizes at which a case was run, in order."""
    distinct: list[Any] = []
    for row in rows:
        if row["case"] == case and row["size"] not in distinct:
            distinct.append(row["size"])
    return distinct


def _section(title: str, parts: list[str]) -> str:
    return "\n".join([f"## {title}\n", *parts]) if parts else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *rest = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "| " + " | ".join(
        "-" * width if i == 0 else "-" * max(1, width - 1) + ":" for i, width in enumerate(widths)
    )
    return "\n".join([line(header), rule + " |", *(line(row) for row in rows), ""])


def seconds(value: float) -> str:
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _spread(values: list[float]) -> str:
    return f"{seconds(min(values))} – {seconds(max(values))}"


def _gigabytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"
