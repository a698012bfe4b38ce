"""metrics.jsonl and TensorBoard: nothing stands twice behind a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unetfast.train.log import MetricsLog, read_rows


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 1, "loss": 0.5, **more}


def write(path: Path, *steps: int) -> None:
    with MetricsLog(path, tensorboard=None) as log:
        for step in steps:
            log.add(row(step))


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, tensorboard=None) as log:
        log.add(row(10))
        assert read_rows(path) == [row(10)]


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, tensorboard=None) as log:
        log.add(row(10, loss=math.nan, images_per_s=math.inf, mean_iou=None))
    found = json.loads(path.read_text())
    assert (found["loss"], found["images_per_s"], found["mean_iou"]) == (None, None, None)


def test_new_log_begins_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    write(path, 3)
    assert [entry["step"] for entry in read_rows(path)] == [3]


def test_resume_cuts_what_came_behind_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20, 30, 40)
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # killed while it wrote
    with MetricsLog(path, tensorboard=None, keep_rows=2, step=20) as log:
        log.add(row(30))
        assert [entry["step"] for entry in log.rows] == [10, 20, 30]
    assert [entry["step"] for entry in read_rows(path)] == [10, 20, 30]


def test_resume_with_the_file_gone_goes_on(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=None, keep_rows=5, step=50) as log:
        assert log.rows == []


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "tensorboard"
    classes = [{"name": "car", "iou": 0.25, "dice": 0.4, "pixels": 7}, {"name": "sky", "iou": None, "dice": None, "pixels": 0}]
    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=folder) as log:
        for step in (10, 20, 30):
            log.add(row(step, loss=step / 100))
        log.add({"kind": "val", "step": 30, "epoch": 1, "mean_iou": 0.25, "classes": classes, "warnings": []})
    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=folder, keep_rows=1, step=10) as log:
        log.add(row(20, loss=0.5))
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("train/loss")] == [(10, 0.1), (20, 0.5)]
    assert "val_iou/sky" not in events.Tags()["scalars"]
