"""The loader's tax: training on real batches against training on one batch that already lies on the device.

    python benchmarks/loader_tax.py --toy carvana --device cuda --backends dali,cpu --threads 4 --cores 4

The step is the one that `unetfast train` takes (`unetfast.train.step.train_step` on the run that `build_run` makes: compiled,
channels_last, number format by device), on the same net and batch size for all sides, whose rounds take turns. A ratio of 1
means that data cost nothing. Prints a table for people and one JSON line last; the exit code is 1 when a backend failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from apart import one_line
from device_meter import DeviceMeter
from gpu_bars import LOADER_TAX, gpu_bar

from unetfast.bench.harness import (
    SideError,
    add_record_argument,
    describe_environment,
    finish,
    format_spread,
    format_table,
    spread,
    take_turns,
)
from unetfast.bench.model import repeat_batch
from unetfast.bench.shardfacts import describe_shards
from unetfast.bench.toyshards import add_data_arguments, make_toy_shards
from unetfast.config import apply_overrides, build_config, read_preset_tree
from unetfast.data.manifest import read_manifest
from unetfast.device import num_usable_cores, resolve_device
from unetfast.errors import UserError
from unetfast.loader.batch import Batch
from unetfast.loader.build import build_loader
from unetfast.train.meter import StepClock
from unetfast.train.randomness import numeric_settings
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run, count_parameters, preset_for
from unetfast.train.step import train_step

RESIDENT = "resident"
CACHED = "cache-gpu"  # no backend, but loader.cache = "gpu"
LEAD_IN = 4  # steps at the start of a round, so that no batch made before it is counted
WARMUP_STEPS = 8
MIN_STEPS = 5


def measure_tax(
    run: Run, sides: dict[str, Iterator[Batch]], *, rounds: int, seconds: float, cores: int, meter: DeviceMeter
) -> tuple[int, dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Train on each side in turn.

    Args:
        run: its weights go on changing from side to side; that changes no step's cost.
        sides: endless batches by name.
        rounds: of each side.
        seconds: of a round, about.
        cores: that the process may use once it is warm, so that compilation still has the whole machine; 0: all.
        meter: of the run's device.

    Returns:
        Steps a round, what each side's rounds measured, and why a side ended early.
    """
    errors: dict[str, str] = {}

    def turn(name: str, num_steps: int) -> dict[str, Any]:
        try:
            took = _train_round(run, sides[name], num_steps, meter)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            errors[name] = one_line(error)
            print(f"error: {name}: {errors[name]}", flush=True)
            raise SideError(name) from None
        print(f"{name}: {took['images_per_s']:.1f} images/s, data wait {took['data_wait_pct']:.2f} %", flush=True)
        return took

    began_s = time.perf_counter()
    warm = take_turns({name: lambda name=name: turn(name, WARMUP_STEPS) for name in sides}, 1)
    print(f"warm-up {time.perf_counter() - began_s:.1f} s, compilation included", flush=True)
    if cores:
        pin_to_cores(cores)
    going = [name for name in sides if name not in errors]
    # the first side compiled in its warm-up: the fastest tells a step's length
    step_s = min((warm[name][0]["step_s"] for name in going), default=1.0)
    num_steps = max(MIN_STEPS, round(seconds / step_s))
    return num_steps, take_turns({name: lambda name=name: turn(name, num_steps) for name in going}, rounds), errors


def _train_round(run: Run, batches: Iterator[Batch], num_steps: int, meter: DeviceMeter) -> dict[str, Any]:
    for _ in range(LEAD_IN):
        train_step(run, next(batches))
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    with meter.sampling():
        cpu_began_s, began_s = time.process_time(), time.perf_counter()
        clock = StepClock(run.device)
        for _ in range(num_steps):
            with clock.waiting():
                batch = next(batches)
            train_step(run, batch)
            clock.end_step()
        speed = clock.read(run.config.loader.batch_size)  # waits for the GPU
        cores_used = (time.process_time() - cpu_began_s) / (time.perf_counter() - began_s)
    return {
        "images_per_s": speed.images_per_s,
        "data_wait_pct": speed.data_wait_pct,
        "step_s": speed.step_s,
        "cores_used": cores_used,
        **meter.read(),
    }


def pin_to_cores(num_cores: int) -> None:
    """Hold every thread of this process to the first cores it may use; threads made later follow their makers."""
    cores = sorted(os.sched_getaffinity(0))[:num_cores]
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), cores)
    torch.set_num_threads(min(num_cores, torch.get_num_threads()))  # more would wait for each other in turn


def sum_up(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Turn rounds into figures; `ratio` is images/s over the resident batch's, round by round."""
    figures: dict[str, dict[str, Any]] = {}
    resident = rounds.get(RESIDENT, [])
    for name, took in rounds.items():
        if not took or len(took) != len(resident):
            continue  # it ended early; its error stands elsewhere
        told = [one for one in took if one["gpu_pct"] is not None]
        ratios = [one["images_per_s"] / base["images_per_s"] for one, base in zip(took, resident, strict=True)]
        figures[name] = {
            "images_per_s": spread([one["images_per_s"] for one in took]),
            "ratio": spread(ratios),
            "data_wait_pct": spread([one["data_wait_pct"] for one in took]),
            "step_ms": spread([1000 * one["step_s"] for one in took]),
            "cores_used": spread([one["cores_used"] for one in took]),
            "gpu_pct": spread([one["gpu_pct"] for one in told], 3) if told else None,
        }
    return figures


def build_bars(device: str, dataset: str, cores: int, figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the bars of G2: the tax of DALI, and of a data set that lies on the card."""
    floor, goal = LOADER_TAX
    bars = []
    for name in ("dali", CACHED):
        rounds = figures[name]["ratio"]["rounds"] if name in figures else None
        what = f"loader tax, {dataset}, {cores} core{'s' * (cores != 1)}, {name}"
        bars.append(gpu_bar("G2", what, rounds, device=device, floor=floor, goal=goal))
    return bars


def format_figures(figures: dict[str, dict[str, Any]]) -> str:
    """Write a table for people."""
    columns = ("images_per_s", "ratio", "data_wait_pct", "step_ms", "cores_used", "gpu_pct")
    rows = [["batches", "images/s", "ratio to resident", "data wait %", "step ms", "cores used", "GPU %"]]
    rows += [[name, *(format_spread(side[column]) for column in columns)] for name, side in figures.items()]
    return format_table(rows)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--backends", default="dali,cpu", help=f"of the loader, separated by commas; {CACHED}: loader.cache = gpu"
    )
    parser.add_argument("--threads", type=int, default=4, help="of the loader")
    parser.add_argument("--cores", type=int, default=0, help="that the whole process may use while it measures; 0: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting on top of the preset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if given.cores > num_usable_cores():
        parser.error(f"--cores {given.cores}: there are {num_usable_cores()} here")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    record: dict[str, Any] = {"benchmark": "loader_tax", "command": sys.argv[1:] if arguments is None else arguments}
    record |= {"device": given.device, "toy": given.toy is not None, "environment": describe_environment()}
    try:
        if given.toy:
            given.shards = make_toy_shards(given.toy, given.data, small=given.small, seed=given.seed).shards
        record |= {"data": describe_shards(given.shards), **_measure(given)}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_figures(record["sides"]))
    record["bars"] = build_bars(given.device, record["data"]["dataset"], record["cores"], record["sides"])
    finish(record, given.json)
    return 1 if record["errors"] else 0


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    device = resolve_device(given.device)
    preset = preset_for(read_manifest(given.shards), device)
    backends = given.backends.split(",")
    # the run's own loader is the CPU's, which works everywhere; the others are built beside it
    overrides = [f"train.device={given.device}", f"loader.threads={given.threads}", *given.set, "loader.backend=cpu"]
    tree = apply_overrides(read_preset_tree(preset), overrides)
    config = build_config(tree, where=f"preset {preset}")
    meter = DeviceMeter(device)
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(numeric_settings(seed=config.train.seed, deterministic=False, device=device))
        folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        run = stack.enter_context(build_run(given.shards, config, folder))
        sides: dict[str, Iterator[Batch]] = {RESIDENT: repeat_batch(next(iter(run.loader)))}
        for backend in backends:
            try:
                setting = "loader.cache=gpu" if backend == CACHED else f"loader.backend={backend}"
                of_side = build_config(apply_overrides(tree, [setting]), where=f"backend {backend}")
                loader = build_loader(run.train_reader, of_side, training=True, device=device)
                sides[backend] = iter(stack.enter_context(loader))
            except UserError as error:
                errors[backend] = str(error)
                print(f"error: {backend}: {error}", flush=True)
        meter.start()
        cores = given.cores or num_usable_cores()
        num_steps, rounds, failed = measure_tax(
            run, sides, rounds=given.rounds, seconds=given.seconds, cores=given.cores, meter=meter
        )
        return {
            "config": config.model_dump(mode="json"),
            "preset": preset,
            "compiled": run.compiled,
            "amp": run.amp.name,
            "parameters": count_parameters(run.model),
            "cores": cores,
            "rounds": given.rounds,
            "steps_per_round": num_steps,
            "sides": sum_up(rounds),
            "errors": errors | failed,
            **meter.memory(),
        }


if __name__ == "__main__":
    sys.exit(main())
