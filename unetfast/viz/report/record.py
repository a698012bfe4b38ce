"""What the files of a run folder say, as data: all that a page about it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Row = dict[str, Any]
LOWER_IS_BETTER = frozenset({"val_loss"})
VALIDATION_KINDS = ("val", "val_ema")


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the worst or best samples.

    Args:
        kind: "worst" or "best".
        name: path of the image in its source.
        iou: mean over the classes of this image; in [0, 1].
        accuracy: share of its labelled pixels that are right.
        picture: a picture file (image, truth, prediction, error).
        media_type: of it, such as "image/jpeg".
    """

    kind: str
    name: str
    iou: float | None
    accuracy: float | None
    picture: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder tells it.

    Args:
        name: of the run folder.
        path: of the run folder, as the user gave it.
        config: resolved, as nested tables.
        defaults: the defaults of the same tables; what differs from them is marked.
        rows: of metrics.jsonl, in order.
        facts: of facts.json; empty for a run of an older version.
        validation: the best validation pass in detail; the last one where none was the best; None without any.
        samples: worst and best ones of the best pass.
        pictures: (caption, picture file, media type) of predictions.
    """

    name: str
    path: str
    config: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None
    samples: Sequence[Sample] = ()
    pictures: Sequence[tuple[str, bytes, str]] = ()

    @property
    def best_metric(self) -> str:
        return str(self.config.get("checkpoint", {}).get("best_metric", "mean_dice"))

    @property
    def class_names(self) -> list[str]:
        """Names in the order of class ids; of an older run those of its last validation."""
        if "classes" in self.facts:
            return [entry["name"] for entry in self.facts["classes"]]
        row = self.last_row()
        return [entry["name"] for entry in row["classes"]] if row else []

    @property
    def class_colors(self) -> list[tuple[int, int, int]]:
        """Display colours; grey for an older run, which does not tell them."""
        if "classes" in self.facts:
            return [(color[0], color[1], color[2]) for color in (entry["color"] for entry in self.facts["classes"])]
        return [(150, 150, 160)] * len(self.class_names)

    @property
    def starts(self) -> list[dict[str, Any]]:
        return list(self.facts.get("starts", ()))

    @property
    def num_steps(self) -> int:
        """The last step that anything is known of."""
        return max([row["step"] for row in self.rows] + [start.get("end_step", 0) for start in self.starts], default=0)

    @property
    def outcome(self) -> str:
        """How the run ended, in words for people."""
        if not self.starts:
            return "not recorded"
        last = self.starts[-1]
        words = {
            "finished": "finished",
            "max_steps": "stopped by train.max_steps",
            "early_stop": "stopped early",
            "signal": "stopped by a signal",
        }
        return words.get(last["outcome"], last["outcome"]) if "outcome" in last else "running, or killed"

    @property
    def warnings(self) -> list[str]:
        """What the run warned of, each once; of validation passes with the last step at which it was so."""
        steps = {line: row["step"] for row in self.rows for line in row.get("warnings", ())}
        found = [line for start in self.starts for line in start.get("warnings", ())]
        found += [line for row in (self.last_row(), self.best_row()) if row for line in row.get("warnings", ())]
        return [f"{line} (validation at step {steps[line]:,})" if line in steps else line for line in dict.fromkeys(found)]

    def last_row(self, kind: str = "val") -> Row | None:
        """Return the last validation row of a kind."""
        return next((row for row in reversed(self.rows) if row["kind"] == kind), None)

    def best_row(self) -> Row | None:
        """Return the best validation row by `checkpoint.best_metric`, the first where several are equal.

        Rows of raw weights and of their average both count, as in the choice of best.pt.
        """
        metric = self.best_metric
        key = "loss" if metric == "val_loss" else metric
        rows = [row for row in self.rows if row["kind"] in VALIDATION_KINDS and row.get(key) is not None]
        if not rows:
            return None
        choose = min if metric in LOWER_IS_BETTER else max
        best: Row = choose(rows, key=lambda row: row[key])
        return best

    def confusion_KK(self) -> np.ndarray | None:
        """Return the confusion matrix of the validation pass, int64, (K, K), true classes in rows."""
        if self.validation is None:
            return None
        cells, num_classes = self.validation["confusion"], self.validation["num_classes"]
        matrix_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
        matrix_KK[cells["true"], cells["pred"]] = cells["pixels"]
        return matrix_KK

    def image_scores(self) -> np.ndarray:
        """Return the IoU of each image that has one, float64, (n,)."""
        images = (self.validation or {}).get("images", {})
        return np.array([score for score in images.get("iou", ()) if score is not None], dtype=np.float64)

    def value(self, key: str) -> Any:
        """Look up a dotted key of the config; None where it is not there."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the leaves of nested tables under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
