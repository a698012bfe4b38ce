"""What a run folder says of its run besides its numbers: facts.json, and the last and best validation pass in detail.

With config.toml and metrics.jsonl this is all that a report or a comparison needs (`unetfast.train.history` reads it), so
that neither asks for shards, checkpoints or torch.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unetfast.infer.evaluate import Evaluation
from unetfast.train.display import Display
from unetfast.train.history import write_report
from unetfast.train.log import MetricsLog
from unetfast.train.progress import write_progress
from unetfast.train.run import Run
from unetfast.train.samples import draw_samples
from unetfast.train.sinks.base import RunIdentity
from unetfast.wholefile import write_whole

FACTS_VERSION = 1
_PACKAGES = ("torch", "numpy", "pillow", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def write_facts(run: Run, shards: Path) -> None:
    """Write facts.json: data set, model, and one entry more in the list of the run's starts."""
    if not run.world.is_main:
        return
    path = run.folder.facts
    starts = _read_starts(path) if run.step else []
    starts.append(
        {
            "began": _now(),
            "step": run.step,
            "device": _name_of_device(run.device),
            "number_format": "float32" if run.amp.name == "off" else run.amp.name,
            "compiled": run.compiled,
            "loader": run.loader.backend,
            "versions": _versions(),
        }
    )
    manifest = run.manifest
    tree = {
        "format_version": FACTS_VERSION,
        "shards": str(shards),
        "dataset": manifest.dataset,
        "layout": manifest.layout,
        "manifest_digest": manifest.digest(),
        "split_rule": manifest.split_rule,
        "ignore_index": manifest.ignore_index,
        "classes": [{"name": info.name, "color": list(info.color)} for info in manifest.labels.classes],
        "splits": {name: _facts_of_split(split) for name, split in manifest.splits.items()},
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "starts": starts,
    }
    _write_json(path, tree)


def identify_run(run: Run) -> RunIdentity:
    """Say of a run what its sinks need to know."""
    return RunIdentity(run.folder.path, run.config.log.project, run.config.model_dump(mode="json"), run.step)


def note_end(run: Run, outcome: str, warnings: Sequence[str]) -> None:
    """Write into facts.json how the latest start of the run ended, and of what it warned.

    Args:
        run: where it stands.
        outcome: "finished", "max_steps", "early_stop" or "signal".
        warnings: in the order in which they were said.
    """
    path = run.folder.facts
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["starts"][-1] |= {"ended": _now(), "end_step": run.step, "outcome": outcome, "warnings": list(warnings)}
    _write_json(path, tree)


def write_validation(run: Run, evaluation: Evaluation, *, improved: bool, weights: str = "raw") -> None:
    """Write a validation pass in detail: its confusion matrix and the scores of each image.

    Args:
        run: where it stands.
        evaluation: the pass.
        improved: whether it is the best so far; it is kept apart from later ones then.
        weights: which ones were scored, "raw" or "ema".
    """
    if not run.world.is_main:
        return
    confusion_KK, images = evaluation.confusion_KK, evaluation.images
    true, pred = (place.tolist() for place in torch.nonzero(confusion_KK, as_tuple=True))
    tree: dict[str, Any] = {
        "format_version": FACTS_VERSION,
        "step": run.step,
        "epoch": run.epoch,
        "weights": weights,
        "size": evaluation.size,
        "num_images": evaluation.num_images,
        "num_classes": len(confusion_KK),
        "confusion": {"true": true, "pred": pred, "pixels": confusion_KK[true, pred].tolist()},
        "images": {"sample": [], "iou": [], "accuracy": []},
    }
    if images is not None:
        tree["images"] = {
            "sample": images.sample_ids.tolist(),
            "iou": [_rounded(value) for value in images.iou.tolist()],
            "accuracy": [_rounded(value) for value in images.accuracy.tolist()],
        }
    _write_json(run.folder.validation, tree)
    if improved:
        _write_json(run.folder.best_validation, tree)


def finish_record(run: Run, log: MetricsLog, display: Display, stopped: str) -> None:
    """Finish what the run folder says of a run that ends: facts.json, progress.gif, samples/ and report.html.

    A run that a signal stopped is to end at once: only its end is noted, and `unetfast report` makes the rest.

    Args:
        run: where it stands.
        log: its rows, and its sinks, which are told how it ended.
        display: says where the report is; knows the warnings.
        stopped: "" at the end of the last epoch, or by what the run was stopped.
    """
    if not run.world.is_main:
        return
    note_end(run, stopped or "finished", display.warnings)
    if stopped == "signal":
        log.outcome = "stopped"
        return
    if run.config.log.gif:
        write_progress(run.folder, run.labels.palette, max_epoch=run.epoch, is_inside=run.epoch_in_work > run.epoch)
    if run.config.log.report:
        draw_samples(run)
        write_report(run.folder.path, run.folder.report)
        display.say(f"report  {run.folder.report}")


def _facts_of_split(split: Any) -> dict[str, Any]:
    names = ("samples", "groups", "min_hw", "max_hw", "mean", "std", "class_pixels", "class_images", "ignored_pixels")
    return {name: getattr(split, name) for name in names}


def _read_starts(path: Path) -> list[dict[str, Any]]:
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError):  # a run of an older version, or facts that somebody removed: they begin anew
        return []
    return starts


def _versions() -> dict[str, str]:
    found = {"unetfast": version("unetfast"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["CUDA of torch"] = torch.version.cuda
    return found


def _name_of_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    text = json.dumps(tree, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
