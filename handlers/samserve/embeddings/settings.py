"""This module has the settings of the embedding cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from samserve.machine import memory_folder


class CacheSettings(BaseModel):
    """The settings of the embedding cache, as in a model's YAML.

    Attributes:
        enabled: whether embeddings are kept at all.
        memory_bytes: the memory of each worker for images; 0 to keep none.
        machine_bytes: the bytes of the folder that the workers of a machine share; 0 for none.
        directory: that folder; None for the user's folder in shared memory.
        redis_url: the Redis that machines share, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool
    memory_bytes: int = Field(ge=0)
    machine_bytes: int = Field(ge=0)
    directory: Path | None
    redis_url: str | None = None  # from the environment only: an archive must not have passwords

    def resolve_directory(self) -> Path:
        """Return `directory`; if that is None, this user's folder in shared memory."""
        if self.directory is not None:
            return self.directory
        parent = memory_folder() or Path(tempfile.gettempdir())
        return parent / f"samserve-{os.getuid()}"
