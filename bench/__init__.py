"""The benchmarks compare this server with the reference implementation. They are not installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The root of the git clone."""
