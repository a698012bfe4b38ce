"""The whole job: from a raw folder to a trained epoch, R1's way and ours, packing counted.

    python benchmarks/whole_job.py

A subset of Carvana in R1's four folders, 160x240, batch 16, a U-Net of 16 base channels, validation and a checkpoint after each
epoch, rotation and flips. R1's way is our re-creation of its program (peers/r1_job.py); ours is `unetfast shard` at training
size and `unetfast train --preset r1`; --originals does it also with the originals packed as they are. Every job is made of
fresh processes, so interpreter, imports and packing stand in its time; jobs take turns. The record says from which epoch on
ours is ahead: epochs past those that were run are taken to last as long as the last one. Scores are in the record, but a few
steps teach no net anything.

Prints a table and one JSON line last; the exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import material
from loader_data import REAL_FOLDERS, list_pairs
from peers.loading import Pair

from unetfast.bench.harness import SideError, format_spread, format_table, spread, take_turns
from unetfast.bench.toyshards import draw_toy
from unetfast.errors import UserError

R1, AS_THEY_ARE, AT_SIZE = "R1", "ours, originals packed", "ours, packed at size"
_COMMAND_TIMEOUT_S = 240.0
_MOST_EPOCHS = 1000  # ahead by then, or never


@dataclass(frozen=True, slots=True)
class Job:
    """What all sides are to do.

    Args:
        data: folder with train_images/ train_masks/ val_images/ val_masks/.
        size_hw: height and width of training, pixels.
        batch_size: images of a step.
        base_channels: of the net.
        epochs: to train.
        workers: of R1's DataLoader; R1 and R2 state 2.
    """

    data: Path
    size_hw: tuple[int, int]
    batch_size: int
    base_channels: int
    epochs: int
    workers: int


@dataclass(frozen=True, slots=True)
class Took:
    """One run of a job; seconds from its beginning.

    Args:
        pack_s: when packing was through; 0 where nothing is packed.
        epoch_ends_s: when each epoch was trained, validated and saved.
        total_s: when the last process had ended.
        core_s: processor time of all its processes.
        scores: of the validation images after the last epoch.
        config: of our run, resolved, as it was written into its folder; empty for others.
    """

    pack_s: float
    epoch_ends_s: list[float]
    total_s: float
    core_s: float
    scores: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)


def make_four_folders(pairs: Sequence[Pair], out: Path, *, num_train: int, num_val: int) -> tuple[int, int]:
    """Link a subset of Carvana into R1's folders; no car stands on both sides.

    Returns:
        How many images there are to train and to validate; validation takes whole cars.

    Raises:
        UserError: there are too few cars.
    """
    cars: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.image.name):
        cars.setdefault(pair.image.stem.rpartition("_")[0], []).append(pair)
    val: list[Pair] = []
    held_back = sorted(cars, key=lambda car: len(cars[car]))  # the least photographed first
    while len(val) < num_val and held_back:
        val += cars[held_back.pop(0)]
    train = [pair for car in sorted(held_back) for pair in cars[car]][:num_train]
    if not train:
        raise UserError(f"{len(cars)} cars: too few to hold {num_val} images back and train on others")
    for split, chosen in (("train", train), ("val", val)):
        for pair in chosen:
            for file, name in ((pair.image, f"{split}_images"), (pair.mask, f"{split}_masks")):
                (out / name).mkdir(parents=True, exist_ok=True)
                (out / name / file.name).symlink_to(file.resolve())
    return len(train), len(val)


def run_r1(job: Job, work: Path) -> Took:
    """Do the job R1's way.

    Raises:
        SideError: its program failed.
    """
    program = Path(__file__).parent / "peers" / "r1_job.py"
    options = {"epochs": job.epochs, "base-channels": job.base_channels, "batch-size": job.batch_size, "workers": job.workers}
    size = ["--size", *map(str, job.size_hw)]
    clock = _Clock()
    text = _run([str(program), str(job.data), str(work / "out"), *size, *_flags(options)], work, R1)
    total_s, core_s = clock.read()
    told = json.loads(text.splitlines()[-1])
    return Took(0.0, [end - clock.began for end in told["epoch_ends"]], total_s, core_s, told["scores"][-1])


def run_ours(job: Job, work: Path, *, pack_at_size: bool) -> Took:
    """Do the job by our commands.

    Raises:
        SideError: one of them failed.
    """
    name = AT_SIZE if pack_at_size else AS_THEY_ARE
    height, width = job.size_hw
    shards, out = work / "shards", work / "run"
    settings = {
        "model.base_channels": job.base_channels,
        "loader.batch_size": job.batch_size,
        "loader.size_hw": f"[{height}, {width}]",
        "train.epochs": job.epochs,
        "train.device": "cpu",
        "checkpoint.name": "epoch_{epoch}.pt",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    small = ["--size", f"{height}x{width}", "--image-codec", "lz4"] if pack_at_size else []
    clock = _Clock()
    _run(["-m", "unetfast", "shard", "--src", str(job.data), "--out", str(shards), *small], work, name)
    pack_s = time.time() - clock.began
    _run(["-m", "unetfast", "train", "--shards", str(shards), "--preset", "r1", "--out", str(out), *sets], work, name)
    total_s, core_s = clock.read()
    ends = [(out / f"epoch_{epoch}.pt").stat().st_mtime - clock.began for epoch in range(1, job.epochs + 1)]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    val = [row for row in rows if row["kind"] == "val"][-1]
    [dice] = [of_class["dice"] for of_class in val["classes"] if of_class["name"] == "car"]
    config = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    return Took(pack_s, ends, total_s, core_s, {"pixel_accuracy": val["pixel_accuracy"], "dice": dice or 0.0}, config)


class _Clock:
    """Time and processor time of the processes that are started and waited for from now on."""

    def __init__(self) -> None:
        self.began = time.time()  # what the time of a file is told in
        self._cores_s = self._read_cores_s()

    def read(self) -> tuple[float, float]:
        """Seconds, and core-seconds, since the beginning."""
        return time.time() - self.began, self._read_cores_s() - self._cores_s

    @staticmethod
    def _read_cores_s() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime


def _flags(options: dict[str, int]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def _run(arguments: list[str], work: Path, name: str) -> str:
    """Run Python with arguments; returns what it printed."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SideError(f"{name}: no end within {_COMMAND_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise SideError(f"{name}: exit code {done.returncode}: {' '.join(last)[:300]}")
    return done.stdout


def sum_up(took: dict[str, list[Took]], failed: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Turn rounds into figures; ratios are R1's time over ours, round by round."""
    sides: dict[str, dict[str, Any]] = {name: {"error": reason} for name, reason in failed.items()}
    for name, rounds in took.items():
        if name in failed:
            continue
        sides[name] = {
            "pack_s": spread([one.pack_s for one in rounds]),
            "first_epoch_s": spread([one.epoch_ends_s[0] for one in rounds]),
            "epoch_s": spread([_epoch_s(one) for one in rounds]),
            "total_s": spread([one.total_s for one in rounds]),
            "core_s": spread([one.core_s for one in rounds]),
            "scores": rounds[-1].scores,
            "config": rounds[-1].config,
        }
        theirs = took.get(R1, [])
        if name != R1 and len(theirs) == len(rounds):
            pairs = list(zip(rounds, theirs, strict=True))
            sides[name]["ratio_to_first_epoch"] = spread([his.epoch_ends_s[0] / own.epoch_ends_s[0] for own, his in pairs])
            sides[name]["ratio_total"] = spread([his.total_s / own.total_s for own, his in pairs])
            sides[name]["ratio_core_s"] = spread([his.core_s / own.core_s for own, his in pairs])
            sides[name]["ahead_from_epoch"] = [find_ahead(own.epoch_ends_s, his.epoch_ends_s) for own, his in pairs]
    return sides


def _epoch_s(took: Took) -> float:
    """How long an epoch lasts once it runs: the last one, or the only one with all before it."""
    ends = took.epoch_ends_s
    return ends[-1] - ends[-2] if len(ends) > 1 else ends[0]


def find_ahead(ours_s: Sequence[float], theirs_s: Sequence[float]) -> int | None:
    """Return the first epoch, from 1, that ends earlier in ours; past the last one that ran each side goes on as in its last.

    Args:
        ours_s: ends of epochs, seconds, at least two.
        theirs_s: the same of the other side.
    """
    for epoch in range(1, _MOST_EPOCHS + 1):
        ends = []
        for side_s in (ours_s, theirs_s):
            more = max(0, epoch - len(side_s))
            ends.append(side_s[min(epoch, len(side_s)) - 1] + more * (side_s[-1] - side_s[-2]))
        if ends[0] < ends[1]:
            return epoch
    return None


def format_sides(sides: dict[str, dict[str, Any]]) -> str:
    """Write a table for people."""
    figures = {"packed": "pack_s", "epoch 1 done": "first_epoch_s", "a later epoch": "epoch_s", "whole job": "total_s"}
    figures |= {"core-s": "core_s", "R1 / ours": "ratio_total"}
    rows = [["seconds", *figures, "ahead from epoch"]]
    for name, side in sides.items():
        if "error" not in side:
            epochs = sorted({str(epoch or "never") for epoch in side.get("ahead_from_epoch", [])})
            cells = [format_spread(side.get(figure), 3) for figure in figures.values()]
            rows.append([name, *cells, " or ".join(epochs) or "-"])
    return "\n".join([format_table(rows), *(f"{name}: {side['error']}" for name, side in sides.items() if "error" in side)])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Let the sides do the job in turn; returns the record's `data`, `job` and `sides`."""
    real = None if given.quick else material.find_real(given.real)
    if real is None:
        num_samples = None if given.quick else given.train_images + 2 * given.val_images
        source = draw_toy("carvana", given.data, num_samples=num_samples, small=given.quick, seed=given.seed)
    else:
        source = real / REAL_FOLDERS["carvana"]
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="unetfast-bench-") as root:
        data = Path(root) / "Data"
        num_train, num_val = make_four_folders(
            list_pairs(source, "carvana"), data, num_train=given.train_images, num_val=given.val_images
        )
        size_hw = (32, 48) if given.quick else (160, 240)
        job = Job(data, size_hw, given.batch_size, given.base_channels, given.epochs, given.workers)
        runs: dict[str, Callable[[Path], Took]] = {
            R1: lambda work: run_r1(job, work),
            AT_SIZE: lambda work: run_ours(job, work, pack_at_size=True),
        }
        if given.originals:
            runs[AS_THEY_ARE] = lambda work: run_ours(job, work, pack_at_size=False)

        def turn(name: str) -> Took:
            with tempfile.TemporaryDirectory(dir=root) as work:
                try:
                    took = runs[name](Path(work))
                except SideError as error:
                    failed[name] = str(error)
                    print(f"error: {error}", flush=True)
                    raise
            print(f"{name}: epoch 1 after {took.epoch_ends_s[0]:.1f} s, all after {took.total_s:.1f} s", flush=True)
            return took

        took = take_turns({name: lambda name=name: turn(name) for name in runs}, given.rounds)
    sides = sum_up(took, failed)
    print(format_sides(sides))
    facts = {"dataset": "carvana", "real": real is not None, "train_images": num_train, "val_images": num_val}
    told = {"size_hw": list(size_hw), "batch_size": job.batch_size, "base_channels": job.base_channels, "epochs": job.epochs}
    return {"data": facts, "job": told | {"r1_workers": job.workers}, "sides": sides, "bars": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-images", type=int, default=24, help="(default %(default)s)")
    parser.add_argument("--val-images", type=int, default=4, help="at least; whole cars (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="at least 2 (default %(default)s)")
    parser.add_argument("--base-channels", type=int, default=16, help="of the nets (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of R1's DataLoader (default %(default)s, as R1 states)")
    parser.add_argument("--originals", action="store_true", help="do it also with the originals packed as they are")


def check_arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if given.epochs < 2:
        parser.error("--epochs must be at least 2: the length of a later epoch is told by the last two")
    if given.quick:
        given.rounds, given.train_images, given.val_images, given.base_channels, given.batch_size = 1, 8, 4, 4, 4


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("whole_job", __doc__, arguments, measure, add=add_arguments, check=check_arguments)


if __name__ == "__main__":
    sys.exit(main())
