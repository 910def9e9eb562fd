"""The code of docs/python.md and of the how-tos, run as written against the server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import ROOT
from tests.support.servers import Server


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    every = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = [block for kind, block in every if kind == language]
    assert found
    return found


def run(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "SAMSERVE_URL": server.options.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("name", ["docs/python.md", "docs/how-to-notebook.md"])
def test_python(server: Server, name: str) -> None:
    program = "\n".join(blocks(name, "python"))
    assert run(server, sys.executable, "-c", program).stdout


def test_a_folder(server: Server) -> None:
    shutil.rmtree(ROOT / "out" / "folder", ignore_errors=True)
    commands, shown = blocks("docs/how-to-folder.md", "sh"), blocks("docs/how-to-folder.md", "")
    assert len(commands) == len(shown) == 2
    for command, said in zip(commands, shown, strict=True):
        done = run(server, "bash", "-euo", "pipefail", "-c", command)
        # The pictures of docs/ change from time to time, and with them the counts.
        assert re.sub(r"\d+", "N", done.stderr + done.stdout) == re.sub(r"\d+", "N", said)
    [program] = blocks("docs/how-to-folder.md", "python")
    objects = re.search(r"(\d+) objects", run(server, sys.executable, "-c", program).stdout)
    labels = np.asarray(Image.open(ROOT / "out" / "folder" / "coins.labels.png"))
    assert objects is not None
    assert int(objects[1]) == labels.max() > 10


def test_the_commands_of_the_readme(server: Server) -> None:
    [command] = [block for block in blocks("README.md", "sh") if "samserve segment" in block]
    for name in ("docs", "coin.geojson"):
        path = ROOT / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run(server, "bash", "-euo", "pipefail", "-c", command)
    assert (ROOT / "out" / "coin.geojson").is_file()
    assert (ROOT / "out" / "docs" / "coins.labels.png").is_file()
