"""C8: an optimizer step of the U-Net on the CPU, ours against R1's float32 loop and others, on the same images in memory.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --sides r1,ours,ours-compiled --widths 16

Every side is a process of its own (stepside.py); rounds take turns. R1 runs as its loop does: float32, NCHW, eager, torch's own
number of threads. The ratio is images/s over R1's in the same round. It counts only if our step does at least R1's work
(FLOPs by torch's counter) and its loss falls. Prints a table for people and one JSON line last; the exit code is 1 when a side
failed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bar import absent_bar, format_bar, lost_bar, make_bar
from side import SideProcess
from stepside import OURS, PEER_NAMES, NetSpec, build_net_side

from unetfast.bench.harness import (
    SideError,
    describe_environment,
    finish,
    format_spread,
    format_table,
    read_cpu_features,
    spread,
    take_turns,
)
from unetfast.bench.toyshards import default_root, draw_toy, pack_toy

FLOOR, GOAL = 2.8, 5.0
BATCH_SIZES = {64: 4, 16: 16}  # by base channels; others take 4
SIZE_HW = (160, 240)  # R1's
QUICK_HW = (32, 48)
SIDES = ("r1", "milesial", "smp", "ours", "ours-float32")
QUICK_SIDES = ("r1", "ours")
START_TIMEOUT_S = 300.0  # two steps of the slowest side on a busy machine, or a compilation
LESS_WORK = 0.98  # of R1's FLOPs: below that, the steps are not the same


def measure_width(specs: list[NetSpec], *, rounds: int, seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all sides of one width in turn.

    Args:
        specs: of the sides.
        rounds: of each.
        seconds: of a round, about; at least one step is taken.

    Returns:
        Figures by side, and why a side ended early.
    """
    sides = {spec.side: SideProcess(spec.side, build_net_side, spec, "cpu", start_timeout_s=START_TIMEOUT_S) for spec in specs}
    took: dict[str, list[dict[str, Any]]] = {}
    try:
        for side in sides.values():
            with contextlib.suppress(SideError):  # its `error` says why
                side.start(1e-3)  # the build has warmed it up
        going = {name: side for name, side in sides.items() if not side.error}
        took = take_turns({name: lambda side=side: side.run_round(seconds) for name, side in going.items()}, rounds)
    finally:
        for side in sides.values():
            side.ask_to_end()
        for side in sides.values():
            side.close()
    errors = {name: side.error for name, side in sides.items() if side.error}
    for name, error in errors.items():
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
    return {name: _sum_up(results, sides[name].facts) for name, results in took.items() if name not in errors}, errors


def _sum_up(rounds: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "images_per_s": spread([took["images_per_s"] for took in rounds]),
        "core_s_per_image": spread([took["cpu_s_per_image"] for took in rounds]),
        "cores_used": spread([took["cores_used"] for took in rounds]),
        "host_peak_mib": max(took["host_peak_mib"] for took in rounds),
        "facts": facts,
    }


def judge(
    spec: NetSpec, figures: dict[str, Any], side: str, *, errors: Mapping[str, str], has_amx: bool
) -> dict[str, Any] | None:
    """Turn the figures of one of our sides into its bar.

    Args:
        spec: of the width.
        figures: by side, of those that went through all rounds.
        side: of ours.
        errors: by side, why the others did not.
        has_amx: False on a processor that cannot measure it.

    Returns:
        The bar, "failed" where this side or R1 did; None where one of them was not asked for.
    """
    height, width = spec.size_hw
    what = f"training step, {spec.base_channels} base channels, {height}x{width}: {side} / R1's float32 step"
    if not has_amx:
        return absent_bar("C8", what, floor=FLOOR, goal=GOAL, reason="this processor has no amx_bf16 instructions")
    failed = "; ".join(f"{name}: {errors[name]}" for name in (side, "r1") if name in errors)
    if failed:
        return lost_bar("C8", what, floor=FLOOR, goal=GOAL, reason=failed)
    if side not in figures or "r1" not in figures:
        return None
    ours, r1 = figures[side], figures["r1"]
    ratios = [mine / theirs for mine, theirs in zip(ours["images_per_s"]["rounds"], r1["images_per_s"]["rounds"], strict=True)]
    note = find_fault(ours["facts"], r1["facts"])
    return make_bar("C8", what, ratios, floor=FLOOR, goal=GOAL, sound=not note, note=note)


def find_fault(ours: dict[str, Any], r1: dict[str, Any]) -> str:
    """Say why a ratio is not one of equals; empty where it is."""
    work = ours["gflop_per_image"]
    if work is not None and work < LESS_WORK * r1["gflop_per_image"]:
        return f"our step has {work} GFLOP an image, R1's {r1['gflop_per_image']}"
    losses = ours["losses"]
    if not losses[-1] < losses[0]:
        return f"the loss does not fall: {losses}"
    return ""


def format_figures(figures: dict[str, dict[str, Any]]) -> str:
    """Write a table for people; `figures` by width and side."""
    rows = [["side", "images/s", "core-s/image", "cores", "peak MiB", "GFLOP/image", "losses"]]
    for width, sides in figures.items():
        for name, side in sides.items():
            facts = side["facts"]
            rows.append(
                [
                    f"{width}: {name}",
                    *(format_spread(side[column], 3) for column in ("images_per_s", "core_s_per_image", "cores_used")),
                    f"{side['host_peak_mib']:.0f}",
                    str(facts["gflop_per_image"] or "-"),
                    " ".join(map(str, facts.get("losses", "-"))),
                ]
            )
    return format_table(rows)


def add_net_arguments(parser: argparse.ArgumentParser, sides: tuple[str, ...]) -> None:
    """Let a program of resident batches be told its sides, widths and data."""
    parser.add_argument("--sides", default=",".join(sides), help=f"of {', '.join((*PEER_NAMES, *OURS))}")
    parser.add_argument("--widths", default="64,16", help="base channels (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, about; at least one step")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn images, weights and order")
    parser.add_argument("--data", type=Path, default=default_root(), help="keeps toy data (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of small nets on small images: does it work?")
    parser.add_argument("--json", type=Path, default=None, help="write the record here too")


def plan(given: argparse.Namespace, *, trains: bool) -> dict[int, list[NetSpec]]:
    """Turn arguments into sides by width; images are drawn and packed here."""
    names = given.sides.split(",")
    shards = pack_toy(draw_toy("carvana", given.data, small=True, seed=given.seed), "carvana")
    size_hw = QUICK_HW if given.quick else SIZE_HW
    plans = {}
    for width in map(int, given.widths.split(",")):
        batch_size = 2 if given.quick else BATCH_SIZES.get(width, 4)
        channels = max(1, width // 8) if given.quick else width
        plans[width] = [
            NetSpec(name, shards, channels, batch_size, size_hw, given.seed, int(given.quick), trains) for name in names
        ]
    return plans


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse what `add_net_arguments` added; under --quick there are two short rounds."""
    given = parser.parse_args(arguments)
    wrong = [name for name in given.sides.split(",") if name not in (*PEER_NAMES, *OURS)]
    if wrong:
        parser.error(f"--sides: no side {wrong[0]!r}; there are {', '.join((*PEER_NAMES, *OURS))}")
    if not all(width.isdecimal() and int(width) > 0 for width in given.widths.split(",")):
        parser.error(f"--widths {given.widths}: whole numbers above 0, separated by commas")
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if given.quick:
        given.rounds, given.seconds = min(2, given.rounds), 0.05
        given.sides, given.widths = (
            ",".join(name for name in given.sides.split(",") if name in QUICK_SIDES) or given.sides,
            given.widths.split(",")[-1],
        )
    return given


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_net_arguments(parser, SIDES)
    given = parse(parser, arguments)
    has_amx = "amx_bf16" in read_cpu_features()
    figures, errors, bars = {}, {}, []
    plans = plan(given, trains=True)
    for width, specs in plans.items():
        figures[width], failed = measure_width(specs, rounds=given.rounds, seconds=given.seconds)
        errors |= {f"{width}: {name}": reason for name, reason in failed.items()}
        bars += [
            bar
            for name in ("ours", "ours-compiled")
            if name in given.sides.split(",") and (bar := judge(specs[0], figures[width], name, errors=failed, has_amx=has_amx))
        ]
    print(format_figures(figures))
    print("\n".join(map(format_bar, bars)))
    record = {
        "benchmark": "training_step",
        "command": sys.argv[1:] if arguments is None else arguments,
        "environment": describe_environment(),
        "data": {"toy": "carvana", "seed": given.seed, "quick": given.quick, "size_hw": next(iter(plans.values()))[0].size_hw},
        "rounds": given.rounds,
        "sides": {f"{width}: {name}": side for width, sides in figures.items() for name, side in sides.items()},
        "bars": bars,
        "errors": errors,
    }
    finish(record, given.json)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
