"""The settings of the embedding cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from samserve.machine import memory_folder


class CacheSettings(BaseModel):
    """How many embeddings are kept, so that a known image is not encoded again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool
    memory_bytes: int = Field(ge=0)
    machine_bytes: int = Field(ge=0)
    directory: Path | None
    redis_url: str | None = None  # by the environment only: an archive is no place for passwords

    def resolve_directory(self) -> Path:
        """The setting; or, where it is null, this user's own folder in shared memory."""
        if self.directory is not None:
            return self.directory
        parent = memory_folder() or Path(tempfile.gettempdir())
        return parent / f"samserve-{os.getuid()}"
