"""`unetfast bench`."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import ConfigOption, PresetOption, SetOption, ToyDataset, check_settings
from unetfast.cli.program import app, notes_console
from unetfast.errors import UserError


class BenchRung(StrEnum):
    read = "read"
    loader = "loader"
    model = "model"
    train = "train"
    shard = "shard"
    all = "all"


@app.command(epilog="Example: unetfast bench all --toy carvana --json bench.json")
def bench(
    rung: Annotated[
        BenchRung,
        typer.Argument(help="Bytes alone, batches alone, steps on one batch, training with both, packing, or all of them."),
    ] = BenchRung.all,
    shards: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Shard folder; its train split is read.")] = None,
    toy: Annotated[ToyDataset | None, typer.Option(help="Draw this set in its real size, and pack it.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", help="Rounds of each rung; default: 5, with --quick 2.")] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds of a round, about; default: 2, with --quick 0.2.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few short rounds and small toy images: to try, not to tell.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the toy set: another one draws other images.")] = 0,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps toy sets; default: a folder of yours for temporary files.")
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Switch off one optimisation at a time, and tell what each gives.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of some steps, and name their dearest kernels.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier record: say what got faster, slower, or cannot be told.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record here; - is stdout, as its last line.")
    ] = None,
) -> None:
    """Measure where the time goes, from bytes to training steps, and say what limits it."""
    # what can be refused without torch, whose import takes seconds, is refused first
    _check_numbers(rounds, seconds, seed)
    _check_data(shards, toy)
    check_settings(config, preset, set_ or [])
    from unetfast.bench.compare import read_bench_record
    from unetfast.bench.harness import make_folder

    if json is not None:
        if json.is_dir():
            raise UserError(f"--json {json}: is a folder; give a file")
        make_folder(json.parent, f"--json {json}")
    if data is not None:
        make_folder(data, f"--data {data}")
    if compare is not None:
        read_bench_record(compare)
    from unetfast.bench.command import BenchRequest, run_bench
    from unetfast.bench.toyshards import default_root

    asked = BenchRequest(
        rung=rung.value,
        shards=shards,
        toy=None if toy is None else toy.value,
        data=data or default_root(),
        config=config,
        preset=preset,
        overrides=tuple(set_ or ()),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        quick=quick,
        json=json,
        ablate=ablate,
        profile=profile,
        compare=compare,
        words=tuple(sys.argv[1:]),
    )
    run_bench(asked, console=notes_console())


def _check_numbers(rounds: int | None, seconds: float | None, seed: int) -> None:
    if rounds is not None and rounds < 1:
        raise UserError(f"--rounds {rounds}: give 1 or more; 4 or more can be compared")
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"--seconds {seconds:g}: give a number above 0")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")


def _check_data(shards: Path | None, toy: ToyDataset | None) -> None:
    from unetfast.data.manifest import MANIFEST_NAME, read_manifest

    if shards is not None and toy is not None:
        raise UserError(f"--shards {shards} and --toy {toy.value}: give one of them")
    if shards is not None:
        read_manifest(shards)
    elif toy is None:
        here = " (there are some in ./shards: --shards shards)" if (Path("shards") / MANIFEST_NAME).is_file() else ""
        raise UserError(
            f"bench: say what to measure on: --shards FOLDER, packed by `unetfast shard`{here}, "
            "or --toy carvana, clevr or ade20k, which is drawn here"
        )
