"""List the licenses of all packages that `.venv` has in docs/licenses.md: `make licenses`.

`pip-licenses` reads them from the packages' own descriptions. The packages are those of
requirements.lock, without the tools of the tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licenses.md"

HEAD = """\
# Licenses

`make licenses` writes this page. It has the packages of `requirements.lock` that `.venv` has, with
the license that each package states. samserve itself is under [Apache-2.0](../LICENSE). NVIDIA's
packages (`nvidia-*`, `cuda-*`) are only in PyTorch's CUDA build, and are under NVIDIA's own
licenses. segment-anything states none in its package; its repository is under Apache-2.0.
The weights of Segment Anything, MobileSAM and SAM 2 are under Apache-2.0, and so is the code of
SAM 2 that `handlers/samserve/network/sam2.py` and `hiera.py` follow.
The package torchserve contains Java libraries, which this list does not name.

| package | version | license |
|---|---|---|
"""


def main() -> int:
    """Write the page, and return the exit status."""
    PAGE.write_text(page(installed(), locked((ROOT / "requirements.lock").read_text())))
    print(PAGE.relative_to(ROOT))
    return 0


def installed() -> list[dict[str, str]]:
    """Return `Name`, `Version` and `License` of each installed package."""
    command = [sys.executable, "-m", "piplicenses", "--format", "json", "--from", "mixed"]
    command += ["--with-system"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    packages: list[dict[str, str]] = json.loads(done.stdout)
    return packages


def locked(lock: str) -> set[str]:
    """Return the normalized names of the lock's packages."""
    return {_normalized(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}


def page(packages: list[dict[str, str]], names: set[str]) -> str:
    """Return the page with those of the packages that have one of these names."""
    rows = [
        f"| {each['Name']} | {each['Version']} | {_short(each['License'])} |\n"
        for each in sorted(packages, key=lambda each: each["Name"].lower())
        if _normalized(each["Name"]) in names
    ]
    return HEAD + "".join(rows)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _short(license_name: str) -> str:
    """Return the name of a license. Some packages have its whole text in that place."""
    first = license_name.strip().splitlines()[0]
    return first.replace("|", "/") if len(first) <= 100 else f"{first[:100]}…"


if __name__ == "__main__":
    sys.exit(main())
