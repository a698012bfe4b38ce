"""Images a second of a loader alone: our backends, their settings, and the yardstick, side by side in turn.

    python benchmarks/loader.py --toy ade20k --size 256x256 --device cuda --sides cpu,dali,yardstick
    python benchmarks/loader.py --shards shards/carvana --png-shards shards/carvana-png --size 160x240 --device cuda \\
        --sides dali:hw_decoder_load=0,dali:hw_decoder_load=0.65,dali:hw_decoder_load=1

Each side runs in a process of its own (side.py); the sides' rounds take turns. Augmentation is that of the data set's
preset. Prints a table for people and one JSON line last. The exit code is 1 when a side failed; the others are told all
the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side import START_TIMEOUT_S, SideProcess
from sides import plan_sides

from unetfast.bench.harness import (
    SideError,
    add_record_argument,
    describe_environment,
    finish,
    format_spread,
    format_table,
    percentile,
    spread,
    take_turns,
)
from unetfast.bench.shardfacts import describe_shards
from unetfast.bench.toyshards import add_data_arguments, make_toy_shards
from unetfast.config import apply_overrides, build_config, preset_names, read_preset_tree
from unetfast.data.manifest import read_manifest
from unetfast.errors import UserError


def run(
    plans: list[Any], *, rounds: int, seconds: float, warmup_s: float, start_timeout_s: float = START_TIMEOUT_S
) -> dict[str, dict[str, Any]]:
    """Build all sides, let them take turns, and sum up what each did.

    Args:
        plans: the sides: `sides.SidePlan` or others with name, settings, device and build.
        rounds: of each side.
        seconds: of a round.
        warmup_s: of each side's first round, which is not counted.
        start_timeout_s: longest time for a side's imports, and again to build it.

    Returns:
        For each side its figures, or `error`: why there are none.
    """
    processes = {
        plan.name: SideProcess(plan.name, plan.build, plan, plan.device, start_timeout_s=start_timeout_s) for plan in plans
    }
    warmups: dict[str, dict[str, Any]] = {}
    try:
        for name, process in processes.items():
            try:
                warmups[name] = process.start(warmup_s)
                print(f"{name}: {process.facts['batch'][0]}", flush=True)
            except SideError as error:
                print(f"error: {error}", flush=True)
        turns = take_turns({name: _turn(processes[name], seconds) for name in warmups}, rounds)
    finally:
        for process in processes.values():
            process.ask_to_end()
        for process in processes.values():
            process.close()
    results: dict[str, dict[str, Any]] = {}
    for plan in plans:
        process = processes[plan.name]
        results[plan.name] = {"settings": plan.settings, **process.facts}
        if process.error:
            results[plan.name]["error"] = process.error
        else:
            results[plan.name] |= _sum_up(turns[plan.name], warmups[plan.name])
    _add_ratios(results)
    return results


def _turn(process: SideProcess, seconds: float) -> Callable[[], dict[str, Any]]:
    def turn() -> dict[str, Any]:
        try:
            return process.run_round(seconds)
        except SideError as error:
            print(f"error: {error}", flush=True)
            raise

    return turn


def _sum_up(rounds: list[dict[str, Any]], warmup: dict[str, Any]) -> dict[str, Any]:
    waits_ms = [1000 * wait_s for one in rounds for wait_s in one["waits_s"]]
    figures: dict[str, Any] = {
        "images_per_s": spread([one["images_per_s"] for one in rounds]),
        "core_ms_per_image": spread([1000 * one["cpu_s_per_image"] for one in rounds]),
        "cores_used": spread([one["cores_used"] for one in rounds]),
        "batch_ms": {name: round(percentile(waits_ms, share), 3) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1))},
    }
    for name in ("gpu_pct", "jpeg_unit_pct"):
        told = [one[name] for one in rounds if one[name] is not None]
        figures[name] = spread(told, 3) if told else None
    figures["no_shares_because"] = rounds[-1]["no_shares_because"]
    # the device's memory is told for all processes together, and only the first round was alone in taking some
    figures |= {name: warmup[name] for name in ("device_mib", "torch_device_mib")}
    figures |= {name: rounds[-1][name] for name in ("host_peak_mib", "workers_peak_mib")}
    return figures


def _add_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Add images/s over that of the yardstick (of the first side where it is not there), round by round."""
    going = [name for name, side in results.items() if "error" not in side]
    if not going:
        return
    base = next((name for name in going if name.startswith("yardstick")), going[0])
    of_base = results[base]["images_per_s"]["rounds"]
    for name in going:
        rounds = results[name]["images_per_s"]["rounds"]
        results[name]["ratio"] = {"to": base, **spread([own / other for own, other in zip(rounds, of_base, strict=True)])}


def format_results(results: dict[str, dict[str, Any]]) -> str:
    """Write a table for people."""
    rows = [["side", "images/s", "ratio", "cores used", "core-ms/image", "host MiB", "device MiB", "GPU %", "JPEG unit %"]]
    for name, side in results.items():
        if "error" in side:
            continue
        memory = [side["host_peak_mib"], side["device_mib"]]
        shares = [side["gpu_pct"], side["jpeg_unit_pct"]]
        rows.append(
            [
                name,
                *(format_spread(side[figure]) for figure in ("images_per_s", "ratio", "cores_used", "core_ms_per_image")),
                *("-" if value is None else f"{value:.0f}" for value in memory),
                *("-" if share is None else f"{share['median']:.0f}" for share in shares),
            ]
        )
    failed = [f"{name}: {side['error']}" for name, side in results.items() if "error" in side]
    to = next((side["ratio"]["to"] for side in results.values() if "ratio" in side), "")
    notes = [f"median (min..max) over rounds; ratio: images/s over that of {to}"] if to else []
    return "\n".join([format_table(rows), *notes, *failed])


def parse_size(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: give HEIGHTxWIDTH, such as 160x240")
    return int(height), int(width)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--png-shards", type=Path, help="those of --shards, packed with --image-codec png --mask-codec png")
    parser.add_argument("--size", type=parse_size, default=None, help="HEIGHTxWIDTH of a batch (default: the preset's)")
    parser.add_argument("--batch-size", type=int, default=None, help="(default: the preset's)")
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0: all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sides",
        default="cpu,dali,yardstick",
        help="separated by commas: cpu, cpu-fast, dali, yardstick, or one with settings, dali:hw_decoder_load=0.5",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--warmup", type=float, default=None, help="seconds of the first round (default: as the others)")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    try:
        if given.toy:
            made = make_toy_shards(given.toy, given.data, small=given.small, seed=given.seed)
            given.shards, given.png_shards = made.shards, made.png_shards
        dataset = read_manifest(given.shards).dataset
        tree = read_preset_tree(dataset if dataset in preset_names() else "folder")
        overrides = [f"loader.threads={given.threads}"]
        if given.size is not None:
            overrides.append(f"loader.size_hw=[{given.size[0]}, {given.size[1]}]")
        if given.batch_size is not None:
            overrides.append(f"loader.batch_size={given.batch_size}")
        overrides += given.set
        shared = build_config(apply_overrides(tree, overrides), where="settings of all sides")
        names = given.sides.split(",")
        plans = plan_sides(names, tree, overrides, shards=given.shards, png_shards=given.png_shards, device=given.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folders = {plan.shards for plan in plans}
    record: dict[str, Any] = {
        "benchmark": "loader",
        "command": sys.argv[1:] if arguments is None else arguments,
        "device": given.device,
        "data": {folder.name: describe_shards(folder) for folder in sorted(folders)},
        "toy": given.toy is not None,
        "config": shared.model_dump(mode="json", include={"loader", "dali", "order", "augment"}),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "environment": describe_environment(),
    }
    record["sides"] = run(
        plans, rounds=given.rounds, seconds=given.seconds, warmup_s=given.seconds if given.warmup is None else given.warmup
    )
    print(format_results(record["sides"]))
    finish(record, given.json)
    return 1 if any("error" in side for side in record["sides"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
