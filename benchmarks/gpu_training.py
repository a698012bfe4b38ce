"""Training images/s on a batch that lies on the device (G1): ours beside the same net run otherwise, and other people's steps.

    python benchmarks/gpu_training.py --device cuda --size 160x240 --size 640x960

    ours            `unetfast.train.step.train_step` on the run that `build_run` makes: compiled, channels_last, bf16
    graphs          the same with train.compile=graphs: replayed as CUDA graphs
    eager           the same net, channels_last and bf16, not compiled
    float32-nchw    the same net in float32, NCHW, not compiled
    milesial        milesial/Pytorch-UNet's step as shipped (peers/nets.py: our re-creation)
    milesial-amp    the same under autocast, as its --amp has it, without the loss scaling
    smp             smp.Unet (ResNet-34) as its examples train it: another, smaller network

All sides train one batch of random pixels in one process; their rounds take turns. The bars are those of `ours`, what a user
gets without a setting; the others stand beside. Prints a table a size for people and one JSON line last; the exit code is 1
when a side failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apart import one_line
from gpu_bars import TRAINING_FLOORS, TRAINING_RATIOS, divide, gpu_bar
from loader import parse_size

from unetfast.bench.harness import (
    SideError,
    add_record_argument,
    describe_environment,
    finish,
    format_spread,
    format_table,
    take_turns,
)
from unetfast.bench.model import ModelRung
from unetfast.bench.rung import Peaks, Round, Rung, Stopwatch, steps_of, sum_up
from unetfast.bench.toyshards import default_root, make_toy_shards
from unetfast.config import apply_overrides, build_config, read_preset_tree
from unetfast.device import resolve_device
from unetfast.errors import UserError
from unetfast.loader.batch import Batch
from unetfast.train.randomness import numeric_settings
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run

NUM_CLASSES = 2
OURS: dict[str, list[str]] = {
    "ours": [],
    "graphs": ["train.compile=graphs"],
    "eager": ["train.compile=off"],
    "float32-nchw": ["train.compile=off", "train.amp=off", "train.channels_last=false"],
}
PEERS = ("milesial", "milesial-amp", "smp")
_IMAGES_PX = 2_500_000  # pixels of a batch, about, unless its size is given: 64 images of 160x240, 4 of 640x960
_WARMUP_STEPS = 3


class PeerRung:
    """Optimizer steps of somebody else's, on one resident batch.

    Args:
        name: of the side.
        step: one optimizer step; returns the loss.
        reads_loss: whether its loop reads the loss behind every step, which waits for the GPU.
        num_images: of the batch.
        device: where it lies.
        facts: what the record should say of it.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Any],
        num_images: int,
        device: torch.device,
        facts: dict[str, Any],
        *,
        reads_loss: bool,
    ) -> None:
        self.name = name
        self._step, self._num_images, self._device, self._facts = step, num_images, device, facts
        self._reads_loss = reads_loss
        self._num_steps = 1

    def warm_up(self, seconds: float) -> None:
        """Take a few steps; see `unetfast.bench.rung.Rung`."""
        self._take(_WARMUP_STEPS)
        began_s = time.perf_counter()
        self._take(_WARMUP_STEPS)
        self._num_steps = steps_of(seconds, (time.perf_counter() - began_s) / _WARMUP_STEPS)

    def run_round(self) -> Round:
        """Take the steps that the warm-up has settled."""
        watch = Stopwatch()
        self._take(self._num_steps)
        wall_s, core_s = watch.read()
        return Round(self._num_steps * self._num_images, wall_s, core_s, {"step_ms": 1000 * wall_s / self._num_steps})

    def describe(self) -> dict[str, Any]:
        """Tell what a step is."""
        return {"steps_per_round": self._num_steps, "batch_size": self._num_images, **self._facts}

    def _take(self, num_steps: int) -> None:
        for _ in range(num_steps):
            loss = self._step()
            if self._reads_loss:
                loss.item()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def draw_batch(num_images: int, size_hw: tuple[int, int], device: torch.device, seed: int) -> Batch:
    """Draw a batch of random pixels and classes: what they are changes no step's cost."""
    draw = torch.Generator().manual_seed(seed)
    image_NHWC = torch.randint(0, 256, (num_images, *size_hw, 3), dtype=torch.uint8, generator=draw)
    mask_NHW = torch.randint(0, NUM_CLASSES, (num_images, *size_hw), dtype=torch.uint8, generator=draw)
    return Batch(image_NHWC.permute(0, 3, 1, 2).to(device), mask_NHW.to(device), np.arange(num_images))


def build_side(name: str, batch: Batch, shards: Path, settings: list[str], stack: ExitStack) -> Rung:
    """Build one side; `stack` closes what it opened.

    Raises:
        UserError: the name or a setting is unknown, or the side cannot be had with these settings or on this device.
    """
    device = batch.image_NCHW.device
    if name in OURS:
        run = _build_run(name, batch, shards, settings + OURS[name], stack)
        is_traced = device.type == "cuda" and name in ("ours", "eager")  # held against the device's limits
        return ModelRung(run, batch, name=name, traced=is_traced)
    if name in PEERS:
        return _build_peer(name, batch, build_config(apply_overrides(_read_tree(), settings), where=name).model.base_channels)
    raise UserError(f"--sides {name}: no such side; there are {', '.join((*OURS, *PEERS))} ({device})")


def _read_tree() -> dict[str, Any]:
    return read_preset_tree("carvana")


def _build_run(name: str, batch: Batch, shards: Path, settings: list[str], stack: ExitStack) -> Run:
    num_images, _, height, width = batch.image_NCHW.shape
    device = batch.image_NCHW.device
    overrides = [f"train.device={device.type}", f"loader.size_hw=[{height}, {width}]", f"loader.batch_size={num_images}"]
    tree = apply_overrides(_read_tree(), [*overrides, "loader.backend=cpu", "train.on_out_of_memory=error", *settings])
    config = build_config(tree, where=f"side {name}")
    folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    return stack.enter_context(build_run(shards, config, folder))


def _build_peer(name: str, batch: Batch, base_channels: int) -> PeerRung:
    from peers.nets import PEERS as BUILDERS

    device = batch.image_NCHW.device
    with torch.device(device):
        peer = BUILDERS[name.removesuffix("-amp")](base_channels, batch.image_NCHW, batch.mask_NHW)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16

    def step() -> Any:
        with torch.autocast(device.type, dtype) if name.endswith("-amp") else nullcontext():
            return peer.step()

    facts = {**peer.facts, "autocast": str(dtype)} if name.endswith("-amp") else peer.facts
    return PeerRung(name, step, len(batch.image_NCHW), device, facts, reads_loss=name != "smp")


def measure(
    names: list[str], batch: Batch, shards: Path, settings: list[str], *, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Build the sides and let them take turns; returns for each its figures, or `error`: why there are none."""
    device = batch.image_NCHW.device
    errors: dict[str, str] = {}
    rungs: dict[str, Rung] = {}

    def guard(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # out of memory, a compiler's, a user's: the other sides go on
            if not isinstance(error, UserError):
                traceback.print_exc()
            errors[name] = str(error) if isinstance(error, UserError) else one_line(error)
            print(f"error: {name}: {errors[name]}", flush=True)
            raise SideError(name) from None

    def start(name: str) -> None:
        began_s = time.perf_counter()
        rungs[name] = build_side(name, batch, shards, settings, stack)
        rungs[name].warm_up(seconds)
        print(f"{name}: warm after {time.perf_counter() - began_s:.1f} s, compilation included", flush=True)

    with ExitStack() as stack:
        stack.enter_context(numeric_settings(seed=0, deterministic=False, device=device))
        take_turns({name: partial(guard, name, partial(start, name)) for name in names}, 1)
        peaks = {name: Peaks(device) for name in names}

        def turn(name: str) -> Round:
            with peaks[name].watching():
                return rungs[name].run_round()

        turns = take_turns({name: partial(guard, name, partial(turn, name)) for name in names if name not in errors}, rounds)
        going = [name for name in names if name not in errors]
        figures = {name: sum_up(rungs[name], turns[name], peaks[name]).to_json() for name in going}
    return {name: figures.get(name) or {"error": errors[name]} for name in names}


def build_bars(device: str, size_hw: tuple[int, int], sides: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the bars of one size: images/s where the size has a floor, and ratios to the other ways."""
    rounds = _rounds(sides, "ours")
    what = f"training step, {size_hw[0]}x{size_hw[1]}"
    bars = []
    if size_hw in TRAINING_FLOORS:
        floor, goal = TRAINING_FLOORS[size_hw]
        note = _tell_of_graphs(sides)
        bars.append(gpu_bar("G1", what, rounds, device=device, floor=floor, goal=goal, unit="images/s", note=note))
    for name, (floor, goal) in TRAINING_RATIOS.items():
        ratios = divide(rounds, _rounds(sides, name))
        bars.append(gpu_bar("G1", f"{what}, against {name}", ratios, device=device, floor=floor, goal=goal))
    return bars


def _tell_of_graphs(sides: dict[str, Any]) -> str:
    """Say what CUDA graphs give beside; nothing where one of the two has no figure."""
    if not _rounds(sides, "ours") or not _rounds(sides, "graphs"):
        return ""
    return f"train.compile=graphs: {sides['graphs']['images_per_s']['median']:.4g} images/s"


def _rounds(sides: dict[str, Any], name: str) -> list[float]:
    side = sides.get(name, {"error": "not asked for"})
    return [] if "error" in side else list(side["images_per_s"]["rounds"])


def format_sides(sides: dict[str, Any]) -> str:
    """Write a table for people."""
    rows = [["side", "images/s", "step ms", "core-ms/image", "device MiB", "% of matrix rate", "% of roofline"]]
    for name, side in sides.items():
        if "error" in side:
            continue
        facts, memory = side["facts"], side["device_peak_mib"]
        shares = (facts.get(key) for key in ("share_of_matrix_rate_pct", "share_of_roofline_pct"))
        core_ms = 1000 * side["core_s_per_image"]["median"]
        cells = [format_spread(side["images_per_s"]), format_spread(facts["step_ms"]), f"{core_ms:.3g}"]
        rows.append([name, *cells, *("-" if value is None else f"{value:.0f}" for value in (memory, *shares))])
    return "\n".join([format_table(rows), *(f"{name}: {side['error']}" for name, side in sides.items() if "error" in side)])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", type=parse_size, action="append", help="HEIGHTxWIDTH; repeatable (default: all with a floor)")
    parser.add_argument("--batch-size", type=int, default=0, help="(default: as many as make 2.5 million pixels)")
    parser.add_argument("--sides", default=",".join((*OURS, *PEERS)), help="(default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all our sides")
    parser.add_argument("--data", type=Path, default=default_root(), help="keeps toy shards (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pixels and classes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a round")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0 or given.batch_size < 0:
        parser.error("--rounds and --seconds must be above 0, --batch-size not below")
    given.size = given.size or list(TRAINING_FLOORS)
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    try:
        device = resolve_device(given.device)
        build_config(apply_overrides(_read_tree(), given.set), where="settings of our sides")
        # what a run needs beside its batch: class table, normalisation
        shards = make_toy_shards("carvana", given.data, small=True).shards
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record: dict[str, Any] = {
        "benchmark": "gpu_training",
        "command": sys.argv[1:] if arguments is None else arguments,
        "device": given.device,
        "environment": describe_environment(),
        "data": "one batch of random pixels on the device",
        "settings": given.set,
        "rounds": given.rounds,
        "sizes": {},
        "bars": [],
    }
    for size_hw in given.size:
        num_images = given.batch_size or max(1, _IMAGES_PX // (size_hw[0] * size_hw[1]))
        name = f"{size_hw[0]}x{size_hw[1]}"
        print(f"{name}, {num_images} images", flush=True)
        batch = draw_batch(num_images, size_hw, device, given.seed)
        sides = measure(given.sides.split(","), batch, shards, given.set, rounds=given.rounds, seconds=given.seconds)
        print(format_sides(sides), flush=True)
        record["sizes"][name] = {"batch_size": num_images, "sides": sides}
        record["bars"] += build_bars(given.device, size_hw, sides)
    finish(record, given.json)
    missing = {"graphs"} if given.device != "cuda" else set()
    failed = [name for one in record["sizes"].values() for name, side in one["sides"].items() if "error" in side]
    return 1 if set(failed) - missing else 0


if __name__ == "__main__":
    sys.exit(main())
