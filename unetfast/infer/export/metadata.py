"""What an exported file says about itself: the same keys in all formats, each value JSON text (docs/export.md lists them)."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from unetfast.infer.load import TrainedModel

EXPORT_VERSION = 1


def build_metadata(trained: TrainedModel, *, size_hw: tuple[int, int]) -> dict[str, str]:
    """Describe classes, pixels and origin of an exported model.

    Args:
        trained: what is exported.
        size_hw: height and width at which the net works, pixels.
    """
    checkpoint, labels = trained.checkpoint, trained.checkpoint.labels
    normalize = trained.model.normalize
    tree: dict[str, Any] = {
        "export_version": EXPORT_VERSION,
        "unetfast_version": version("unetfast"),
        "class_names": labels.names,
        "palette": [list(info.color) for info in labels.classes],
        "source_values": [info.value for info in labels.classes],
        "source_ignore_value": labels.ignore_value,
        "ignore_index": labels.ignore_index,
        "num_classes": labels.num_classes,
        "size_hw": list(size_hw),
        "trained_size_hw": list(checkpoint.config.loader.size_hw),
        "mean": normalize.mean.tolist(),
        "std": normalize.std.tolist(),
        "model": checkpoint.config.model.model_dump(mode="json"),
        "dataset": checkpoint.dataset,
        "weights": trained.weights,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in tree.items()}
