"""`python -m tests.reliability TARGET` runs a target against a server of its own.

It writes the target's part of docs/reliability.md, and ends with status 1 if a bar was missed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import psutil

from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import running
from tests.support.paths import ROOT

from . import attack, fuzz, overload, soak
from .attacks import ATTACKS

PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Run the target. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("target", choices=["attack", "fuzz", "overload", "soak"])
    parser.add_argument(
        "--seconds", type=float, default=60, help="length of overload and soak (60)"
    )
    parser.add_argument("--requests", type=int, default=10_000, help="requests of fuzz (10000)")
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    parser.add_argument("--no-page", action="store_true", help="leave docs/reliability.md as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samserve-reliability-") as folder:
        options = free_ports(Options(model_store=ROOT / "model_store", run_root=Path(folder)))
        with running(options):
            written, good = measure(arguments, options)
        shutil.rmtree(options.run_dir, ignore_errors=True)
    print(written)
    if not arguments.no_page and not arguments.only:
        write(arguments.target, written)
    return 0 if good else 1


def measure(arguments: argparse.Namespace, options: Options) -> tuple[str, bool]:
    """Run the target. Return its part of the page, and whether every bar was met."""
    if arguments.target == "attack":
        names = [name for name in ATTACKS if arguments.only in name]
        rows = attack.run(options, names)
        return attack.table(rows), all(row["held"] for row in rows)
    if arguments.target == "overload":
        results = overload.run(options, arguments.seconds)
        barred = [row for row in results if row["clients"] <= 20 * overload.BASE_CLIENTS]
        enough = all(row["answers"] >= 0.9 * results[0]["answers"] for row in barred)
        quick = all(row["refusal_p99_s"] < 0.05 for row in barred)
        return overload.table(results), enough and quick and not any(r["others"] for r in results)
    if arguments.target == "fuzz":
        fuzzed = fuzz.run(options, arguments.requests)
        failed = fuzzed["wrong"] or fuzzed["ended"] or fuzzed["schema"].startswith("FAILED")
        return fuzz.text(fuzzed), not failed
    soaked = soak.run(options, arguments.seconds)
    return soak.text(soaked), not soaked["wrong"] and not soaked["ended"]


def write(target: str, written: str) -> None:
    """Put a target's result into its part of the page."""
    page = PAGE.read_text()
    memory = psutil.virtual_memory().total / 2**30
    note = f"*{date.today()}, {psutil.cpu_count()} cores, {memory:.0f} GiB.*"
    pattern = re.compile(rf"(<!-- {target} -->\n).*?(<!-- end -->)", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda m: f"{m[1]}{note}\n\n{written}\n{m[2]}", page, count=1))


if __name__ == "__main__":
    sys.exit(main())
