"""The contract of a sink, and what all of them are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Row = dict[str, Any]
Outcome = Literal["finished", "stopped", "failed"]
_PLACES = ("kind", "step", "epoch")


class Sink(Protocol):
    """Shows rows of metrics and pictures elsewhere.

    Called from one thread, in order. Each method may raise what it likes: a sink is given to a `Carrier`, which counts what
    was not taken and never lets it reach training.
    """

    name: str  # for people

    def add_row(self, row: Row) -> None:
        """Take one row of metrics.jsonl; kinds that the sink does not know are shown like the others."""
        ...

    def add_picture(self, name: str, path: Path, step: int) -> None:
        """Take a picture.

        Args:
            name: of the series that it belongs to, such as "predictions".
            path: a PNG in the run folder.
            step: optimizer steps done.
        """
        ...

    def close(self, outcome: Outcome) -> None:
        """Finish the record; nothing is added afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a sink needs to know of a run.

    Args:
        folder: the run folder.
        project: `log.project`.
        config: resolved, as nested tables.
        step: optimizer steps done before; 0 for a new run.
    """

    folder: Path
    project: str
    config: dict[str, Any]
    step: int = 0

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def scalars_of(row: Row) -> Iterator[tuple[str, float]]:
    """List the numbers of a row as `kind/key`, and the IoU of its classes as `kind_iou/class`; undefined ones are left out."""
    kind = row["kind"]
    for key, value in row.items():
        if key not in _PLACES and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{kind}/{key}", value
    for entry in row.get("classes", ()):
        if entry["iou"] is not None:
            yield f"{kind}_iou/{entry['name']}", entry["iou"]


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the leaves of nested tables under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
