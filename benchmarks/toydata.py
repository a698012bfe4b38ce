"""Draws and packs what the programs of `make bench` read, so that none of them has to do it while it is timed.

    python benchmarks/toydata.py --seed 1

bars.py runs it before its clock starts. What is there already is found again, and what is not drawn here is drawn by the
program that needs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import loader_data
import material
import packing

from unetfast.bench.toyshards import draw_toy, make_toy_shards, pack_toy


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("toydata", __doc__, arguments, measure)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Draw and pack all sets of a seed, and pack the real files; returns their names and the seconds that each took."""
    real = material.find_real(given.real)
    took: dict[str, float] = {}
    began_s = time.perf_counter()

    def note(name: str) -> None:
        took[name] = round(time.perf_counter() - began_s - sum(took.values()), 1)

    for name in ("ade20k", "clevr"):
        material.make_shards(name, given)
        note(f"toy {name}, packed")
    if real is None:
        material.make_shards("carvana", given, num_samples=16)
        note("toy carvana, packed")
    else:
        for name in ("carvana", "ade20k", "clevr"):
            material.make_shards(name, given, real=real)
            note(f"real {name}, packed")
    drawn = [
        ("carvana", packing.DRAWN_CARS),
        *((name, None if given.quick else number) for name, number in loader_data.TOY_SAMPLES.items()),
    ]
    for name, num_samples in drawn:
        draw_toy(name, given.data, num_samples=num_samples, small=given.quick, seed=given.seed)
        note(f"toy {name}, {num_samples}")
    for name in ("carvana", "clevr"):
        pack_toy(draw_toy(name, given.data, small=True, seed=given.seed), name)
        note(f"small {name}")
    make_toy_shards("clevr", given.data, small=True, seed=given.seed)
    return {"data": {"real_files": real is not None}, "sides": {}, "seconds": took, "bars": []}


if __name__ == "__main__":
    sys.exit(main())
