"""metrics.jsonl: nothing stands twice behind a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unetfast.train.log import MetricsLog, read_rows


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 1, "loss": 0.5, **more}


def write(path: Path, *steps: int) -> None:
    with MetricsLog(path) as log:
        for step in steps:
            log.add(row(step))


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.add(row(10))
        assert read_rows(path) == [row(10)]


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
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
    with MetricsLog(path, keep_rows=2, step=20) as log:
        log.add(row(30))
        assert [entry["step"] for entry in log.rows] == [10, 20, 30]
    assert [entry["step"] for entry in read_rows(path)] == [10, 20, 30]


def test_resume_with_the_file_gone_goes_on(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", keep_rows=5, step=50) as log:
        assert log.rows == []
