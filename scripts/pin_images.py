"""Pin the images that deploy/ uses to their digests: `make pin-images`.

A tag may be moved to another image; a digest may not. This asks the registries, through
`docker buildx imagetools`, which image each tag names now, and writes `name:tag@sha256:…` into
deploy/. Run it again to move to newer images. Our own images, `samserve-…`, are built and have no
registry here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"

_IMAGE = re.compile(
    r"(?P<key>image:\s*|ARG BASE=|BASE: \$\{BASE:-)(?P<name>(?!samserve-)[\w./-]+:[\w.-]+)"
    r"(?:@sha256:[0-9a-f]{64})?"
)


def main() -> int:
    """Pin the images of all files, and return the exit status."""
    files = [DEPLOY / "docker" / "Dockerfile", *sorted(DEPLOY.rglob("*.yaml"))]
    try:
        for path in files:
            before = path.read_text()
            after = pinned(before, digest_of)
            if after != before:
                path.write_text(after)
                print(path.relative_to(DEPLOY.parent))
    except FileNotFoundError:
        print("docker is not installed, which asks the registries.", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        print(f"{exc.cmd[-1]}: {exc.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


def pinned(text: str, digest: Callable[[str], str]) -> str:
    """Return the text with the digest behind each foreign image.

    Args:
        digest: returns the digest of `name:tag`, as `sha256:…`.
    """
    return _IMAGE.sub(lambda found: f"{found['key']}{found['name']}@{digest(found['name'])}", text)


def digest_of(image: str) -> str:
    """Ask the image's registry for its digest.

    Raises:
        FileNotFoundError: there is no docker.
        subprocess.CalledProcessError: the registry does not answer, or has no such image.
        ValueError: the answer is no digest.
    """
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"]
    done = subprocess.run([*command, image], check=True, capture_output=True, text=True)
    digest = done.stdout.strip()
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{image}: {digest!r} is no digest")
    return digest


if __name__ == "__main__":
    sys.exit(main())
