"""From encoded images to batches on the GPU (G3): DALI beside torchvision's CUDA decoder and torch DataLoaders of many workers.

    python benchmarks/gpu_decode.py --device cuda --toy ade20k --size 256x256

`dali` and `cpu` are our backends with masks, checksums and the preset's augmentation; the others make the image alone
(decode_sides.py). Each side is a process of its own; their rounds take turns. Prints a table for people and one JSON line last;
the exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from decode_sides import DecodePlan
from gpu_bars import DECODE_FLOORS, DECODE_RATIO, divide, gpu_bar
from loader import format_results, parse_size, run
from sides import plan_sides

from unetfast.bench.harness import add_record_argument, describe_environment, finish
from unetfast.bench.shardfacts import describe_shards
from unetfast.bench.toyshards import add_data_arguments, make_toy_shards
from unetfast.config import apply_overrides, build_config, preset_names, read_preset_tree
from unetfast.data.manifest import read_manifest
from unetfast.errors import UserError

OURS = "dali"
_OUR_BACKENDS = ("dali", "cpu", "cpu-fast", "resident")


def build_bars(device: str, dataset: str, size_hw: tuple[int, int], sides: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the bars of G3: images/s of DALI, and its ratio to whichever other side was fastest in the same rounds."""
    ours = _rounds(sides, OURS)
    others = {name: rounds for name in sides if name != OURS and (rounds := _rounds(sides, name))}
    best = max(others, key=lambda name: sides[name]["images_per_s"]["median"], default="")
    what = f"{dataset}, stored size to {size_hw[0]}x{size_hw[1]}"
    ratio = divide(ours, others[best]) if best else []
    bars = [
        gpu_bar("G3", f"DALI alone, {what}, against {best or 'the others'}", ratio, device=device, floor=DECODE_RATIO, goal=2.0)
    ]
    if dataset in DECODE_FLOORS:
        floor = DECODE_FLOORS[dataset]
        bars.append(gpu_bar("G3", f"DALI alone, {what}", ours, device=device, floor=floor, goal=floor, unit="images/s"))
    return bars


def _rounds(sides: dict[str, Any], name: str) -> list[float]:
    side = sides.get(name, {"error": "not asked for"})
    return [] if "error" in side else list(side["images_per_s"]["rounds"])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--size", type=parse_size, required=True, help="HEIGHTxWIDTH of a batch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--sides", default=f"{OURS},cpu,torchvision-cuda,workers-8,workers-16", help="(default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0 or given.batch_size < 1:
        parser.error("--rounds, --seconds and --batch-size must be above 0")
    return given


def plan(given: argparse.Namespace, dataset: str) -> tuple[list[Any], dict[str, Any]]:
    """Turn the arguments into sides; returns them and our config."""
    tree = read_preset_tree(dataset if dataset in preset_names() else "folder")
    height, width = given.size
    overrides = [f"loader.size_hw=[{height}, {width}]", f"loader.batch_size={given.batch_size}", *given.set]
    config = build_config(apply_overrides(tree, overrides), where="settings of our side")
    plans: list[Any] = []
    for name in given.sides.split(","):
        if name.split(":")[0] in _OUR_BACKENDS:
            plans += plan_sides([name], tree, overrides, shards=given.shards, png_shards=None, device=given.device)
        else:
            other = DecodePlan(name, given.shards, given.device, given.size, given.batch_size, given.seed)
            _ = other.build  # an unknown name is said before anything starts
            plans.append(other)
    return plans, config.model_dump(mode="json", include={"loader", "dali", "augment"})


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    try:
        if given.toy:
            given.shards = make_toy_shards(given.toy, given.data, small=given.small, seed=given.seed).shards
        dataset = read_manifest(given.shards).dataset
        plans, config = plan(given, dataset)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record: dict[str, Any] = {
        "benchmark": "gpu_decode",
        "command": sys.argv[1:] if arguments is None else arguments,
        "device": given.device,
        "toy": given.toy is not None,
        "data": describe_shards(given.shards),
        "config": config,
        "size_hw": list(given.size),
        "rounds": given.rounds,
        "environment": describe_environment(),
    }
    record["sides"] = run(plans, rounds=given.rounds, seconds=given.seconds, warmup_s=given.seconds)
    print(format_results(record["sides"]))
    record["bars"] = build_bars(given.device, dataset, given.size, record["sides"])
    finish(record, given.json)
    return 1 if any("error" in side for side in record["sides"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
