"""The page of licenses has the packages of the lock, one line for each."""

from __future__ import annotations

from scripts.list_licenses import HEAD, locked, page

LOCK = (
    "numpy==2.0 \\\n    --hash=sha256:0\n    # via other\nRuamel.Yaml_x==1 ; python_version < '3'\n"
)


def test_only_packages_of_the_lock() -> None:
    packages = [
        {"Name": "ruamel-yaml.x", "Version": "1", "License": "MIT\nand its whole text"},
        {"Name": "NumPy", "Version": "2.0", "License": "BSD|0BSD"},
        {"Name": "pytest", "Version": "9", "License": "MIT"},
    ]
    lines = page(packages, locked(LOCK)).removeprefix(HEAD).splitlines()
    assert lines == ["| NumPy | 2.0 | BSD/0BSD |", "| ruamel-yaml.x | 1 | MIT |"]
