"""From what the user asked for to the parts of a run: which config, which folder, which loaders, which model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from unetfast.checkpoint import build_network
from unetfast.compilecache import describe_cache, keep_compiled
from unetfast.config import (
    Config,
    apply_overrides,
    build_config,
    check_initial_checkpoint,
    preset_names,
    read_any_config,
    read_config_tree,
    read_preset_tree,
)
from unetfast.data.imbalance import advise_on_classes
from unetfast.data.manifest import Manifest, read_manifest
from unetfast.data.reader import SplitReader, open_shards
from unetfast.device import resolve_amp, resolve_compile, resolve_device
from unetfast.distributed import World
from unetfast.errors import UserError
from unetfast.hostmemory import FreedMemory, keep_freed_memory
from unetfast.infer.load import build_loss
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader, choose_backend
from unetfast.model.losses import SegmentationLoss
from unetfast.model.network import Network
from unetfast.train.compiling import GRAPHS, compile_network
from unetfast.train.earlystop import check_early_stop
from unetfast.train.ema import WeightAverage
from unetfast.train.guard import StepGuard
from unetfast.train.meter import Meter
from unetfast.train.optimizer import build_optimizer
from unetfast.train.processes import choose_device, describe_processes, share_cores, synchronize, wrap_network
from unetfast.train.randomness import seed_generators
from unetfast.train.run import Run
from unetfast.train.runfolder import CONFIG_NAME, RunFolder, next_free_folder
from unetfast.train.schedule import Plateau, num_total_steps

FEW_VAL_SAMPLES = 10  # below this, a score says little about other images


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """What to train and where to leave it."""

    config: Config
    out: Path


def preset_for(manifest: Manifest, device: torch.device) -> str:
    """Name the preset of a data set: its own where there is one, else "folder", which fits any; `-cpu` without a GPU."""
    name = manifest.dataset if manifest.dataset in preset_names() else "folder"
    return name if device.type == "cuda" else f"{name}-cpu"


def resolve_run(
    shards: Path,
    *,
    config: Path | None = None,
    preset: str | None = None,
    overrides: list[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> ResolvedRun:
    """Find the config and the run folder of `unetfast train`, and say which and why.

    Args:
        shards: shard folder; its data set decides the preset and the name of the run.
        config: a TOML file.
        preset: name of a shipped config.
        overrides: `key=value` settings on top.
        out: run folder; None takes the next free `runs/<data set>-<number>`.
        resume: with neither `config` nor `preset`, the run's own config is taken.
        console: for notes; None is silent.

    Raises:
        UserError: both `config` and `preset`; `resume` without `out`; a file, preset or key that is not there.
    """
    manifest = read_manifest(shards)
    if config is not None and preset is not None:
        raise UserError(f"--config {config} and --preset {preset}: give one of them, and single settings by --set")
    if resume and out is None:
        raise UserError("--resume: say which run to go on with, by --out runs/NAME")
    overrides = overrides or []
    if config is not None:
        tree, where = read_any_config(config), str(config)
    elif preset is not None:
        tree, where = read_preset_tree(preset), f"preset {preset}"
    elif resume and out is not None and (out / CONFIG_NAME).is_file():
        tree, where = read_config_tree(out / CONFIG_NAME), f"{out / CONFIG_NAME}, the run's own"
    else:
        tree, where = _read_default_preset(manifest, overrides)
    where += f", changed by {', '.join(overrides)}" if overrides else ""
    resolved = build_config(apply_overrides(tree, overrides), where=where)
    if not resume:
        check_initial_checkpoint(resolved, where=where)
    if console is not None:
        console.print(f"config  {where}", markup=False, highlight=False, soft_wrap=True)
    return ResolvedRun(resolved, out or next_free_folder(Path("runs"), manifest.dataset))


def _read_default_preset(manifest: Manifest, overrides: list[str]) -> tuple[dict[str, Any], str]:
    asked: dict[str, Any] = apply_overrides({}, overrides).get("train", {})
    device = resolve_device(str(asked.get("device", "auto")))
    name = preset_for(manifest, device)
    why = f"for {manifest.dataset}" if name.startswith(manifest.dataset) else f"there is none for {manifest.dataset}"
    gpu = "" if device.type == "cuda" else ", no GPU" if not torch.cuda.is_available() else ", on the CPU as asked for"
    return read_preset_tree(name), f"preset {name} ({why}{gpu})"


@contextmanager
def build_run(shards: Path, config: Config, folder: RunFolder, world: World | None = None) -> Iterator[Run]:
    """Build every part of a run from its config; closes loader and shards at the end.

    Args:
        shards: shard folder.
        config: resolved.
        folder: where results go.
        world: the processes that train together, each of which must call; None: this one alone.

    Raises:
        UserError: the shards have no train split, or a setting does not fit them, the device or the number of processes.
    """
    world = world or World()
    device = choose_device(config.train.device, world)
    if device.type == "cpu":
        keep_freed_memory()
    world.check_batch(config.loader.batch_size, config.train.accumulation)
    amp = resolve_amp(config.train.amp, device)
    shard_folder = open_shards(shards)
    manifest = shard_folder.manifest
    with ExitStack() as stack:
        train_reader = stack.enter_context(shard_folder.split("train", checksum=config.loader.checksum))
        val_reader = None
        if "val" in manifest.splits:
            val_reader = stack.enter_context(shard_folder.split("val", checksum=config.loader.checksum))
        elif config.schedule.name == "plateau":
            raise UserError(
                f'{shards}: no val split, and schedule.name = "plateau" watches validation; take --set schedule.name=cosine'
            )
        check_early_stop(config, has_val=val_reader is not None, shards=shards)
        split = manifest.splits["train"]
        mean, std = split.mean, tuple(value if value > 0 else 1.0 for value in split.std)
        model = build_network(config.model, num_classes=manifest.num_classes, mean=mean, std=std)
        _check_batch_norm(config, model, world)
        num_synchronized = synchronize(model, config, world)
        model = model.to(device)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        compiled = resolve_compile(config.train.compile, device)
        num_skipped_before = compile_network(model, config, device, world) if compiled else 0
        network = wrap_network(model, config, world)
        if not world.is_main:
            seed_generators(config.train.seed, rank=world.rank)
        settings = share_cores(config, world)
        loader = build_loader(
            train_reader,
            settings,
            training=True,
            device=device,
            rank=world.rank,
            world_size=world.size,
            local_size=world.local_size,
        )
        stack.enter_context(loader)
        loss = _build_loss(config, manifest).to(device)
        loss.total = world.total
        yield Run(
            config=config,
            folder=folder,
            manifest=manifest,
            device=device,
            amp=amp,
            compiled=compiled,
            train_reader=train_reader,
            val_reader=val_reader,
            loader=loader,
            world=world,
            model=model,
            network=network,
            num_synchronized=num_synchronized,
            num_skipped_before=num_skipped_before,
            loss=loss,
            optimizer=build_optimizer(model, config.optimizer),
            scaler=torch.amp.GradScaler(device.type, enabled=amp.name == "fp16"),
            plateau=Plateau(),
            meter=Meter(manifest.num_classes, device, world),
            guard=StepGuard(model, device),
            ema=WeightAverage(model, config.ema) if config.ema.decay else None,
            total_steps=num_total_steps(config, split.samples),
            accumulation=config.train.accumulation,
        )


def _build_loss(config: Config, manifest: Manifest) -> SegmentationLoss:
    try:
        return build_loss(config.loss, manifest, split="train")
    except ValueError as error:
        raise UserError(f"[loss]: {error}") from None


def _check_batch_norm(config: Config, model: Network, world: World) -> None:
    num_images = config.loader.batch_size // config.train.accumulation // world.size
    if num_images == 1 and max(config.loader.size_hw) <= model.stride and model.has_batch_norm():
        height, width = config.loader.size_hw
        process = " and process" if world.size > 1 else ""
        raise UserError(
            f"one image of {height}x{width} pixels a micro-batch{process}: batch norm needs more than one value per channel at "
            'the bottleneck; take a larger loader.batch_size, a larger loader.size_hw, or model.norm = "group"'
        )


def describe_run(run: Run, shards: Path) -> list[str]:
    """Say in four lines what was understood: data, loader, model, run; and in further ones what is out of the ordinary."""
    config = run.config
    number_format = "float32" if run.amp.name == "off" else run.amp.name
    modes = ["channels_last"] * config.train.channels_last + [_describe_compiled(run)]
    warmup = f", warm-up {config.schedule.warmup_steps} steps" if config.schedule.warmup_steps else ""
    average = f", moving average of the weights (ema.decay {config.ema.decay:g})" if config.ema.decay else ""
    length = f"{config.train.epochs} epochs, {run.total_steps:,} steps"
    if run.total_steps == config.train.max_steps:
        length = f"{run.total_steps:,} steps (train.max_steps)"
    return [
        describe_data(shards, run.manifest),
        describe_loader(run.loader, config, run.device, run.train_reader, accumulation=run.accumulation),
        f"model   {run.model.title}, {count_parameters(run.model) / 1e6:.2f} M parameters on {run.device}, {', '.join(modes)}, "
        f"{number_format} ({run.amp.reason})",
        f"run     {run.folder.path}: {length}, {config.optimizer.name} "
        f"{config.optimizer.learning_rate:g}, {config.schedule.name}{warmup}{average}",
        *describe_processes(run.world, run.num_synchronized),
        *(describe_memory(keep_freed_memory()) if run.device.type == "cpu" else []),
    ]


def describe_data(shards: Path, manifest: Manifest) -> str:
    """Say in a line what is in a shard folder."""
    counts = " / ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    return f"data    {shards} ({manifest.dataset}, {counts}, {manifest.num_classes} classes)"


def describe_loader(loader: Loader, config: Config, device: torch.device, reader: SplitReader, *, accumulation: int = 1) -> str:
    """Say in a line which training loader was chosen and why, and what its batches are.

    Args:
        loader: built by `config`, of `reader`.
        device: where its batches are.
        accumulation: parts that each batch is cut into.
    """
    reason = choose_backend(config, device, training=True).reason
    height, width = config.loader.size_hw
    parts = f" in {accumulation} parts" if accumulation > 1 else ""
    facts = f", {loader.facts}" if loader.facts else ""
    return (
        f"loader  {loader.backend} ({reason}), {height}x{width} (stored {describe_sizes(reader.rows)}; loader.size_hw), "
        f"batch {config.loader.batch_size}{parts}{facts}"
    )


def _describe_compiled(run: Run) -> str:
    if not run.compiled:
        return "not compiled"
    graphs = ", replayed as CUDA graphs" if run.config.train.compile == GRAPHS else ""
    return f"compiled ({describe_cache(keep_compiled())}){graphs}"


def describe_memory(freed: FreedMemory) -> list[str]:
    """Say where a run on a CPU cannot keep all freed memory from step to step; nothing where it does."""
    if not freed.reason:
        return []
    which = f"blocks above {freed.largest_block // 2**20} MiB go" if freed.largest_block else "large blocks go"
    return [f"memory  {which} back to the system in each step, which costs time ({freed.reason})"]


def describe_sizes(rows: np.ndarray) -> str:
    """Write the range of stored sizes, height x width, from index rows (INDEX_DTYPE): one size where all are equal."""
    low, high = (f"{pick(rows['height'])}x{pick(rows['width'])}" for pick in (np.min, np.max))
    return low if low == high else f"{low} to {high}"


def warn_of_data(run: Run) -> list[str]:
    """List what in the data works against a run: splits that are very small, classes that are rare or one-sided."""
    return [*warn_of_small_splits(run), *advise_on_classes(run.manifest, run.config)]


def warn_of_small_splits(run: Run) -> list[str]:
    """List what a very small data set does to a run; empty for any other."""
    warnings = []
    num_train, batch_size = run.loader.num_samples, run.config.loader.batch_size
    if batch_size > num_train:
        warnings.append(
            f"batch {batch_size} is larger than the {num_train} training sample{'s' * (num_train != 1)}: "
            f"a step spans {batch_size / num_train:.3g} epochs"
        )
    if run.val_reader is not None and run.val_reader.num_samples < FEW_VAL_SAMPLES:
        num_val = run.val_reader.num_samples
        one = num_val == 1
        warnings.append(f"{num_val} validation image{'' if one else 's'}: {'its' if one else 'their'} scores are no measure")
    return warnings


def count_parameters(model: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
