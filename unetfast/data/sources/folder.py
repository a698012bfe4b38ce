"""Placeholder."""

from __future__ import annotations

from pathlib import Path

from unetfast.data.sources.base import SourceOptions, SourceScan
from unetfast.errors import UserError

LOOKED_FOR = "not there yet"


def recognize(root: Path) -> str:
    """Say nothing fits."""
    return ""


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """Refuse."""
    raise UserError(f"{root}: not there yet")
