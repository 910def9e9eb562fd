"""The documents name only files, headings and variables that exist, and their Python runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest
import yaml

from samserve.serving.lanes import Mode
from samserve_gateway.settings import Settings
from samserve_launcher.options import Options

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
        ROOT / "model_store" / "README.md",
    ]
)
CODE = ("handlers", "samserve_client", "samserve_gateway", "samserve_launcher", "scripts")
SOURCES = (*CODE, "bench", "config", "deploy", "docs", "model_store", "tests")

documents = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def prose_of(document: Path) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@documents
def test_every_link_leads_somewhere(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        address, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        target = (document.parent / unquote(address)).resolve() if address else document
        exists = target.exists() and target.is_relative_to(ROOT)
        if not exists or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


@documents
def test_every_path_in_backticks_exists(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # it names what is no longer there
    paths = re.findall(r"`([\w./-]+/[\w.-]*)`", prose_of(document))
    named = [path for path in paths if path.split("/")[0] in SOURCES]
    missing = [path for path in named if not is_in_repository(path)]
    assert not missing


def is_in_repository(path: str) -> bool:
    """Return whether the path exists, or is the place of an archive that is yet to be built."""
    return (ROOT / path).exists() or path.endswith(".mar")


def variables_of(tree: ast.AST) -> Iterator[str]:
    """Yield every string of a module that is the name of one of our variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\ASAMSERVE_[A-Z][A-Z_]*[A-Z]\Z", node.value)


def test_every_variable_is_documented() -> None:
    variables = {
        variable
        for folder in CODE
        for path in (ROOT / folder).rglob("*.py")
        for variable in variables_of(ast.parse(path.read_text()))
    }
    variables |= set(
        re.findall(r"env:(SAMSERVE_[A-Z_]+[A-Z])", (ROOT / "config" / "log4j2.xml").read_text())
    )
    names = [*Settings.model_fields, *(option.name for option in fields(Options))]
    names += [f"{mode}_threads" for mode in get_args(Mode)]
    variables |= {f"SAMSERVE_{name.upper()}" for name in names}
    operations = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`(SAMSERVE_[A-Z_]+)`", operations))
    assert len(variables) > 25
    assert not variables - documented


def test_every_variable_of_deploy_is_documented() -> None:
    """Those that only compose and HAProxy read are in deploy/README.md."""
    texts = [
        (ROOT / "deploy" / name).read_text() for name in ("compose.yaml", "haproxy/haproxy.cfg")
    ]
    variables = set(re.findall(r"SAMSERVE_[A-Z_]+[A-Z]", "".join(texts)))
    documents = ("docs/operations.md", "deploy/README.md")
    documented = "".join((ROOT / name).read_text() for name in documents)
    assert not {variable for variable in variables if variable not in documented}


def python_blocks(document: Path, containing: str) -> str:
    """Return the Python blocks of a document that belong to the library, as one program."""
    text = document.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    program = "\n".join(block for block in blocks if "import requests" not in block)
    assert containing in program
    return program


@pytest.mark.parametrize("name", ["README.md", "docs/library.md"])
def test_the_python_examples_run(name: str) -> None:
    program = python_blocks(ROOT / name, "samserve.load(")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert "`make test`" in readme


def test_citation_and_workflows_are_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "references"} <= citation.keys()
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text())
