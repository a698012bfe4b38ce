"""`unetfast bench`: rungs in turn, their table and verdict, and the record that a later run is held against."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unetfast.bench.compare import compare_records, format_comparison, read_bench_record
from unetfast.bench.harness import describe_environment, make_folder, without_places
from unetfast.bench.opening import RUNGS, BenchData, find_data, open_bench, resolve_bench_config
from unetfast.bench.rung import OtherWork, measure_rungs
from unetfast.bench.shardfacts import describe_shards
from unetfast.bench.table import format_rungs
from unetfast.bench.verdict import judge, say_others
from unetfast.config import Config
from unetfast.wholefile import write_whole

FULL_ROUNDS, FULL_SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 2, 0.2


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What the user asked for; see `unetfast bench --help`.

    Args:
        rung: one of `RUNGS`, or "all".
        shards: folder to read; None with `toy`.
        toy: set to draw; None with `shards`.
        data: folder that keeps toy sets.
        config: a TOML file, as of `unetfast train`.
        preset: name of a shipped config.
        overrides: `key=value` settings on top.
        rounds: of each rung; None: by `quick`.
        seconds: of a round; None: by `quick`.
        seed: of toy data.
        quick: few short rounds, and small toy images.
        json: where the record is written; "-" is stdout; None: nowhere.
        ablate: switch one optimisation off at a time.
        profile: write a profiler's trace.
        compare: an earlier record.
        words: of the command line, for the record.
    """

    rung: str
    shards: Path | None
    toy: str | None
    data: Path
    config: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    rounds: int | None = None
    seconds: float | None = None
    seed: int = 0
    quick: bool = False
    json: Path | None = None
    ablate: bool = False
    profile: bool = False
    compare: Path | None = None
    words: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return RUNGS if self.rung == "all" else (self.rung,)

    @property
    def num_rounds(self) -> int:
        return self.rounds or (QUICK_ROUNDS if self.quick else FULL_ROUNDS)

    @property
    def round_s(self) -> float:
        return self.seconds or (QUICK_SECONDS if self.quick else FULL_SECONDS)

    @property
    def trace(self) -> Path:
        """Where a profiler's trace is written: beside the record, else in a folder here."""
        if self.json is None or self.json == Path("-"):
            return Path("bench-profile") / "trace.json.gz"
        return self.json.with_name(f"{self.json.stem}-trace.json.gz")


def run_bench(asked: BenchRequest, *, console: Console, stdout: TextIO | None = None) -> dict[str, Any]:
    """Do what `unetfast bench` does: measure, print table and verdict, write the record.

    Args:
        asked: checked by the command line.
        console: for notes and progress.
        stdout: for results; None is the process's own.

    Returns:
        The record.

    Raises:
        UserError: data or settings are not usable.
    """
    out, load_before = stdout or sys.stdout, os.getloadavg()[0]
    former = None if asked.compare is None else read_bench_record(asked.compare)
    make_folder(asked.data, f"--data {asked.data}")
    if asked.json is not None:
        make_folder(asked.json.parent, f"--json {asked.json}")
    data = find_data(
        shards=asked.shards,
        toy=asked.toy,
        root=asked.data,
        small=asked.quick,
        seed=asked.seed,
        packs="shard" in asked.names or (asked.ablate and asked.rung != "model"),
        console=console,
    )
    config = resolve_bench_config(
        data.shards, config=asked.config, preset=asked.preset, overrides=[*asked.overrides], console=console
    )
    record = _begin_record(asked, data, config, load_before)
    _measure(asked, data, config, record, console)
    record["verdict"] = judge(record["rungs"], others=say_others(record["other_cores"], record["environment"]["cores"]))
    print(format_rungs(record["rungs"], record["verdict"]), file=out, flush=True)
    roofline = record["rungs"].get("model", {}).get("facts", {}).get("roofline")
    if roofline and (asked.rung == "model" or asked.profile):
        from unetfast.bench.roofline import format_roofline

        print(f"\n{format_roofline(roofline)}", file=out, flush=True)
    if "profile" in record:
        from unetfast.bench.profile import format_profile

        print(f"\n{format_profile(record['profile'])}", file=out, flush=True)
    if asked.ablate:
        from unetfast.bench.ablate import RUNGS as ABLATED
        from unetfast.bench.ablate import format_ablation, run_ablation

        # of a rung that has no switches of its own, those of all are told
        record["ablation"] = run_ablation(
            data.shards,
            config,
            source=data.source,
            rounds=asked.num_rounds,
            seconds=asked.round_s,
            console=console,
            rungs={asked.rung} & {*ABLATED} or ABLATED,
        )
        print(f"\n{format_ablation(record['ablation'])}", file=out, flush=True)
    if former is not None:
        record["comparison"] = compare_records(former, record)
        print(f"\n{format_comparison(record['comparison'], former, record, str(asked.compare))}", file=out, flush=True)
    _write_record(record, asked.json, out, console)
    return record


def _begin_record(asked: BenchRequest, data: BenchData, config: Config, load_before: float) -> dict[str, Any]:
    begun: dict[str, Any] = {
        "benchmark": "bench",
        "command": [*asked.words],
        "environment": describe_environment(),
        "config": config.model_dump(mode="json"),
        "data": describe_shards(data.shards),
        "toy": None if asked.toy is None else {"name": asked.toy, "seed": asked.seed, "small": asked.quick},
        "rounds": asked.num_rounds,
        "seconds": asked.round_s,
        "load_before": round(load_before, 2),
    }
    # before it is held against another, whose keys have lost their folders too
    return cast(dict[str, Any], without_places(begun))


def _measure(asked: BenchRequest, data: BenchData, config: Config, record: dict[str, Any], console: Console) -> None:
    """Measure the rungs, and profile the run while it is open; writes device, rungs and profile into the record."""
    names, rounds = asked.names, asked.num_rounds
    with open_bench(names, data, config, steps=asked.profile, root=asked.data, console=console) as bench:
        record["device"] = bench.device.type
        console.print(f"rounds  {rounds} of about {asked.round_s:g} s for {', '.join(bench.rungs)}, in turn", soft_wrap=True)
        with _show_progress(console, len(bench.rungs) * (rounds + 1)) as tell:
            others = OtherWork()
            found = measure_rungs(bench.rungs, rounds=rounds, seconds=asked.round_s, device=bench.device, tell=tell)
            taken = others.read()
        record["other_cores"] = None if taken is None else round(taken, 2)
        record["rungs"] = {name: result.to_json() for name, result in found.items()}
        if asked.profile and bench.run is not None:
            from unetfast.bench.profile import run_profile

            record["profile"] = without_places(run_profile(bench.run, bench.batches, asked.trace))
            console.print(f"trace   {asked.trace}; open it in https://ui.perfetto.dev", markup=False, soft_wrap=True)


@contextmanager
def _show_progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show which rung has its turn, in a terminal; yields the function that is called before each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, begun = progress.add_task("", total=total), 0

        def tell(words: str) -> None:
            nonlocal begun
            progress.update(task, completed=begun, description=words)
            begun += 1

        yield tell


def _write_record(record: dict[str, Any], path: Path | None, out: TextIO, console: Console) -> None:
    if path == Path("-"):
        print(json.dumps(record), file=out, flush=True)
    elif path is not None:
        text = json.dumps(record, indent=1) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))
        console.print(f"record  {path}; hold a later run against it by --compare {path}", markup=False, soft_wrap=True)
