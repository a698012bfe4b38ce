"""C8: an optimizer step of the U-Net on the CPU, ours against R1's float32 loop and others, on the same images in memory.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --all-sides
    python benchmarks/training_step.py --sides r1,ours,ours-compiled --widths 16

Every side is a process of its own (stepside.py); rounds take turns. Peers run as their loops do: eager, and on as many threads
as torch takes, which is a thread for each core; R1's loop has no other knob. The ratio is images/s over R1's in the same round.
It counts only if our step does at least R1's work (FLOPs by torch's counter) and its loss falls. The share of the matrix rate
that stands beside is of the rate that this machine reached in products of square matrices, in the same run. Prints a table for
people and one JSON line last; the exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import material
from apart import Apart
from bar import absent_bar, lost_bar, make_bar
from side import SideProcess
from stepside import OURS, PEER_NAMES, NetSpec, build_net_side

from unetfast.bench.harness import (
    SideError,
    format_spread,
    format_table,
    read_cpu_features,
    spread,
    take_turns,
)
from unetfast.bench.toyshards import draw_toy, pack_toy

FLOOR, GOAL = 2.8, 5.0
BATCH_SIZES = {64: 4, 16: 16}  # by base channels; others take 4
SIZE_HW = (160, 240)  # R1's
QUICK_HW = (32, 48)
SIDES = ("r1", "ours")  # of the bar
ALL_SIDES = ("r1", "milesial", "smp", "ours", "ours-float32")
START_TIMEOUT_S = 300.0  # two steps of the slowest side on a busy machine, or a compilation
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "off": "float32"}  # of products, by train.amp
MACHINE_TIMEOUT_S = 120.0
LESS_WORK = 0.98  # of R1's FLOPs: below that, the steps are not the same


def measure_width(specs: list[NetSpec], *, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Measure all sides of one width in turn.

    Args:
        specs: of the sides.
        rounds: of each.
        seconds: of a round, about; at least one step is taken.

    Returns:
        Figures by side; of one that ended early, why: {"error": ...}.
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
    figures = {name: _sum_up(results, sides[name].facts) for name, results in took.items() if name not in errors}
    return figures | {name: {"error": error} for name, error in errors.items()}


def _sum_up(rounds: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "images_per_s": spread([took["images_per_s"] for took in rounds]),
        "core_s_per_image": spread([took["cpu_s_per_image"] for took in rounds]),
        "cores_used": spread([took["cores_used"] for took in rounds]),
        "host_peak_mib": max(took["host_peak_mib"] for took in rounds),
        "facts": facts,
    }


def judge(
    spec: NetSpec, figures: dict[str, Any], side: str, machine: dict[str, Any], *, has_amx: bool
) -> dict[str, Any] | None:
    """Turn the figures of one of our sides into its bar.

    Args:
        spec: of the width.
        figures: by side, as `measure_width` gives them.
        side: of ours.
        machine: what it can do at most, as `measure_machine_apart` says.
        has_amx: False on a processor that cannot measure it.

    Returns:
        The bar, "failed" where this side or R1 did; None where one of them was not asked for.
    """
    height, width = spec.size_hw
    what = f"training step, {spec.base_channels} base channels, {height}x{width}: {side} / R1's float32 step"
    if side not in figures or "r1" not in figures:
        return None
    if not has_amx:
        return absent_bar("C8", what, floor=FLOOR, goal=GOAL, reason="this processor has no amx_bf16 instructions")
    failed = "; ".join(f"{name}: {figures[name]['error']}" for name in (side, "r1") if "error" in figures[name])
    if failed:
        return lost_bar("C8", what, floor=FLOOR, goal=GOAL, reason=failed)
    ours, r1 = figures[side], figures["r1"]
    ratios = [mine / theirs for mine, theirs in zip(ours["images_per_s"]["rounds"], r1["images_per_s"]["rounds"], strict=True)]
    fault = find_fault(ours["facts"], r1["facts"])
    return make_bar("C8", what, ratios, floor=FLOOR, goal=GOAL, sound=not fault, note=fault or tell_share(ours, r1, machine))


def tell_share(ours: dict[str, Any], r1: dict[str, Any], machine: dict[str, Any]) -> str:
    """Say how much of this machine's matrix rate both steps reach; empty where the work or the rate is not known."""
    told = []
    for name, side, amp in (("ours", ours, ours["facts"]["amp"]), ("R1's", r1, "off")):
        dtype = DTYPES[amp]
        rate = machine.get("matrix_gflop_per_s", {}).get(dtype)
        work = side["facts"]["gflop_per_image"]
        if rate and work:
            reached = work * side["images_per_s"]["median"]
            told.append(
                f"{name} reaches {reached:.3g} of {rate:.4g} GFLOP/s that products of {dtype} do ({100 * reached / rate:.2g} %)"
            )
    return "; ".join(told)


def measure_machine_apart(threads: int) -> dict[str, Any]:
    """Measure the matrix rates of this machine, by `threads` (0: torch's own number); for a process of its own."""
    import torch

    from unetfast.bench.machine import measure_machine

    if threads:
        torch.set_num_threads(threads)
    return measure_machine(torch.device("cpu"), [torch.bfloat16]).to_json()


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
            if "error" in side:
                continue
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


def add_net_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a program of resident batches be told its sides and widths."""
    parser.add_argument("--sides", help=f"of {', '.join((*PEER_NAMES, *OURS))} (default: {','.join(SIDES)})")
    parser.add_argument("--widths", default="64,16", help="base channels (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, about; at least one step (default %(default)s)")
    material.add_all_sides(parser)


def check_net_arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Settle the sides; under --quick there is one width, and rounds are short."""
    given.sides = given.sides or ",".join(ALL_SIDES if given.all_sides else SIDES)
    wrong = [name for name in given.sides.split(",") if name not in (*PEER_NAMES, *OURS)]
    if wrong:
        parser.error(f"--sides: no side {wrong[0]!r}; there are {', '.join((*PEER_NAMES, *OURS))}")
    if not all(width.isdecimal() and int(width) > 0 for width in given.widths.split(",")):
        parser.error(f"--widths {given.widths}: whole numbers above 0, separated by commas")
    if given.seconds <= 0:
        parser.error("--seconds must be above 0")
    if given.quick:
        given.seconds, given.widths = 0.05, given.widths.split(",")[-1]


def plan(given: argparse.Namespace, *, trains: bool) -> dict[int, list[NetSpec]]:
    """Turn arguments into sides by width; images are drawn and packed here."""
    shards = pack_toy(draw_toy("carvana", given.data, small=True, seed=given.seed), "carvana")
    size_hw = QUICK_HW if given.quick else SIZE_HW
    plans = {}
    for width in map(int, given.widths.split(",")):
        batch_size = 2 if given.quick else BATCH_SIZES.get(width, 4)
        channels = max(1, width // 8) if given.quick else width
        plans[width] = [
            NetSpec(name, shards, channels, batch_size, size_hw, given.seed, int(given.quick), trains)
            for name in given.sides.split(",")
        ]
    return plans


def describe_data(plans: dict[int, list[NetSpec]]) -> dict[str, Any]:
    """Say which batches the sides take; JSON."""
    batches = {str(width): specs[0].batch_size for width, specs in plans.items()}
    return {"toy": "carvana", "size_hw": list(next(iter(plans.values()))[0].size_hw), "batch_size": batches}


def name_sides(figures: dict[int, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Put the sides of all widths beside each other, for a record."""
    return {f"{width}: {name}": side for width, sides in figures.items() for name, side in sides.items()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the sides of each width; returns the record's `data`, `machine`, `sides` and `bars`."""
    has_amx = "amx_bf16" in read_cpu_features()
    plans = plan(given, trains=True)
    try:
        machine = Apart(measure_machine_apart, int(given.quick)).result(MACHINE_TIMEOUT_S)
    except SideError as error:
        machine = {"error": str(error)}  # no share stands beside the bars then
    figures: dict[int, dict[str, dict[str, Any]]] = {}
    bars = []
    for width, specs in plans.items():
        figures[width] = measure_width(specs, rounds=given.rounds, seconds=given.seconds)
        made = [judge(specs[0], figures[width], name, machine, has_amx=has_amx) for name in ("ours", "ours-compiled")]
        bars += [bar for bar in made if bar is not None]
    print(format_figures(figures))
    return {"data": describe_data(plans), "machine": machine, "sides": name_sides(figures), "bars": bars}


def main(arguments: list[str] | None = None) -> int:
    return material.run_program(
        "training_step", __doc__, arguments, measure, add=add_net_arguments, check=check_net_arguments, reads_real=False
    )


if __name__ == "__main__":
    sys.exit(main())
