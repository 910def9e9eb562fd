"""The settings of a worker as they are published."""

from __future__ import annotations

from samserve.archives.settings import settings_of
from samserve.serving.model_settings import ModelSettings

SETTINGS = ModelSettings.from_yaml(settings_of("vit_t"), {})
"""MobileSAM's settings, without environment variables."""
