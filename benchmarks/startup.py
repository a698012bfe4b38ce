"""How long each command takes until it says its first useful line, and which imports that time is.

    python benchmarks/startup.py
    python benchmarks/startup.py --all-sides
    python benchmarks/startup.py --only help,mistyped-checkpoint --rounds 9

Each start is a process of its own; the commands take turns. A useful line is one that holds what is expected of the command
(its usage, its error, a figure), so a command that fails cannot look quick. Commands that would go on to train or predict are
stopped at that line; those that import torch run under --all-sides. Bytecode and files are in the page cache: one start of each
before the clock runs.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import material
from bar import lost_bar, make_bar

from unetfast.bench.harness import SideError, format_spread, format_table, spread, take_turns
from unetfast.bench.toyshards import draw_toy, make_toy_shards
from unetfast.errors import UserError

PYTHON = (sys.executable, "-m", "unetfast")
NUM_PACKAGES = 4  # of those that take longest to import, in a record
HELP_FLOOR_MS, HELP_GOAL_MS = 300.0, 150.0
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Start:
    """A command line that is started over and over.

    Args:
        arguments: of `unetfast`.
        expected: stands in the first useful line.
        exit_code: with which the command ends; None: it is stopped at its first useful line.
    """

    arguments: Sequence[str]
    expected: str
    exit_code: int | None = 0


@dataclass(frozen=True, slots=True)
class Took:
    """One start, seconds from before the process was made.

    Args:
        line_s: until the first useful line could be read.
        end_s: until the process was gone; None where it was stopped.
        core_s: processor time of all its threads up to its end or stop.
    """

    line_s: float
    end_s: float | None
    core_s: float


def list_starts(root: Path, data: Path, *, seed: int, with_torch: bool) -> dict[str, Start]:
    """Say which commands are started.

    Args:
        root: folder for what they write, and for a run to start from.
        data: keeps toy data and shards.
        seed: of these.
        with_torch: also those that import it; trains for a step.
    """
    source = draw_toy("clevr", data, small=True, seed=seed)
    shards = str(make_toy_shards("clevr", data, small=True, seed=seed).shards)
    nowhere, out = str(root / "nowhere"), str(root / "out")
    starts = {
        "help": Start(["--help"], "Usage: "),
        "version": Start(["--version"], "unetfast "),
        "help-of-shard": Start(["shard", "--help"], "Usage: "),
        "mistyped-option": Start(["train", "--frobnicate"], "error: ", 2),
        "mistyped-folder": Start(["train", "--shards", nowhere], "error: ", 2),
        "mistyped-setting": Start(["train", "--shards", shards, "--set", "train.nowhere=1"], "error: ", 2),
        "mistyped-checkpoint": Start(["eval", "--shards", shards, "--checkpoint", nowhere], "error: ", 2),
        "shard-dry-run": Start(["shard", "--src", str(source), "--out", out, "--dry-run"], "clevr"),
        "inspect": Start(["inspect", shards], "samples"),
    }
    if not with_torch:
        return starts
    run = root / "run"
    best = str(run / "best.pt")
    train = ["train", "--shards", shards, "--preset", "clevr-cpu", "--set", "train.device=cpu", "--set", "train.max_steps=1"]
    subprocess.run([*PYTHON, *train, "--out", str(run)], check=True, capture_output=True)
    image = str(next(source.rglob("*.png")))
    return starts | {
        "report": Start(["report", str(run), "--out", str(root / "report.html")], "report.html"),
        "train": Start([*train, "--out", str(root / "run-2")], "config", None),
        "eval": Start(["eval", "--shards", shards, "--checkpoint", best, "--device", "cpu"], "model", None),
        "predict": Start(["predict", "--checkpoint", best, image, "--out", out, "--device", "cpu"], "model", None),
    }


def start(wanted: Start, *, interpreter: Sequence[str] = PYTHON) -> tuple[Took, list[str]]:
    """Start a command; returns what it took and the lines up to the useful one (all, where it is not stopped).

    Raises:
        SideError: it ended without its useful line, or with another exit code.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*interpreter, *wanted.arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    line_s = None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line_s is None and wanted.expected in line and not _IMPORT_LINE.match(line):
            line_s = time.perf_counter() - began
            if wanted.exit_code is None:
                process.kill()
                break
    process.stdout.close()
    code = process.wait()
    end_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = next((line for line in reversed(lines) if line and not _IMPORT_LINE.match(line)), "nothing")
    if line_s is None or (wanted.exit_code is not None and code != wanted.exit_code):
        raise SideError(f"{' '.join(wanted.arguments)}: exit code {code}, {wanted.expected!r} expected, said: {said}")
    core_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(line_s, None if wanted.exit_code is None else end_s, core_s), lines


def rank_imports(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Sum up what `-X importtime` wrote, by package: those that took longest, ms each, without what they import of others."""
    spent: Counter[str] = Counter()
    for line in lines:
        if told := _IMPORT_LINE.match(line):
            spent[told[2].split(".")[0]] += int(told[1])
    return [{"package": name, "ms": round(us / 1000, 1)} for name, us in spent.most_common(NUM_PACKAGES)]


def measure_starts(starts: Mapping[str, Start], num_rounds: int) -> dict[str, Any]:
    """Start every command once to warm up, under `-X importtime`, then in turns; returns sides for a record."""
    sides: dict[str, Any] = {}
    for name, wanted in starts.items():
        sides[name] = {"arguments": list(wanted.arguments), "stopped_at_line": wanted.exit_code is None}
        try:
            _, lines = start(wanted, interpreter=(sys.executable, "-X", "importtime", "-m", "unetfast"))
            sides[name]["imports"] = rank_imports(lines)
        except SideError as error:
            sides[name]["error"] = str(error)

    def run(name: str) -> Took:
        try:
            return start(starts[name])[0]
        except SideError as error:
            sides[name]["error"] = str(error)
            raise

    turns: dict[str, Callable[[], Took]] = {name: functools.partial(run, name) for name in starts if "error" not in sides[name]}
    for name, took in take_turns(turns, num_rounds).items():
        if took:
            sides[name]["line_s"] = spread([one.line_s for one in took])
            sides[name]["end_s"] = None if took[0].end_s is None else spread([one.end_s or 0 for one in took])
            sides[name]["core_s"] = spread([one.core_s for one in took])
    return sides


def format_sides(sides: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["start of", "first useful line, s", "end, s", "core-s", "longest imports, ms"]]
    for name, side in sides.items():
        imports = ", ".join(f"{one['package']} {one['ms']:.0f}" for one in side.get("imports", []))
        figures = [format_spread(side.get(key), 3) for key in ("line_s", "end_s", "core_s")]
        rows.append([name, *figures, imports])
    return format_table(rows)


def build_bars(sides: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put `--help` beside its bounds; no bar where nobody asked for it."""
    if "help" not in sides:
        return []
    what = "`unetfast --help`, from the start of its process to the end"
    bounds: dict[str, Any] = {"floor": HELP_FLOOR_MS, "goal": HELP_GOAL_MS, "unit": "ms", "less_is_better": True}
    side = sides["help"]
    if "error" in side:
        return [lost_bar("S1", what, **bounds, reason=side["error"])]
    imports = ", ".join(f"{one['package']} {one['ms']:.0f}" for one in side["imports"])
    note = f"{1000 * side['core_s']['median']:.0f} core-ms; the longest imports, ms: {imports}"
    return [make_bar("S1", what, [1000 * end_s for end_s in side["end_s"]["rounds"]], **bounds, note=note)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="names of starts, separated by commas")
    material.add_all_sides(parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Start each command, in turns; returns the record's `data`, `sides` and `bars`."""
    with tempfile.TemporaryDirectory() as folder:
        starts = list_starts(Path(folder), given.data, seed=given.seed, with_torch=given.all_sides)
        wanted = given.only.split(",") if given.only else list(starts)
        if unknown := set(wanted) - set(starts):
            there = f"there are {', '.join(starts)}" + ("" if given.all_sides else ", and more under --all-sides")
            raise UserError(f"--only {', '.join(sorted(unknown))}: {there}")
        sides = measure_starts({name: starts[name] for name in wanted}, given.rounds)
    print(format_sides(sides))
    for name, side in sides.items():
        if "error" in side:
            print(f"failed: {name}: {side['error']}")
    return {"data": {"toy": "clevr", "small": True}, "sides": sides, "bars": build_bars(sides)}


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("startup", __doc__, arguments, measure, add=add_arguments, reads_real=False)


if __name__ == "__main__":
    sys.exit(main())
