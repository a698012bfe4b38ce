"""Shards of toy data in the sizes of the real sets, drawn and packed once: what a benchmark reads on a machine without data.

    python -m unetfast.bench.toyshards carvana --samples 48

What a file costs to read and decode hangs on its bytes a pixel, so noise, texture and JPEG quality are set here until drawn
files have those of the real ones; the demo's pictures (unetfast/data/toy) are noisier. Bytes an image stand in every record.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy
from unetfast.data.toy.canvas import Grain
from unetfast.data.toy.layouts import ADE_SIDES


@dataclass(frozen=True, slots=True)
class ToySet:
    """How a toy set is drawn.

    Args:
        size_hw: height and width of an image, pixels; of ade20k's the mean.
        images_per_group: angles a car, frames a video.
        layout: of the source folder.
        num_samples: drawn unless another number is asked for.
        grain: gives the files the bytes a pixel of real ones.
    """

    size_hw: tuple[int, int]
    images_per_group: int
    layout: str
    num_samples: int
    grain: Grain


# bytes a pixel of real files, medians: carvana 0.041 (JPEG), clevr 0.78 (PNG), ade20k 0.19 (JPEG; 0.17 at 683x512)
TOY_SETS = {
    "carvana": ToySet((1280, 1918), 4, "kaggle", 48, Grain(noise=1.0, texture=0.02, quality=55)),
    "clevr": ToySet((160, 240), 22, "flat", 176, Grain(noise=0.32, texture=0.0, quality=92)),
    "ade20k": ToySet((512, 683), 1, "challenge", 128, Grain(noise=2.0, texture=0.19, quality=75, num_details=18)),
}
TOY_PACKING = PackOptions(val_fraction=0.0, shard_mib=16.0)  # all samples in one split, and several shards of them
SMALL_SAMPLES = 16  # of a set in a test's size
SMALL_DIVISOR = 4  # of its sides there
_DRAWING = 2  # changes when the same arguments would draw other files, so that kept ones are not taken for them
_SEED_STRIDE = 1_000_003  # so that groups of two seeds are drawn from different numbers


@dataclass(frozen=True, slots=True)
class ToyShards:
    """Folders of one set.

    Args:
        shards: as `unetfast shard` packs by default: JPEG as they are, others raw in LZ4, masks in LZ4.
        png_shards: the same samples with PNG for all that is no JPEG, as other readers want them.
    """

    shards: Path
    png_shards: Path


def make_toy_shards(name: str, root: Path, *, num_samples: int | None = None, small: bool = False, seed: int = 0) -> ToyShards:
    """Draw and pack a toy set below `root`, once; the same arguments find it again.

    Args:
        name: one of `TOY_SETS`.
        root: folder for this and other sets.
        num_samples: at least; whole cars and videos are drawn.
        small: a few small images, for tests.
        seed: of contents (and, for ade20k, of sizes): another one draws another set.
    """
    source = draw_toy(name, root, num_samples=num_samples, small=small, seed=seed)
    made = ToyShards(pack_toy(source, name), root / f"{source.name}-png")
    options = replace(TOY_PACKING, image_codec="png", mask_codec="png")
    pack(source, made.png_shards, dataset=name, options=options, overwrite=True)
    return made


def pack_toy(source: Path, name: str) -> Path:
    """Pack a folder of `draw_toy` as `unetfast shard` does by default, beside it, once; returns the shard folder."""
    shards = source.parent / f"{source.name}-shards"
    pack(source, shards, dataset=name, options=TOY_PACKING, overwrite=True)  # another version's, of other bytes
    return shards


def draw_toy(name: str, root: Path, *, num_samples: int | None = None, small: bool = False, seed: int = 0) -> Path:
    """Draw a toy set below `root`, once, and do not pack it; arguments as of `make_toy_shards`.

    Returns:
        The source folder.
    """
    toy = TOY_SETS[name]
    if small:
        height, width = toy.size_hw
        size_hw = (height // SMALL_DIVISOR, width // SMALL_DIVISOR)
        toy = replace(toy, size_hw=size_hw, images_per_group=min(4, toy.images_per_group), num_samples=SMALL_SAMPLES)
    wanted = num_samples or toy.num_samples
    seeded = f"-seed{seed}" if seed else ""
    source = root / f"{name}-{toy.size_hw[0]}x{toy.size_hw[1]}-{wanted}{seeded}-v{_DRAWING}"
    if not source.is_dir():
        _draw(name, toy, wanted, source, seed=seed)
    return source


def _draw(name: str, toy: ToySet, num_samples: int, out: Path, *, seed: int) -> None:
    """Draw groups in as many processes as there are cores, each into a folder of its own, and put them together."""
    num_groups = -(-num_samples // toy.images_per_group)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work_name:
        work = Path(work_name)
        folders = [work / str(number) for number in range(num_groups)]
        draw = functools.partial(_draw_group, name, toy, seed)
        num_processes = min(num_groups, len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(draw, folders, range(num_groups), chunksize=max(1, num_groups // 64)))
        whole = work / "whole"
        for number in range(num_groups):
            _take_over(work / str(number), whole, number)
        whole.rename(out)


def _draw_group(name: str, toy: ToySet, seed: int, folder: Path, number: int) -> None:
    num_groups, (height, width) = 1, toy.size_hw
    if name == "ade20k":
        num_groups = 2  # its layout has a validation folder, which wants an image too
        height, width = (round(2 * side / sum(ADE_SIDES)) for side in toy.size_hw)
    write_toy(
        folder,
        name,
        num_groups=num_groups,
        seed=seed * _SEED_STRIDE + number,
        images_per_group=toy.images_per_group,
        size_hw=(height, width),
        layout=toy.layout,
        grain=toy.grain,
    )


def _take_over(group: Path, whole: Path, number: int) -> None:
    """Move a group's files into the whole set; names that each group counts from its own beginning get its number."""
    for path in sorted(group.rglob("*")):
        relative = path.relative_to(group).as_posix()
        if path.is_dir() or ("validation" in path.parts and number):
            continue
        named = re.sub(r"video_\d+", f"video_{number}", re.sub(r"ADE_train_\d+", f"ADE_train_{number + 1:08d}", relative))
        target = whole / named
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def default_root() -> Path:
    """Return where toy shards are kept unless a folder is named."""
    return Path(tempfile.gettempdir()) / f"unetfast-bench-{os.getuid()}"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark be told what it reads: --toy NAME [--data DIR] [--small], or --shards DIR."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--toy", choices=list(TOY_SETS), help="draw this set in its real size")
    data.add_argument("--shards", type=Path, help="packed by `unetfast shard`; its train split is read")
    parser.add_argument("--data", type=Path, default=default_root(), help="keeps toy shards (default %(default)s)")
    parser.add_argument("--small", action="store_true", help="toy images of a quarter of their height and width")
    parser.add_argument("--seed", type=int, default=0, help="of the toy data: another one draws other contents and sizes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(TOY_SETS))
    parser.add_argument("--data", type=Path, default=default_root(), help="folder to keep them in (default %(default)s)")
    parser.add_argument("--samples", type=int, default=None, help="at least so many (default: by set)")
    parser.add_argument("--small", action="store_true", help="a few small images, to try a benchmark")
    parser.add_argument("--seed", type=int, default=0, help="of contents and sizes (default 0)")
    given = parser.parse_args()
    for name in given.names:
        made = make_toy_shards(name, given.data, num_samples=given.samples, small=given.small, seed=given.seed)
        print(f"{made.shards}\n{made.png_shards}", flush=True)


if __name__ == "__main__":
    main()
