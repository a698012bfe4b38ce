"""How long each command takes until it says its first useful line, and which imports that time is.

    python benchmarks/startup.py
    python benchmarks/startup.py --only help,mistyped-checkpoint --rounds 9

Each start is a process of its own; the commands take turns. A useful line is one that holds what is expected of the command
(its usage, its error, a figure), so a command that fails cannot look quick. Commands that would go on to train or predict are
stopped at that line. Bytecode and files are in the page cache: one start of each before the clock runs.
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

from bar import format_bar, make_bar

from unetfast.bench.harness import SideError, describe_environment, finish, format_spread, format_table, spread, take_turns
from unetfast.bench.toyshards import draw_toy, make_toy_shards

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


def list_starts(root: Path, *, seed: int, quick: bool) -> dict[str, Start]:
    """Say which commands are started; draws, packs and (unless `quick`) trains what they need below `root`."""
    source = draw_toy("clevr", root, small=True, seed=seed)
    shards = str(make_toy_shards("clevr", root, small=True, seed=seed).shards)
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
    if quick:
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


def measure_starts(starts: Mapping[str, Start], num_rounds: int) -> tuple[dict[str, Any], dict[str, list[Took]]]:
    """Start every command once to warm up, under `-X importtime`, then in turns; returns sides for a record, and rounds."""
    sides: dict[str, Any] = {}
    for name, wanted in starts.items():
        sides[name] = {"arguments": _without_folders(wanted.arguments), "stopped_at_line": wanted.exit_code is None}
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
    rounds = take_turns(turns, num_rounds)
    for name, took in rounds.items():
        if took:
            sides[name]["line_s"] = spread([one.line_s for one in took])
            sides[name]["end_s"] = None if took[0].end_s is None else spread([one.end_s or 0 for one in took])
            sides[name]["core_s"] = spread([one.core_s for one in took])
    return sides, rounds


def _without_folders(arguments: Sequence[str]) -> list[str]:
    return [Path(word).name if word.startswith("/") else word for word in arguments]


def format_sides(sides: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["start of", "first useful line, s", "end, s", "core-s", "longest imports, ms"]]
    for name, side in sides.items():
        imports = ", ".join(f"{one['package']} {one['ms']:.0f}" for one in side.get("imports", []))
        figures = [format_spread(side.get(key), 3) for key in ("line_s", "end_s", "core_s")]
        rows.append([name, *figures, imports])
    return format_table(rows)


def build_bars(rounds: Mapping[str, Sequence[Took]]) -> list[dict[str, Any]]:
    ends_ms = [1000 * one.end_s for one in rounds.get("help", []) if one.end_s is not None]
    if not ends_ms:
        return []
    what = "`unetfast --help`, from the start of its process to the end"
    return [make_bar("S1", what, ends_ms, floor=HELP_FLOOR_MS, goal=HELP_GOAL_MS, unit="ms", less_is_better=True)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="starts of each command (default %(default)s)")
    parser.add_argument("--only", help="names of starts, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the toy data")
    parser.add_argument("--quick", action="store_true", help="two rounds, and only commands that need no torch: for tests")
    parser.add_argument("--json", type=Path, help="also write the record to this file")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        starts = list_starts(Path(folder), seed=given.seed, quick=given.quick)
        wanted = given.only.split(",") if given.only else list(starts)
        if unknown := set(wanted) - set(starts):
            parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(starts)}")
        num_rounds = 2 if given.quick else given.rounds
        sides, rounds = measure_starts({name: starts[name] for name in wanted}, num_rounds)
    print(format_sides(sides))
    failed = [f"{name}: {side['error']}" for name, side in sides.items() if "error" in side]
    for line in failed:
        print(f"failed: {line}")
    bars = build_bars(rounds)
    for made in bars:
        print(format_bar(made))
    record = {
        "benchmark": "startup",
        "command": ["benchmarks/startup.py", *(sys.argv[1:] if arguments is None else arguments)],
        "environment": describe_environment(),
        "data": {"toy": "clevr", "small": True, "seed": given.seed},
        "rounds": num_rounds,
        "sides": sides,
        "bars": bars,
    }
    finish(record, given.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
