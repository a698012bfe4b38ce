"""Made-up runs for pages: any number of classes, with names that try to break out of markup."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from unetfast.config import Config
from unetfast.viz.report.record import RunRecord, Sample

EVIL = ['<b>sky</b> & "sea"', "</script><img src=x onerror=alert(1)>", "it's \u2028 <!-- \x07", "日本語 ñ"]
CONVENTION = "one confusion matrix over all labelled pixels"


def make_confusion(num_classes: int, seed: int = 0) -> np.ndarray:
    """Counts in pixels; the last of several classes is absent."""
    rng = np.random.default_rng(seed)
    matrix_KK = rng.integers(0, 40, (num_classes, num_classes)) * (rng.random((num_classes, num_classes)) < 0.2)
    matrix_KK[np.diag_indices(num_classes)] = rng.integers(100, 900, num_classes)
    if num_classes > 1:
        matrix_KK[-1], matrix_KK[:, -1] = 0, 0
    return matrix_KK.astype(np.int64)


def make_names(num_classes: int) -> list[str]:
    return [EVIL[k] if k < len(EVIL) else f"class {k}" for k in range(num_classes)]


def make_classes(matrix_KK: np.ndarray, factor: float = 1.0) -> list[dict[str, Any]]:
    hits_K, true_K, pred_K = matrix_KK.diagonal(), matrix_KK.sum(axis=1), matrix_KK.sum(axis=0)
    union_K = true_K + pred_K - hits_K
    return [
        {
            "name": name,
            "iou": factor * int(hits_K[k]) / int(union_K[k]) if union_K[k] else None,
            "dice": factor * 2 * int(hits_K[k]) / int(true_K[k] + pred_K[k]) if union_K[k] else None,
            "pixels": int(true_K[k]),
        }
        for k, name in enumerate(make_names(len(matrix_KK)))
    ]


def make_rows(num_classes: int, *, epochs: int = 5, has_val: bool = True, has_ema: bool = True) -> list[dict[str, Any]]:
    """10 steps an epoch; scores grow, those of the average are better by 0.01."""
    matrix_KK = make_confusion(num_classes)
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in range(10 * epoch - 9, 10 * epoch + 1):
            speed = {"images_per_s": 100.0 + step % 7, "data_wait_pct": float(step % 5), "step_s": 0.1}
            rate = {"learning_rate": 1e-3 / step, "gpu_memory_gib": 2.0}
            rows.append({"kind": "train", "step": step, "epoch": epoch, "loss": 3.0 / step, **rate, **speed})
        scores = {"loss": 2.0 / epoch, "mean_iou": 0.1 * epoch, "mean_dice": 0.15 * epoch, "pixel_accuracy": 0.18 * epoch}
        rows.append({"kind": "epoch", "step": 10 * epoch, "epoch": epoch, **scores})
        for kind in ("val", "val_ema")[: 1 + has_ema] if has_val else ():
            better = {key: value + 0.01 * (kind == "val_ema") for key, value in scores.items()}
            more = {"num_images": 40, "size": "training", "convention": CONVENTION, "warnings": [f"warned <{kind}>"]}
            classes = make_classes(matrix_KK, epoch / epochs)
            rows.append({"kind": kind, "step": 10 * epoch, "epoch": epoch, **better, "classes": classes, **more})
    rows.append({"kind": "bad_step", "step": 10 * epochs + 1, "keys": ["a"], "loss": None})
    rows.append({"kind": "of a later version", "step": 10 * epochs + 2, "anything": {"at": "all"}})
    return rows


def make_validation(num_classes: int, *, step: int = 50, num_images: int = 40) -> dict[str, Any]:
    matrix_KK = make_confusion(num_classes)
    true, pred = np.nonzero(matrix_KK)
    scores: list[float | None] = [*np.linspace(0.05, 0.95, num_images - 1).tolist(), None]
    return {
        "format_version": 1,
        "step": step,
        "epoch": step // 10,
        "weights": "ema",
        "size": "training",
        "num_images": num_images,
        "num_classes": num_classes,
        "confusion": {"true": true.tolist(), "pred": pred.tolist(), "pixels": matrix_KK[true, pred].tolist()},
        "images": {"sample": list(range(num_images)), "iou": scores, "accuracy": scores},
    }


def make_facts(num_classes: int, *, starts: int = 2, digest: str = "0123456789abcdef") -> dict[str, Any]:
    split = {"groups": 3, "min_hw": [40, 60], "max_hw": [80, 60], "mean": [0.1, 0.2, 0.3], "std": [0.2] * 3}
    split |= {"class_pixels": [10 * k for k in range(num_classes)], "class_images": [1] * num_classes, "ignored_pixels": 7}
    common = {"began": "2026-01-02T03:04:05+00:00", "device": "a <device>", "number_format": "bf16", "loader": "cpu"}
    list_of_starts: list[dict[str, Any]] = [
        {**common, "step": 20 * place, "compiled": True, "versions": {"unetfast": "0.1.0", "torch": "2"}, "outcome": "signal"}
        for place in range(starts)
    ]
    for start in list_of_starts:
        start |= {"end_step": start["step"] + 20, "ended": "2026-01-02T04:04:05+00:00", "warnings": ["small <split>"]}
    list_of_starts[-1]["outcome"] = "early_stop"
    return {
        "shards": "shards & <more>/",
        "dataset": "folder",
        "layout": "a layout",
        "manifest_digest": digest,
        "split_rule": "by group",
        "classes": [{"name": name, "color": [k % 256, 80, 160]} for k, name in enumerate(make_names(num_classes))],
        "splits": {"train": {"samples": 160, **split}, "val": {"samples": 40, **split}},
        "parameters": 1234,
        "starts": list_of_starts,
    }


def make_picture(color: tuple[int, int, int] = (200, 90, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 90), color).save(buffer, format="JPEG")
    return buffer.getvalue()


def make_record(num_classes: int = 4, *, name: str = "toy <run> & co", **changes: Any) -> RunRecord:
    """A whole record; `changes` replace its fields."""
    config = Config().model_dump(mode="json")
    config["train"]["epochs"] = 8
    samples = [
        Sample(kind, f"{kind}/<{k}>.jpg", 0.1 * k, 0.5, make_picture(), "image/jpeg")
        for kind in ("worst", "best")
        for k in range(3)
    ]
    fields: dict[str, Any] = {
        "name": name,
        "path": f"runs/{name}",
        "config": config,
        "defaults": Config().model_dump(mode="json"),
        "rows": make_rows(num_classes),
        "facts": make_facts(num_classes),
        "validation": make_validation(num_classes),
        "samples": samples,
        "pictures": [("before training", make_picture(), "image/jpeg")],
    }
    return RunRecord(**(fields | changes))
