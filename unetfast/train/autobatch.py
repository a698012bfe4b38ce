"""`loader.batch_size = "auto"`: a short probing run finds how many images at a time are fast and fit into memory.

It takes real steps on real batches, with its own weights, which are thrown away. The micro-batch is doubled
- as long as it fits: a share of memory (`KEEP_FREE`) is left for validation and for what grows later. On a GPU, running out of
  it is caught. On the CPU it would end the process instead, so what the next size needs is foretold from the sizes before, and
  a size that would not fit is not tried;
- and, from `ENOUGH_IMAGES` on, as long as images/s grows by `MIN_GAIN` or more: a larger batch only means fewer steps in an
  epoch then. Below that, batch norm's statistics are worth more than speed;
- and at most up to the size of the train split.
Where memory is what ends the doubling, bisection finds the largest size that fits, to an eighth. The model is not compiled for
it: each size would take a minute, and a compiled model needs less memory rather than more.

The batch is the micro-batch times `train.accumulation` times the number of processes, of which the one with the least memory
decides. The learning rate is not changed with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from unetfast.config import AUTO_BATCH_SIZE, Config, build_config, read_config_tree
from unetfast.data.manifest import read_manifest
from unetfast.distributed import World
from unetfast.errors import UserError
from unetfast.hostmemory import PeakMemory, available_host_bytes, resident_bytes
from unetfast.train.memory import free_memory, is_out_of_memory
from unetfast.train.processes import choose_device, share_cores
from unetfast.train.randomness import numeric_settings
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run
from unetfast.train.step import begin_step, compute_gradients, finish_step

KEEP_FREE = {"cuda": 0.1, "cpu": 0.2}  # shares of the free memory
ENOUGH_IMAGES = 8
MIN_GAIN = 0.05
NUM_WARMUP_STEPS = {"cuda": 2, "cpu": 1}
NUM_TIMED_STEPS = 5
LONG_STEP_S = 2.0  # a step as long as this is measured once, without a warm-up


@dataclass(frozen=True, slots=True)
class Trial:
    """What some steps with a micro-batch of one size came to.

    Args:
        num_images: of the micro-batch.
        images_per_s: loading included.
        used_bytes: most memory that model, gradients, optimizer, activations and loader took together.
    """

    num_images: int
    images_per_s: float
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """The micro-batch that was found.

    Args:
        num_images: of the micro-batch.
        reason: why it is not larger, for people.
        trials: all that fit, in the order in which they were made.
    """

    num_images: int
    reason: str
    trials: list[Trial] = field(default_factory=list)


def find_micro_batch(try_size: Callable[[int], Trial | None], *, smallest: int, most: int) -> Finding | None:
    """Double a micro-batch until it does not fit or does not pay, then bisect where memory was the limit.

    Args:
        try_size: measures a size; None where it does not fit.
        smallest: images to begin with.
        most: images never exceeded.

    Returns:
        None where not even the smallest size fits.
    """
    best = try_size(smallest)
    if best is None:
        return None
    trials = [best]
    while best.num_images < most:
        num_images = min(2 * best.num_images, most)
        trial = try_size(num_images)
        if trial is None:
            return _bisect(try_size, trials, num_images)
        trials.append(trial)
        if num_images > ENOUGH_IMAGES and trial.images_per_s < best.images_per_s * (1 + MIN_GAIN):
            return Finding(best.num_images, f"{num_images} give no more than {trial.images_per_s:,.4g} images/s", trials)
        best = trial
    return Finding(best.num_images, "the train split has no more", trials)


def _bisect(try_size: Callable[[int], Trial | None], trials: list[Trial], too_many: int) -> Finding:
    fits = trials[-1].num_images
    while too_many - fits > max(1, fits // 8):
        middle = (fits + too_many) // 2
        trial = try_size(middle)
        if trial is None:
            too_many = middle
        else:
            trials.append(trial)
            fits = middle
    return Finding(fits, f"{too_many} do not fit into memory", trials)


class Probe:
    """Measures micro-batches of one run.

    Args:
        shards: shard folder.
        config: of the run; its batch size is not looked at.
        folder: of the run; nothing is written.
        device: where the run will be.
        say: prints a line for each size.
    """

    def __init__(
        self, shards: Path, config: Config, folder: RunFolder, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._shards = shards
        self._config = config
        self._folder = folder
        self._device = device
        self._say = say
        self._trials: list[Trial] = []
        free_memory(device)
        self._resident_bytes = resident_bytes()
        self.free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_bytes()
        self.budget_bytes = None if self.free_bytes is None else int(self.free_bytes * (1 - KEEP_FREE[device.type]))

    def __call__(self, num_images: int) -> Trial | None:
        """Measure a size; None where it does not fit."""
        budget = self.budget_bytes
        if self._device.type == "cpu" and budget is not None and self._foretell(num_images) > budget:
            return None
        trial = None
        try:
            trial = self._measure(num_images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory(self._device)  # behind `except`: the error holds what did not fit
        if trial is None or (budget is not None and trial.used_bytes > budget):
            return None
        self._trials.append(trial)
        of_memory = "" if self.free_bytes is None else f" of {self.free_bytes / 2**30:.1f}"
        self._say(
            f"batch   auto: {num_images:>3} images at a time: {trial.images_per_s:,.4g} images/s, "
            f"{trial.used_bytes / 2**30:.2f}{of_memory} GiB"
        )
        return trial

    def _foretell(self, num_images: int) -> float:
        """Say what a size needs: along the line through the two largest sizes so far; in proportion where there is one."""
        known = sorted(self._trials, key=lambda trial: trial.num_images)
        if not known:
            return 0.0
        if len(known) == 1:
            return known[0].used_bytes * num_images / known[0].num_images
        below, above = known[-2:]
        per_image = (above.used_bytes - below.used_bytes) / (above.num_images - below.num_images)
        return above.used_bytes + max(0.0, per_image) * (num_images - above.num_images)

    def _measure(self, num_images: int) -> Trial:
        config = _change(self._config, {"train": {"accumulation": 1, "compile": "off"}, "loader": {"batch_size": num_images}})
        with build_run(self._shards, config, self._folder) as run:
            peak = PeakMemory()
            peak.start()
            images_per_s = _measure_speed(run, num_images)
            if self._device.type == "cuda":
                used_bytes = self.free_bytes - torch.cuda.mem_get_info(self._device)[0] if self.free_bytes else 0
            else:
                used_bytes = peak.read() - self._resident_bytes
        return Trial(num_images, images_per_s, max(0, used_bytes))


def _measure_speed(run: Run, num_images: int) -> float:
    """Take steps; returns images per second. Waits for the GPU."""
    batches = iter(run.loader)

    def take_steps(num_steps: int) -> float:
        began_s = time.perf_counter()
        for _ in range(num_steps):
            batch = next(batches)
            begin_step(run)
            finish_step(run, batch, *compute_gradients(run, batch))
        run.guard.read(all_steps=True)
        return (time.perf_counter() - began_s) / num_steps

    step_s = take_steps(NUM_WARMUP_STEPS[run.device.type])
    if step_s < LONG_STEP_S:
        step_s = take_steps(NUM_TIMED_STEPS)
    return num_images / step_s


def settle_batch_size(
    shards: Path, config: Config, folder: RunFolder, former: Config | None, world: World, say: Callable[[str], None]
) -> Config:
    """Put a number in the place of "auto": that of the run which is gone on with, else one that a probing run finds.

    A collective: every process gets the same number.

    Args:
        shards: shard folder.
        config: of the run; returned as it is where its batch size is a number.
        folder: of the run.
        former: config of the checkpoint that is gone on with; None without one.
        world: the processes that train together.
        say: prints one line.

    Raises:
        UserError: not even one image fits.
    """
    if config.loader.batch_size != AUTO_BATCH_SIZE:
        return config
    if former is None and world.is_main and folder.config.is_file():  # a run that was killed before its first checkpoint
        former = build_config(read_config_tree(folder.config), where=str(folder.config))
    known = world.broadcast(AUTO_BATCH_SIZE if former is None else former.loader.batch_size)
    if known != AUTO_BATCH_SIZE:
        return _change(config, {"loader": {"batch_size": known}})
    device = choose_device(config.train.device, world)
    split = read_manifest(shards).splits.get("train")
    most = max(1, (split.samples if split else 0) // (config.train.accumulation * world.size))
    settings = numeric_settings(seed=config.train.seed, deterministic=config.train.deterministic, device=device)
    with settings:  # the random states come back, so a run with this number computes the same
        probe = Probe(shards, share_cores(config, world), folder, device, say)
        finding = _find(probe, config, most)
    num_images = world.min_int(0 if finding is None else finding.num_images)
    if finding is None or num_images == 0:
        height, width = config.loader.size_hw
        free = "" if probe.free_bytes is None else f" ({probe.free_bytes / 2**30:.1f} GiB free)"
        where = device if finding is None else "another process's device"
        raise UserError(
            f'loader.batch_size = "auto": not even one image of {height}x{width} pixels fits into the memory of {where}{free}; '
            "take a smaller loader.size_hw, model.base_channels or model.depth"
        )
    batch_size = num_images * config.train.accumulation * world.size
    reason = finding.reason if num_images == finding.num_images else "another process has less memory"
    parts = [f"{config.train.accumulation} micro-batches"] * (config.train.accumulation > 1)
    parts += [f"{world.size} processes"] * (world.size > 1)
    cut = f", for each of {' and '.join(parts)}" if parts else ""
    say(f"batch   auto: loader.batch_size = {batch_size} ({num_images} images at a time{cut}; {reason})")
    return _change(config, {"loader": {"batch_size": batch_size}})


def _find(probe: Probe, config: Config, most: int) -> Finding | None:
    """Begin with one image; with two where batch norm would have one value per channel to take its statistics from."""
    try:
        return find_micro_batch(probe, smallest=1, most=most)
    except UserError:
        if most < 2 or config.model.norm != "batch":
            raise
    return find_micro_batch(probe, smallest=2, most=most)


def _change(config: Config, changes: dict[str, dict[str, object]]) -> Config:
    tree = config.model_dump(mode="json")
    return build_config({name: values | changes.get(name, {}) for name, values in tree.items()})
