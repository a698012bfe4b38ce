"""A tiny training run with everything random switched on, driven in this process or in a new one.

    python toy_run.py SHARDS OUT CONFIG_JSON IDS_FILE [resume] [signal=NAME:STEP]

Appends a line to IDS_FILE for each optimizer step: its number and the sample ids of its batch, in order.
"""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unetfast.checkpoint import load_checkpoint
from unetfast.config import build_config
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy
from unetfast.train import loop
from unetfast.train.log import read_rows
from unetfast.train.loop import TrainResult

TREE: dict[str, dict[str, Any]] = {
    "model": {"base_channels": 4, "depth": 2, "dropout": 0.3},
    "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 2},
    "augment": {
        "hflip": {"prob": 0.5},
        "rotation": {"prob": 0.5},
        "resized_crop": {"prob": 0.5},
        "brightness": {"prob": 0.5},
    },
    "train": {"epochs": 4, "amp": "off", "device": "cpu", "accumulation": 2, "seed": 11},
    "optimizer": {"learning_rate": 3e-3, "clip_norm": 1.0},
    "schedule": {
        "name": "plateau",
        "plateau_metric": "mean_iou",
        "plateau_patience": 0,
        "plateau_factor": 0.5,
        "warmup_steps": 2,
    },
    "ema": {"decay": 0.9},
    "checkpoint": {"every_steps": 2},
    "log": {
        "every_steps": 2,
        "tensorboard": False,
        "report": False,
        "gif": False,
        "num_panels": 1,
        "num_saved_images": 0,
        "panels_every_epochs": 2,
    },
}


def make_tree(**sections: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    for name, values in sections.items():
        tree[name] |= values
    return tree


def make_shards(root: Path) -> Path:
    """10 pictures to train on, 5 to validate on: an epoch ends inside every other batch of 4."""
    write_toy(root / "src", "carvana", num_groups=3, seed=0, images_per_group=5, size_hw=(40, 60))
    pack(root / "src", root / "shards", options=PackOptions(val_fraction=0.34), workers=1)
    return root / "shards"


def run_here(
    shards: Path,
    out: Path,
    tree: dict[str, Any],
    *,
    resume: bool = False,
    ids: Path | None = None,
    signal_at: tuple[int, int] = (0, 0),
    console: Console | None = None,
) -> TrainResult:
    """Train in this process.

    Args:
        shards: shard folder.
        out: run folder.
        tree: config.
        resume: go on.
        ids: file for the sample ids of each step.
        signal_at: number of a signal, and the step in which the process sends it to itself.
        console: where the run speaks to.
    """
    original = loop.train_step

    def step_and_note(run: Any, batch: Any) -> None:
        sample_ids = batch.sample_ids.tolist()
        original(run, batch)
        if ids is not None:
            with ids.open("a") as file:
                file.write(f"{run.step} {sample_ids}\n")
        if signal_at[0] and run.step == signal_at[1]:
            os.kill(os.getpid(), signal_at[0])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loop.train_step = step_and_note
    try:
        return loop.train(shards, build_config(tree), out, resume=resume, console=console or Console(file=io.StringIO()))
    finally:
        loop.train_step = original
        torch.set_num_threads(threads)


def start_process(
    shards: Path, out: Path, tree: dict[str, Any], *options: str, ids: Path | None = None
) -> subprocess.Popen[str]:
    """Start the same in a new process, in a process group of its own."""
    script = [sys.executable, __file__, str(shards), str(out), json.dumps(tree), str(ids or os.devnull), *options]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.Popen(
        script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def run_process(shards: Path, out: Path, tree: dict[str, Any], *options: str, ids: Path | None = None) -> int:
    """Run in a new process to its end; returns its exit code."""
    process = start_process(shards, out, tree, *options, ids=ids)
    said, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 130, 143), said
    return process.returncode


def assert_same_state(one: Path, other: Path) -> None:
    """Compare two run folders' last.pt: step, weights, optimizer, schedule, random states, sums and place in the stream."""
    first, second = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for part in ("step", "epoch", "weights", "ema", "optimizer", "schedule", "loader", "rng", "metrics", "best"):
        assert_equal_trees(getattr(first, part), getattr(second, part), part)
    assert_equal_trees(first.progress["meter"], second.progress["meter"], "meter")
    assert numbers_of(one) == numbers_of(other)


def assert_equal_trees(one: Any, other: Any, path: str) -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal_trees(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_equal_trees(mine, theirs, f"{path}[{place}]")
    else:
        assert one == other, path


def numbers_of(out: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the times."""
    timed = ("images_per_s", "data_wait_pct", "step_s")
    return [{key: value for key, value in row.items() if key not in timed} for row in read_rows(out / "metrics.jsonl")]


def main() -> None:
    shards, out, tree, ids, *options = sys.argv[1:]
    signal_at = (0, 0)
    for option in options:
        if option.startswith("signal="):
            name, step = option.removeprefix("signal=").split(":")
            signal_at = (signal.Signals[name].value, int(step))
    resume = "resume" in options
    result = run_here(Path(shards), Path(out), json.loads(tree), resume=resume, ids=Path(ids), signal_at=signal_at)
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
