"""Writes a toy copy of a data set's folder layout, to try commands on.

python tools/make_toy.py carvana Data/ --groups 12
unetfast shard --src Data/ --out shards/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unetfast.data.toy import TOY_LAYOUTS, write_toy
from unetfast.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Write the toy data set that the arguments name; exit code 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=list(TOY_LAYOUTS))
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--groups", type=int, default=8, help="cars, videos or images (default 8)")
    parser.add_argument("--images", type=int, default=None, help="angles a car, frames a video (default 4 and 22)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=None, help="pixels (default 160 240)")
    layouts = ", ".join(f"{name}: {' or '.join(known)}" for name, known in TOY_LAYOUTS.items())
    parser.add_argument("--layout", default=None, help=f"{layouts} (default: the first)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        files = write_toy(
            given.out,
            given.dataset,
            num_groups=given.groups,
            seed=given.seed,
            images_per_group=given.images,
            size_hw=None if given.size is None else (given.size[0], given.size[1]),
            layout=given.layout,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
