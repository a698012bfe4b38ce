"""Several runs beside each other: what differs in their configs, what they came to, and whether that can be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unetfast.viz.report.record import Row, RunRecord, flatten
from unetfast.viz.series import collect

SCORES = ("mean_dice", "mean_iou", "pixel_accuracy", "loss")
# what tells nothing about the result of a run
_ASIDE = ("log.",)


@dataclass(frozen=True, slots=True)
class ClassDifference:
    """IoU of one class in the best validation pass of each run.

    Args:
        name: of the class.
        ious: one a run, None where the class is absent.
        spread: largest minus smallest of them.
    """

    name: str
    ious: list[float | None]
    spread: float


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a run was; medians over its rows, None where it has none.

    Args:
        images_per_s: training images a second.
        data_wait_pct: share of the time in which training waited for a batch.
        gpu_memory_gib: the most GPU memory that was taken; None on a CPU.
        device: where it ran last; "" where that is not recorded.
    """

    images_per_s: float | None
    data_wait_pct: float | None
    gpu_memory_gib: float | None
    device: str


@dataclass(slots=True)
class Comparison:
    """What differs between runs.

    Args:
        records: the runs; the first is what the others are compared with.
        labels: a short name for each, no two alike.
        config: dotted keys that differ, with the value in each run; None where a run has no such key.
        best: best validation row of each, None without one.
        last: last validation row of each, None without one.
        classes: the largest differences first; empty where the classes are not the same.
        speeds: one a run.
        reasons: why the scores cannot be compared; empty where they can.
        notes: what else a reader must know.
    """

    records: Sequence[RunRecord]
    labels: list[str]
    config: dict[str, list[Any]]
    best: list[Row | None]
    last: list[Row | None]
    classes: list[ClassDifference]
    speeds: list[Speed]
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_comparable(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Return all of it for `json.dumps`."""
        runs = [
            {
                "run": record.path,
                "outcome": record.outcome,
                "steps": record.num_steps,
                "best": _scores_of(best),
                "last": _scores_of(last),
                "images_per_s": speed.images_per_s,
                "data_wait_pct": speed.data_wait_pct,
                "gpu_memory_gib": speed.gpu_memory_gib,
                "device": speed.device,
            }
            for record, best, last, speed in zip(self.records, self.best, self.last, self.speeds, strict=True)
        ]
        return {
            "comparable": self.is_comparable,
            "reasons": self.reasons,
            "notes": self.notes,
            "runs": runs,
            "config": self.config,
            "classes": [{"name": one.name, "iou": one.ious, "spread": one.spread} for one in self.classes],
        }


def compare_records(records: Sequence[RunRecord]) -> Comparison:
    """Compare runs with the first of them.

    Raises:
        ValueError: fewer than two runs.
    """
    if len(records) < 2:
        raise ValueError("one run alone cannot be compared")
    best = [record.best_row() for record in records]
    labels = label_runs(records)
    reasons = find_reasons(records, best, labels)
    names = [record.class_names for record in records]
    return Comparison(
        records=records,
        labels=labels,
        config=differing_keys(records),
        best=best,
        last=[record.last_row() for record in records],
        classes=compare_classes(best) if all(part == names[0] for part in names) else [],
        speeds=[_speed_of(record) for record in records],
        reasons=reasons,
        notes=find_notes(records, labels),
    )


def label_runs(records: Sequence[RunRecord]) -> list[str]:
    """Name runs by their folders, or by their paths where two folders have one name."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [record.path for record in records]


def differing_keys(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """List the config keys that are not the same in all runs, in the order of the first config, but those of logging."""
    flat = [dict(flatten(record.config)) for record in records]
    keys = list(dict.fromkeys(key for tree in flat for key in tree))
    rows = {key: [tree.get(key) for tree in flat] for key in keys if not key.startswith(_ASIDE)}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def find_reasons(records: Sequence[RunRecord], best: Sequence[Row | None], labels: Sequence[str]) -> list[str]:
    """List why the scores of runs are not of the same thing."""
    reasons = []
    unknown = [label for record, label in zip(records, labels, strict=True) if not record.facts]
    if unknown:
        reasons.append(f"of {', '.join(unknown)} the data is not known (no facts.json: a run of an older version)")
    known = [(record, label) for record, label in zip(records, labels, strict=True) if record.facts]
    if len({record.facts["manifest_digest"] for record, _ in known}) > 1:
        reasons.append("the data differs: " + "; ".join(f"{label}: {_describe_data(record)}" for record, label in known))
    if any(record.class_names != records[0].class_names for record in records):
        reasons.append(
            "the classes differ: " + "; ".join(f"{a}: {len(r.class_names)}" for r, a in zip(records, labels, strict=True))
        )
    without = [label for row, label in zip(best, labels, strict=True) if row is None]
    if without:
        reasons.append(f"{', '.join(without)} has no validation scores")
    scored = [(record, row, label) for record, row, label in zip(records, best, labels, strict=True) if row is not None]
    facts = {
        "the validation images differ in number": [f"{row.get('num_images', '?'):,}" for _, row, _ in scored],
        "pixels are counted at other sizes": [_describe_size(record, row) for record, row, _ in scored],
        "the conventions of the scores differ": [str(row.get("convention", "not recorded")) for _, row, _ in scored],
    }
    for reason, values in facts.items():
        if len(set(values)) > 1:
            told = [f"{label}: {value}" for value, (_, _, label) in zip(values, scored, strict=True)]
            reasons.append(f"{reason} ({'; '.join(told)})")
    return reasons


def find_notes(records: Sequence[RunRecord], labels: Sequence[str]) -> list[str]:
    """List what limits a comparison without forbidding it."""
    notes = []
    if any(record.config.get("loss") != records[0].config.get("loss") for record in records):
        notes.append("[loss] differs: losses are not on one scale, scores are")
    metrics = [record.best_metric for record in records]
    if len(set(metrics)) > 1:
        notes.append(f"the best pass was chosen by other metrics: {_join(labels, metrics)}")
    seeds = [record.value("train.seed") for record in records]
    if len(records) == 2 and not set(differing_keys(records)) - {"train.seed"} and seeds[0] != seeds[1]:
        notes.append("nothing but the seed differs: the differences are those of chance")
    unfinished = [label for record, label in zip(records, labels, strict=True) if record.outcome != "finished"]
    if unfinished:
        outcomes = [record.outcome for record in records]
        notes.append(f"not all runs came to their end: {_join(labels, outcomes)}")
    return notes


def compare_classes(best: Sequence[Row | None]) -> list[ClassDifference]:
    """Compare the classes of validation rows that have the same ones, the largest differences first."""
    rows = [row for row in best if row is not None and row.get("classes")]
    if len(rows) < len(best):
        return []
    found = []
    for place, entry in enumerate(rows[0]["classes"]):
        ious = [row["classes"][place]["iou"] for row in rows]
        there = [iou for iou in ious if iou is not None]
        found.append(ClassDifference(entry["name"], ious, max(there) - min(there) if len(there) > 1 else 0.0))
    return sorted(found, key=lambda one: -one.spread)


def _join(labels: Sequence[str], values: Sequence[object]) -> str:
    return "; ".join(f"{label}: {value}" for label, value in zip(labels, values, strict=True))


def _describe_data(record: RunRecord) -> str:
    counts = " / ".join(f"{split['samples']:,} {name}" for name, split in record.facts["splits"].items())
    return f"{record.facts['dataset']}, {counts}, digest {record.facts['manifest_digest']}"


def _describe_size(record: RunRecord, row: Row) -> str:
    if row.get("size") == "source":
        return "stored size"
    size = record.value("loader.size_hw")
    return f"training size {size[0]}x{size[1]}" if size else "training size"


def _speed_of(record: RunRecord) -> Speed:
    def median(key: str) -> float | None:
        values = collect(record.rows, "train", key)[1]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else None

    memory = collect(record.rows, "train", "gpu_memory_gib")[1]
    device = record.starts[-1]["device"] if record.starts else ""
    most = float(np.nanmax(memory)) if np.isfinite(memory).any() else None
    return Speed(median("images_per_s"), median("data_wait_pct"), most, device)


def _scores_of(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    weights = "ema" if row["kind"] == "val_ema" else "raw"
    return {key: row.get(key) for key in ("epoch", "step", *SCORES)} | {"weights": weights}
