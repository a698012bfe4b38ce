"""From what was asked for to rungs that stand ready: data drawn or found, config resolved, the run built that trains."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from unetfast.bench.loader import LoaderRung, num_made_ahead
from unetfast.bench.model import ModelRung
from unetfast.bench.read import ReadRung
from unetfast.bench.rung import Rung
from unetfast.bench.shard import ShardRung
from unetfast.bench.toyshards import TOY_PACKING, TOY_SETS, draw_toy, pack_toy
from unetfast.bench.train import StepRung
from unetfast.config import Config, EarlyStopConfig
from unetfast.data.manifest import read_manifest
from unetfast.data.reader import open_shards
from unetfast.device import resolve_device
from unetfast.distributed import World
from unetfast.loader.batch import Batch
from unetfast.loader.build import build_loader
from unetfast.train.autobatch import settle_batch_size
from unetfast.train.randomness import numeric_settings
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run, describe_data, describe_loader, describe_run, resolve_run

RUNGS = ("read", "loader", "model", "train", "shard")
_STEP_RUNGS = frozenset({"model", "train"})


@dataclass(frozen=True, slots=True)
class BenchData:
    """What is measured on.

    Args:
        shards: a shard folder.
        source: folder of images and masks that is packed; None where nobody packs.
        source_dataset: its layout.
    """

    shards: Path
    source: Path | None
    source_dataset: str


@dataclass(frozen=True, slots=True)
class OpenBench:
    """Rungs that stand ready.

    Args:
        rungs: by name, in the order of `RUNGS`.
        run: that the steps belong to; None where no step is taken.
        batches: of its loader; endless; empty without a run.
        device: of the run, or where the loader's batches go.
    """

    rungs: dict[str, Rung]
    run: Run | None
    batches: Iterator[Batch]
    device: torch.device


def find_data(
    *, shards: Path | None, toy: str | None, root: Path, small: bool, seed: int, packs: bool, console: Console
) -> BenchData:
    """Take the shards that were given, or draw and pack a toy set; of a data set without a toy of its own, carvana's is packed.

    Args:
        shards: folder that was given; None with `toy`.
        toy: one of `TOY_SETS`; None with `shards`.
        root: where toy sets are kept.
        small: toy images of a quarter of their height and width, and few of them.
        seed: of the toy set.
        packs: whether a source is wanted beside the shards.
        console: for notes.
    """
    dataset = toy or (read_manifest(shards).dataset if shards is not None else "")
    name = dataset if dataset in TOY_SETS else "carvana"
    source = None
    if toy is not None or packs:
        size = (
            "small images" if small else f"images of about {'x'.join(map(str, TOY_SETS[name].size_hw))} pixels (height x width)"
        )
        why = "" if shards is None else ", to be packed"
        console.print(f"toy     {name}, {size}, seed {seed}, kept in {root}{why}", markup=False, soft_wrap=True)
        with console.status(f"drawing and packing {name}"):
            source = draw_toy(name, root, small=small, seed=seed)
            shards = shards or pack_toy(source, name)
    assert shards is not None
    return BenchData(shards, source if packs else None, name)


def resolve_bench_config(
    shards: Path, *, config: Path | None, preset: str | None, overrides: list[str], console: Console
) -> Config:
    """Resolve the config as `unetfast train` does, "auto" batch size included.

    Schedule and early stop are taken out: they cost nothing, and would end or freeze a run that only repeats its steps.
    """
    resolved = resolve_run(shards, config=config, preset=preset, overrides=overrides, console=console).config
    schedule = resolved.schedule.model_copy(update={"name": "constant", "warmup_steps": 0})
    resolved = resolved.model_copy(update={"schedule": schedule, "early_stop": EarlyStopConfig(patience=0)})

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    return settle_batch_size(shards, resolved, RunFolder(Path("no-run-of-bench")), None, World(), say)


@contextmanager
def open_bench(
    names: Collection[str], data: BenchData, config: Config, *, steps: bool, root: Path, console: Console
) -> Iterator[OpenBench]:
    """Build what the named rungs need, and close it at the end.

    Loader, model and train share one run with one loader, as training has it.

    Args:
        names: of rungs.
        data: what they read and pack.
        config: of `resolve_bench_config`.
        steps: build the run also where no rung takes a step.
        root: folder below which packings are written, and removed.
        console: for notes.
    """
    device = resolve_device(config.train.device)
    rungs: dict[str, Rung] = {}
    run: Run | None = None
    batches: Iterator[Batch] = iter(())
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root, prefix="packing-")))
        stack.enter_context(numeric_settings(seed=config.train.seed, deterministic=config.train.deterministic, device=device))
        if steps or _STEP_RUNGS & {*names}:
            run = stack.enter_context(build_run(data.shards, config, RunFolder(work)))
            for line in describe_run(run, data.shards)[:3]:
                console.print(line, markup=False, soft_wrap=True)
            reader, loader, device = run.train_reader, run.loader, run.device
        else:
            shards = open_shards(data.shards)
            reader = stack.enter_context(shards.split("train", checksum=config.loader.checksum))
            loader = None
            if {"read", "loader"} & {*names}:
                console.print(describe_data(data.shards, shards.manifest), markup=False, soft_wrap=True)
            if "loader" in names:
                loader = stack.enter_context(build_loader(reader, config, training=True, device=device))
                console.print(describe_loader(loader, config, device, reader), markup=False, soft_wrap=True)
        if loader is not None:
            batches = iter(loader)
        if "read" in names:
            rungs["read"] = ReadRung(reader, checksum=config.loader.checksum)
        if "loader" in names and loader is not None:
            rungs["loader"] = LoaderRung(loader, batches, config, reader=reader, device=device)
        if run is not None and "model" in names:
            rungs["model"] = ModelRung(run, next(batches))
        if run is not None and "train" in names:
            rungs["train"] = StepRung("train", run, batches, num_made_ahead=num_made_ahead(config))
        if "shard" in names and data.source is not None:
            rungs["shard"] = ShardRung(data.source, data.source_dataset, work, options=TOY_PACKING)
        yield OpenBench(rungs, run, batches, device)
