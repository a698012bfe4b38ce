"""Logits of a resident batch on the CPU: what `unetfast predict` computes against R1's, milesial's and smp's networks.

    python benchmarks/inference.py
    python benchmarks/inference.py --all-sides

Sides, rounds and sizes are those of training_step.py; peers run in evaluation mode under no_grad, as their own scripts do.
There is no bar; `ratios` of the record are images/s over R1's in the same round. The exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import material
from training_step import (
    add_net_arguments,
    check_net_arguments,
    describe_data,
    format_figures,
    measure_width,
    name_sides,
    plan,
)

from unetfast.bench.harness import format_spread, spread


def compare(figures: dict[str, Any]) -> dict[str, Any]:
    """Divide each side's images/s by R1's, round by round; empty where R1 was not measured."""
    measured = {name: side for name, side in figures.items() if "error" not in side}
    if "r1" not in measured:
        return {}
    base = measured["r1"]["images_per_s"]["rounds"]
    return {
        name: spread([mine / theirs for mine, theirs in zip(side["images_per_s"]["rounds"], base, strict=True)])
        for name, side in measured.items()
        if name != "r1"
    }


def check_arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    check_net_arguments(parser, given)
    if "ours-compiled" in given.sides:
        parser.error("--sides: prediction is never compiled on a CPU")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the sides of each width; returns the record's `data`, `sides` and `ratios`."""
    plans = plan(given, trains=False)
    figures = {width: measure_width(specs, rounds=given.rounds, seconds=given.seconds) for width, specs in plans.items()}
    ratios = {f"{width}: {name}": ratio for width, sides in figures.items() for name, ratio in compare(sides).items()}
    print(format_figures(figures))
    print("\n".join(f"{name} / R1: {format_spread(ratio, 3)}x" for name, ratio in ratios.items()))
    return {"data": describe_data(plans), "sides": name_sides(figures), "ratios": ratios, "bars": []}


def main(arguments: list[str] | None = None) -> int:
    return material.run_program(
        "inference", __doc__, arguments, measure, add=add_net_arguments, check=check_arguments, reads_real=False
    )


if __name__ == "__main__":
    sys.exit(main())
