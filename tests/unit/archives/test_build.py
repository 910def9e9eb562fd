"""An archive has all files that a worker needs, and is built again if one has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from samserve.archives.build import (
    MANIFEST,
    check_digest,
    is_up_to_date,
    members_of,
    run_archiver,
    serving_weights,
    weights_of,
)
from samserve.model_types import is_mappable, sha256_of
from tests.support import random_weights
from tests.support.checkpoints import Malice
from tests.support.paths import ROOT


@pytest.fixture
def weights_dir(tmp_path: Path) -> Path:
    """A file in place of weights: building an archive does not read published weights."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "vit_t.pt").write_bytes(bytes(range(256)) * 1000)
    (folder / "vit_t.json").write_text("{}")
    return folder


@pytest.fixture
def archive(tmp_path: Path, weights_dir: Path) -> Path:
    path = tmp_path / "store" / "vit_t.mar"
    run_archiver(path, "vit_t", members_of("vit_t", weights_dir / "vit_t.pt"))
    return path


def test_what_an_archive_holds(archive: Path) -> None:
    with zipfile.ZipFile(archive) as mar:
        names = {name for name in mar.namelist() if not name.endswith("/")}
        manifest = json.loads(mar.read(MANIFEST))["model"]
    handlers = ROOT / "handlers"
    library = {str(path.relative_to(handlers)) for path in handlers.glob("samserve/**/*.py")}
    rest = {"sam_handler.py", "vit_t.pt", "vit_t.yaml", "weights.json", MANIFEST}
    assert names == library | rest
    assert manifest["handler"] == "sam_handler.py"
    assert manifest["serializedFile"] == "vit_t.pt"
    assert manifest["configFile"] == "vit_t.yaml"
    assert [path.name for path in archive.parent.iterdir()] == ["vit_t.mar"]


def test_registered_weights_get_an_archive_each(tmp_path: Path, weights_dir: Path) -> None:
    registered = weights_dir / "registered"
    registered.mkdir()
    for name in ("vit_t.nuclei.pt", "vit_t.nuclei.json", "vit_b.nuclei.pt", "vit_t.pt", "x.pt"):
        (registered / name).write_text(name)
    own, nuclei = weights_of("vit_t", weights_dir)
    assert (own, nuclei) == (weights_dir / "vit_t.pt", registered / "vit_t.nuclei.pt")
    archive = tmp_path / "store" / "vit_t.nuclei.mar"
    run_archiver(archive, "vit_t", members_of("vit_t", nuclei))
    with zipfile.ZipFile(archive) as mar:
        assert json.loads(mar.read(MANIFEST))["model"]["modelName"] == "vit_t.nuclei"
        assert mar.read("vit_t.pt") == b"vit_t.nuclei.pt"
        assert mar.read("weights.json") == b"vit_t.nuclei.json"
    assert [path.name for path in archive.parent.iterdir()] == ["vit_t.nuclei.mar"]


def test_archives_of_one_name_are_built_side_by_side(tmp_path: Path, weights_dir: Path) -> None:
    """torch-model-archiver clears the folder in which it copies a model of this name."""
    members = members_of("vit_t", weights_dir / "vit_t.pt")
    archives = [tmp_path / f"store {i}, [x]" / "vit_t.mar" for i in range(3)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda archive: run_archiver(archive, "vit_t", members), archives))
    assert all(is_up_to_date(archive, members) for archive in archives)


def test_the_archivers_own_words_are_passed_on(tmp_path: Path, weights_dir: Path) -> None:
    members = members_of("vit_t", weights_dir / "vit_t.pt")
    (weights_dir / "vit_t.pt").unlink()
    with pytest.raises(SystemExit, match=r"(?s)torch-model-archiver failed.*vit_t\.pt"):
        run_archiver(tmp_path / "store" / "vit_t.mar", "vit_t", members)
    assert not list((tmp_path / "store").iterdir())


def test_nothing_is_deflated(archive: Path) -> None:
    """Compressing gigabytes of weights takes minutes and hardly makes them smaller."""
    with zipfile.ZipFile(archive) as mar:
        assert {member.compress_type for member in mar.infolist()} == {zipfile.ZIP_STORED}


def test_it_is_up_to_date_until_a_source_changes(archive: Path, weights_dir: Path) -> None:
    members = members_of("vit_t", weights_dir / "vit_t.pt")
    assert is_up_to_date(archive, members)
    (weights_dir / "vit_t.json").write_text('{"source": "another"}')
    assert not is_up_to_date(archive, members)


@pytest.mark.parametrize("damage", ["truncated", "a byte changed", "empty", "gone"])
def test_a_damaged_archive_is_not_valid(archive: Path, weights_dir: Path, damage: str) -> None:
    content = bytearray(archive.read_bytes())
    if damage == "truncated":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "a byte changed":
        content[len(content) // 3] ^= 0xFF
        archive.write_bytes(content)
    elif damage == "empty":
        archive.write_bytes(b"")
    else:
        archive.unlink()
    assert not is_up_to_date(archive, members_of("vit_t", weights_dir / "vit_t.pt"))


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A folder with readable weights, of a network with two tensors."""
    tensors = {"image_encoder.x": torch.rand(9), "mask_decoder.x": torch.rand(9)}
    torch.save(tensors, tmp_path / "vit_b.pt")
    describe(tmp_path / "vit_b.pt")
    return tmp_path


def describe(weights: Path) -> None:
    sidecar = {"type": "vit_b", "sha256": sha256_of(weights)}
    weights.with_suffix(".json").write_text(json.dumps(sidecar))


def test_weights_that_can_be_mapped_go_in_as_they_are(fetched: Path) -> None:
    served = serving_weights("vit_b", fetched / "vit_b.pt", "float32")
    assert served == {"vit_b.pt": fetched / "vit_b.pt"}


@pytest.fixture
def fine_tuned(sam2_t_weights: Path, tmp_path: Path) -> Path:
    """The registered weights of a sam2_t, in the layout of Meta's files."""
    path = tmp_path / "sam2_t.mine.pt"
    path.hardlink_to(sam2_t_weights / "sam2_t.pt")
    path.with_suffix(".json").hardlink_to(sam2_t_weights / "sam2_t.json")
    return path


def test_sam_2s_published_file_goes_in_as_it_is(sam2_t_weights: Path) -> None:
    path = sam2_t_weights / "sam2_t.pt"
    assert torch.load(path, mmap=True).keys() == {"model"}
    assert serving_weights("sam2_t", path, "float32") == {"sam2_t.pt": path}


def test_registered_weights_of_sam_2_are_served_without_the_parts_for_videos(
    fine_tuned: Path,
) -> None:
    whole = torch.load(fine_tuned, mmap=True)["model"]
    [(name, path)] = serving_weights("sam2_t", fine_tuned, "float32").items()
    assert (name, path.parent.name) == ("sam2_t.pt", "sam2_t.mine-float32")
    served = torch.load(path, mmap=True)
    assert served.keys() == whole.keys() - random_weights.VIDEO_TENSORS.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in served.items())
    # The other layout: the tensors at the top.
    bare = fine_tuned.with_name("sam2_t.bare.pt")
    torch.save(served, bare)
    bare.with_suffix(".json").write_text(json.dumps({"sha256": sha256_of(bare)}))
    assert serving_weights("sam2_t", bare, "float32") == {"sam2_t.pt": bare}


def test_weights_that_cannot_be_mapped_are_rewritten(fetched: Path) -> None:
    content = torch.load(fetched / "vit_b.pt")
    torch.save(content, fetched / "vit_b.pt", _use_new_zipfile_serialization=False)
    describe(fetched / "vit_b.pt")
    [(name, path)] = serving_weights("vit_b", fetched / "vit_b.pt", "float32").items()
    assert name == "vit_b.pt"
    assert is_mappable(path)
    rewritten = torch.load(path)
    assert all(torch.equal(rewritten[key], tensor) for key, tensor in content.items())


def test_the_precision_of_the_yaml_is_the_archives_and_made_once(fetched: Path) -> None:
    [path] = serving_weights("vit_b", fetched / "vit_b.pt", "bfloat16").values()
    rounded = torch.load(path)
    assert rounded["image_encoder.x"].dtype == torch.bfloat16
    assert rounded["mask_decoder.x"].dtype == torch.float32
    before = path.stat().st_mtime_ns
    assert serving_weights("vit_b", fetched / "vit_b.pt", "bfloat16") == {"vit_b.pt": path}
    assert path.stat().st_mtime_ns == before
    torch.save({"image_encoder.x": torch.zeros(3)}, fetched / "vit_b.pt")
    describe(fetched / "vit_b.pt")
    serving_weights("vit_b", fetched / "vit_b.pt", "bfloat16")
    assert torch.load(path).keys() == {"image_encoder.x"}


@pytest.fixture
def registered(fetched: Path) -> Path:
    """The same weights, registered under a name."""
    path = fetched / "vit_b.mine.pt"
    (fetched / "vit_b.pt").rename(path)
    describe(path)
    return path


def test_registered_weights_that_are_plain_go_in_as_they_are(registered: Path) -> None:
    for _ in range(2):  # the second time the file is not read again
        assert serving_weights("vit_b", registered, "float32") == {"vit_b.pt": registered}
    assert not (registered.with_name("vit_b.mine-float32") / "vit_b.pt").exists()


@pytest.mark.parametrize("layout", ["training", "prefixed", "decoder"])
def test_registered_weights_of_another_layout_are_rewritten_once(
    registered: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = torch.load(registered)
    shared = torch.rand(1000, 9)
    tensors["mask_decoder.y"] = shared[3]  # a file would have all of `shared`
    prefixed = {f"sam.{key}": tensor for key, tensor in tensors.items()}
    content = {
        "training": {"model_state": prefixed, "optimizer_state": {"state": shared}, "epoch": 3},
        "prefixed": prefixed,
        "decoder": {**tensors, "decoder_state": {"x": shared}},
    }[layout]
    torch.save(content, registered)
    describe(registered)
    [(name, path)] = serving_weights("vit_b", registered, "float32").items()
    assert name == "vit_b.pt"
    assert path.parent.name == "vit_b.mine-float32"
    assert is_mappable(path)
    assert path.stat().st_size < 10_000 < registered.stat().st_size
    rewritten = torch.load(path)
    assert rewritten.keys() == tensors.keys()
    assert all(torch.equal(rewritten[key], tensor) for key, tensor in tensors.items())
    output = capsys.readouterr().out
    assert "converting" in output
    assert ("left out" in output) == (layout != "prefixed")
    before = path.stat().st_mtime_ns
    assert serving_weights("vit_b", registered, "float32") == {"vit_b.pt": path}
    assert (path.stat().st_mtime_ns, capsys.readouterr().out) == (before, "")
    torch.save(tensors, registered)  # plain weights replace them
    describe(registered)
    assert serving_weights("vit_b", registered, "float32") == {"vit_b.pt": registered}
    assert not path.exists()


def test_registered_weights_that_hold_code_stop_it(registered: Path, tmp_path: Path) -> None:
    torch.save({"model_state": {}, "init": Malice(tmp_path / "it ran")}, registered)
    describe(registered)
    with pytest.raises(SystemExit, match="could run code"):
        serving_weights("vit_b", registered, "float32")
    assert not (tmp_path / "it ran").exists()


def test_other_weights_than_those_described_are_refused(fetched: Path) -> None:
    check_digest(fetched / "vit_b.pt", fetched / "vit_b.json")
    with (fetched / "vit_b.pt").open("ab") as file:
        file.write(b"!")
    with pytest.raises(SystemExit, match="is not the file that"):
        check_digest(fetched / "vit_b.pt", fetched / "vit_b.json")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samserve.archives.build", "vit_t"]
    command += ["--weights-dir", str(tmp_path), "--model-store", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert str(tmp_path / "vit_t.pt") in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_killed_builds_left_is_removed(archive: Path, weights_dir: Path) -> None:
    left, young = (archive.parent / f".building-{name}" for name in ("left", "young"))
    for folder in (left, young):
        (folder / "main").mkdir(parents=True)
    os.utime(left, times=(0, 0))
    run_archiver(archive, "vit_t", members_of("vit_t", weights_dir / "vit_t.pt"))
    assert not left.exists()
    assert young.exists()
