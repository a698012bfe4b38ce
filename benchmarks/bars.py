"""Every bar that can be measured without a GPU, one line a bar: what `make bench` runs.

    python benchmarks/bars.py
    python benchmarks/bars.py --only C1,C5 --json record.json
    python benchmarks/bars.py --seed 1 --against benchmarks/results/bench-cpu.json

Each program below is a process of its own, with its own record; one that fails, hangs or has no time left is named, and the
next one runs. Those without a bar come last, and are left out where the time that is left is too short for them. Toy data is
drawn and packed before the clock starts. The exit code is 1 where a program failed or a bar is short of its floor. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bar import FAILED, format_bar, format_note, lost_bar

from unetfast.bench.harness import add_record_argument, describe_environment, finish, make_folder
from unetfast.errors import UserError

BENCHMARKS = Path(__file__).parent
RECORD = BENCHMARKS / "results" / "bench-cpu.json"
MINUTES = 15.0
MAX_LOAD = 0.5  # processes that wanted a core in the minute before; above it the machine was not idle
HEAD = "| bar | what | measured, median (min..max) | floor | goal | verdict |\n|---|---|---|---|---|---|"


@dataclass(frozen=True, slots=True)
class Program:
    """A benchmark of this folder.

    Args:
        name: of its file, without .py.
        bars: that it measures.
        seconds: that it takes on two cores which do nothing else, about.
        limit_s: seconds after which it is stopped.
    """

    name: str
    bars: tuple[str, ...]
    seconds: float
    limit_s: float


TOY_DATA = Program("toydata", (), 60, 1200)
PROGRAMS = (
    Program("packing", ("C1", "C2"), 63, 110),
    Program("reading", ("C3",), 16, 50),
    Program("masks", ("C6",), 19, 40),
    Program("seeking", ("C7",), 90, 150),
    Program("cpu_loader", ("C4", "C5"), 215, 360),
    Program("training_step", ("C8",), 108, 150),
    Program("startup", ("S1",), 20, 40),
    Program("inference", (), 66, 100),
    Program("growth", (), 105, 180),
    Program("whole_job", (), 165, 240),
)


@dataclass(slots=True)
class Outcome:
    """How one program ended.

    Args:
        wall_s: seconds that it took.
        error: why there is no record, or what failed in it; "" where all went well.
        record: the JSON object that it wrote; None where it wrote none.
        told: what it printed for people.
        left_out: why it did not run to its end, where that is no failure.
        was_stopped: it ran into its limit.
    """

    wall_s: float
    error: str
    record: dict[str, Any] | None
    told: str = ""
    left_out: str = ""
    was_stopped: bool = False


def run_program(program: Program, arguments: Sequence[str], *, limit_s: float, log: Path, folder: Path = BENCHMARKS) -> Outcome:
    """Run a program to its end, or to its limit.

    Args:
        program: which; its file is looked for in `folder`.
        arguments: of every program alike (--seed, --quick, ...).
        limit_s: seconds after which it and all processes that it started are ended.
        log: what it prints goes there; its record stands beside it.
        folder: of the programs.
    """
    path = log.with_suffix(".json")
    command = [sys.executable, str(folder / f"{program.name}.py"), *arguments, "--json", path.name]
    began = time.monotonic()
    was_stopped = False
    with log.open("w", encoding="utf-8") as printed:
        # it works where its record goes, so that no record holds the name of a folder of this machine
        process = subprocess.Popen(command, cwd=log.parent, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=limit_s)
            error = "" if code == 0 else _say_end(code, log)
        except subprocess.TimeoutExpired:
            was_stopped = True
            error = f"stopped after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # its own processes must not outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record: dict[str, Any] | None = None
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    elif not error:
        error = "ended well, but wrote no record"
    return Outcome(round(time.monotonic() - began, 1), error, record, _read_told(log), was_stopped=was_stopped)


def _read_told(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith("{"))


def _say_end(code: int, log: Path) -> str:
    """Say how a program ended: exit code or signal, and the last line in which it tells of a failure, or the last at all."""
    end = f"exit code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
    said = [line.strip() for line in _read_told(log).splitlines() if line.strip()]
    told = [line for line in said if line.startswith(("failed", "error"))] or said
    return f"{end}: {told[-1][:200]}" if told else end


def run_programs(
    programs: Sequence[Program], arguments: Sequence[str], *, seconds: float, logs: Path, folder: Path = BENCHMARKS
) -> dict[str, Outcome]:
    """Run programs one after another within a time for all; says on stderr how each ended."""
    end = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    for program in programs:
        left_s = end - time.monotonic()
        if not program.bars and left_s < program.seconds:
            outcome = Outcome(0.0, "", None, left_out=_say_short(program, left_s))
        elif left_s <= 0:
            outcome = Outcome(0.0, f"had no time left within {seconds / 60:g} minutes", None)
        else:
            log, limit_s = logs / f"{program.name}.log", min(program.limit_s, left_s)
            outcome = run_program(program, arguments, limit_s=limit_s, log=log, folder=folder)
            if not program.bars and outcome.was_stopped and limit_s < program.limit_s:
                outcome = Outcome(outcome.wall_s, "", None, left_out=_say_short(program, left_s))
        outcomes[program.name] = outcome
        _say_outcome(program, outcome)
    return outcomes


def _say_short(program: Program, left_s: float) -> str:
    return f"{max(0, left_s):.0f} s were left, and it takes about {program.seconds:.0f}; it can be run by hand"


def _say_outcome(program: Program, outcome: Outcome) -> None:
    word = f"failed, {outcome.error}" if outcome.error else f"left out: {outcome.left_out}" if outcome.left_out else "done"
    sys.stderr.write(f"{program.name:14} {outcome.wall_s:6.1f} s  {word}\n")
    sys.stderr.flush()


def collect_bars(
    programs: Sequence[Program], outcomes: Mapping[str, Outcome], wanted: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the bars of all records, in their order; a bar that was to come and did not is there as "failed"."""
    bars: list[dict[str, Any]] = []
    for program in programs:
        outcome = outcomes[program.name]
        made = [] if outcome.record is None else outcome.record.get("bars", [])
        bars += [{**one, "program": program.name} for one in made]
        reason = outcome.error or "its record has no such bar"
        for name in sorted({*program.bars} - {one["bar"] for one in made}):
            made_of = lost_bar(name, f"not measured: {program.name}.py", floor=None, goal=None, reason=reason)
            bars.append({**made_of, "program": program.name})
    return sorted((one for one in bars if not wanted or one["bar"] in wanted), key=lambda one: one["bar"])


def format_bars(bars: Sequence[Mapping[str, Any]]) -> str:
    """Write the table: a line a bar, then what is to be said of those that have a note, or were not reached."""
    lines = [HEAD, *(format_bar(dict(bar)) for bar in bars)]
    notes = dict.fromkeys(format_note(dict(bar)) for bar in bars if bar["note"])
    return "\n".join([*lines, *notes])


def compare_verdicts(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which bars have another verdict than in an earlier run, say with another seed; and which only one of the runs has.

    A bar that failed in both runs was measured in neither, and has no verdict that could be the same.
    """
    before, now = ({(bar["bar"], bar["what"]): bar for bar in bars} for bars in (old, new))
    both = [key for key in now if key in before]
    differing = [key for key in both if not _is_same(before[key], now[key])]
    lines = [f"{bar} {what}: {_tell(before[bar, what])} before, {_tell(now[bar, what])} now" for bar, what in differing]
    alone = [f"{bar} {what}: in one of the two runs alone" for bar, what in sorted({*before} ^ {*now})]
    return [*lines, *alone, f"{len(both) - len(differing)} of {len(both)} bars have the same verdict"]


def _is_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(before["verdict"] == now["verdict"] != FAILED)


def _tell(bar: Mapping[str, Any]) -> str:
    return str(bar["verdict"]) if bar["ratio"] is None else f"{bar['verdict']} ({bar['ratio']['median']:.3g})"


def choose_programs(only: str | None) -> tuple[list[Program], frozenset[str]]:
    """Read --only: names of bars, of programs, or both.

    Returns:
        The programs to run, and the bars to show; none means all.

    Raises:
        ValueError: there is no such bar or program; lists what there is.
    """
    if not only:
        return list(PROGRAMS), frozenset()
    words = [word.strip() for word in only.split(",") if word.strip()]
    bars = {name for program in PROGRAMS for name in program.bars}
    names = {program.name for program in PROGRAMS}
    if unknown := [word for word in words if word not in bars | names]:
        raise ValueError(f"--only {', '.join(unknown)}: there are {', '.join(sorted(bars))}, and {', '.join(sorted(names))}")
    chosen = [program for program in PROGRAMS if program.name in words or set(program.bars) & set(words)]
    shown = {word for word in words if word in bars} | {bar for one in chosen if one.name in words for bar in one.bars}
    return chosen, frozenset(shown)


def choose_record(given: argparse.Namespace, outcomes: Mapping[str, Outcome]) -> tuple[Path | None, str]:
    """Choose where the record goes: in place of the kept one only where nothing is missing from it.

    Args:
        given: the arguments.
        outcomes: by program.

    Returns:
        The file, None where the record is only printed; and a line for people.
    """
    kept = RECORD.relative_to(BENCHMARKS.parent)
    elsewhere = None if given.json is None or given.json.resolve() == RECORD.resolve() else given.json
    here = f"the record is {elsewhere}" if elsewhere else "the record is the last line printed (--json FILE keeps it)"
    failed = [name for name, one in outcomes.items() if one.error]
    settings = {
        "--only": given.only,
        "--quick": given.quick,
        "--seed": given.seed,
        "--minutes": given.minutes != MINUTES,
        "--json": elsewhere,
    }
    asked = [name for name, is_set in settings.items() if is_set]
    if failed:
        return elsewhere, f"{here}; {kept} was left alone: {', '.join(failed)} failed"
    if asked:
        return elsewhere, f"{here}; {kept} was left alone: it is written without {', '.join(asked)}"
    return RECORD, f"the record is {kept}; next: python benchmarks/plots.py, then python benchmarks/table.py for the README"


def _read_bars(parser: argparse.ArgumentParser, path: Path) -> list[dict[str, Any]]:
    try:
        bars: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["bars"]
    except (OSError, ValueError, KeyError, TypeError):
        parser.error(f"--against {path}: no record of this program")
    return bars


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAMES", help="bars or programs, separated by commas: C1,C5 or growth")
    parser.add_argument("--seed", type=int, default=0, help="of all toy data (default 0)")
    parser.add_argument(
        "--quick", action="store_true", help="each program in its smallest form: shows that they run, no figures"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all programs (default %(default)g)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="an earlier record, such as of another seed: same verdicts?"
    )
    parser.add_argument("--logs", type=Path, help="folder for what the programs print; default: none is kept")
    add_record_argument(parser, f"the record; default: {RECORD.relative_to(BENCHMARKS.parent)}, where all of it was measured")
    given = parser.parse_args(arguments)
    try:
        programs, wanted = choose_programs(given.only)
    except ValueError as error:
        parser.error(str(error))
    if given.seed < 0:
        parser.error("--seed must be 0 or more")
    if not given.minutes > 0:
        parser.error("--minutes must be more than 0")
    before = None if given.against is None else _read_bars(parser, given.against)
    load = os.getloadavg()[0]
    if load > MAX_LOAD:
        sys.stderr.write(
            f"note: this machine does other work (load {load:.1f}): ratios lean to one side or the other, figures fall\n"
        )
    if given.logs is not None:
        try:
            make_folder(given.logs, "--logs")
        except UserError as error:
            parser.error(str(error))
    shared = ["--seed", str(given.seed), *(["--quick"] if given.quick else [])]
    with contextlib.ExitStack() as stack:
        logs = given.logs.resolve() if given.logs else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sys.stderr.write(
            f"toy data of seed {given.seed} is drawn and packed, where it is not there yet, before the clock starts\n"
        )
        drawn = run_programs([TOY_DATA], shared, seconds=TOY_DATA.limit_s, logs=logs)
        began = time.monotonic()
        outcomes = run_programs(programs, shared, seconds=60 * given.minutes, logs=logs)
        wall_s = round(time.monotonic() - began, 1)
    sys.stderr.write(f"{'all of them':14} {wall_s:6.1f} s\n")
    outcomes = drawn | outcomes
    bars = collect_bars(programs, outcomes, wanted)
    for program in programs:
        if not program.bars and outcomes[program.name].record is not None:
            print(f"== {program.name}.py\n{outcomes[program.name].told}\n")
    if bars:
        print(format_bars(bars))
    for name, one in outcomes.items():
        if one.error or one.left_out:
            print(f"{name}.py {f'failed: {one.error}' if one.error else f'left out: {one.left_out}'}")
    if before is not None:
        asked = [bar for bar in before if not wanted or bar["bar"] in wanted]
        print("\n".join(f"against {given.against.name}: {line}" for line in compare_verdicts(asked, bars)))
    path, told = choose_record(given, outcomes)
    record = {
        "benchmark": "bars",
        "command": ["benchmarks/bars.py", *(sys.argv[1:] if arguments is None else arguments)],
        "environment": describe_environment(),
        "seed": given.seed,
        "quick": given.quick,
        "load_before": round(load, 2),
        "wall_s": wall_s,
        "programs": {
            name: {"wall_s": one.wall_s, "error": one.error, "left_out": one.left_out} for name, one in outcomes.items()
        },
        "bars": bars,
        "records": {name: one.record for name, one in outcomes.items() if one.record is not None},
    }
    finish(record, path)
    sys.stderr.write(f"{told}\n")
    is_good = all(bar["verdict"] in ("pass", "n/a") for bar in bars) and not any(one.error for one in outcomes.values())
    return 0 if is_good else 1


def end_in_order() -> None:
    """Let SIGTERM unwind this process, so that the program that runs ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


if __name__ == "__main__":
    end_in_order()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is recorded")
