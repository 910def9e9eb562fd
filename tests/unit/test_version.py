"""There is one version, and every file that repeats it agrees."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
import yaml

from samserve import __version__
from tests.support.paths import ROOT


def test_the_installed_package_has_it() -> None:
    assert version("samserve") == __version__


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_kubernetes_runs_the_gateway_of_this_version(overlay: str) -> None:
    path = ROOT / "deploy" / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    images = {image["name"]: image for image in yaml.safe_load(path.read_text())["images"]}
    assert images["samserve-gateway"]["newTag"] == __version__


def test_the_citation_names_it() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_changelog_has_a_section_for_it_or_for_what_comes_next() -> None:
    sections = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] in ("Unreleased", __version__)
    assert all(re.fullmatch(r"Unreleased|\d+\.\d+\.\d+", section) for section in sections)
