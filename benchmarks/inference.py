"""Logits of a resident batch on the CPU: what `unetfast predict` computes against R1's, milesial's and smp's networks.

    python benchmarks/inference.py

Sides, rounds and sizes are those of training_step.py; peers run in evaluation mode under no_grad, as their own scripts do.
There is no bar; `ratios` of the record are images/s over R1's in the same round. The exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from training_step import add_net_arguments, format_figures, measure_width, parse, plan

from unetfast.bench.harness import describe_environment, finish, format_spread, spread

SIDES = ("r1", "milesial", "smp", "ours", "ours-float32")


def compare(figures: dict[str, Any]) -> dict[str, Any]:
    """Divide each side's images/s by R1's, round by round; empty where R1 was not measured."""
    if "r1" not in figures:
        return {}
    base = figures["r1"]["images_per_s"]["rounds"]
    return {
        name: spread([mine / theirs for mine, theirs in zip(side["images_per_s"]["rounds"], base, strict=True)])
        for name, side in figures.items()
        if name != "r1"
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_net_arguments(parser, SIDES)
    given = parse(parser, arguments)
    if "ours-compiled" in given.sides:
        parser.error("--sides: prediction is never compiled on a CPU")
    figures, errors, ratios = {}, {}, {}
    plans = plan(given, trains=False)
    for width, specs in plans.items():
        figures[width], failed = measure_width(specs, rounds=given.rounds, seconds=given.seconds)
        errors |= {f"{width}: {name}": reason for name, reason in failed.items()}
        ratios |= {f"{width}: {name}": ratio for name, ratio in compare(figures[width]).items()}
    print(format_figures(figures))
    print("\n".join(f"{name} / R1: {format_spread(ratio, 3)}x" for name, ratio in ratios.items()))
    record = {
        "benchmark": "inference",
        "command": sys.argv[1:] if arguments is None else arguments,
        "environment": describe_environment(),
        "data": {"toy": "carvana", "seed": given.seed, "quick": given.quick, "size_hw": next(iter(plans.values()))[0].size_hw},
        "rounds": given.rounds,
        "sides": {f"{width}: {name}": side for width, sides in figures.items() for name, side in sides.items()},
        "ratios": ratios,
        "bars": [],
        "errors": errors,
    }
    finish(record, given.json)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
