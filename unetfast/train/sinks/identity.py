"""Which run of a foreign record belongs to a run folder: sinks.json, so that a resumed run goes on in the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unetfast.errors import UserError
from unetfast.wholefile import write_whole

IDS_NAME = "sinks.json"


def read_ids(folder: Path, sink: str) -> dict[str, str]:
    """Read what a sink has kept in a run folder; empty where it has kept nothing.

    Raises:
        UserError: the file is damaged.
    """
    return _read(folder).get(sink, {})


def write_ids(folder: Path, sink: str, ids: dict[str, str]) -> None:
    """Keep the ids of a sink in a run folder; those of others stay."""
    tree = _read(folder) | {sink: ids}
    write_whole(folder / IDS_NAME, lambda file: file.write((json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()))


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / IDS_NAME
    if not path.exists():
        return {}
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, and new runs are begun in the sinks") from None
    if not isinstance(tree, dict) or not all(isinstance(ids, dict) for ids in tree.values()):
        raise UserError(f"{path}: does not hold the ids of a run; remove it, and new runs are begun in the sinks")
    return tree
