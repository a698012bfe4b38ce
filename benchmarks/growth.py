"""How cost grows: opening, order and seek at 10^3 to 10^7 samples, packing 10^3 to 3*10^4, the loader by threads and batch.

    python benchmarks/growth.py
    python benchmarks/growth.py --all-sides     # packing up to 10^5

Indexes are synthesised (largeindex.py), each in a process of its own, so that memory is that of one size. Packing is the whole
of `pack()`, from scan to manifest, on CLEVR frames of a sixteenth of their pixels: so what each sample costs beside its pixels
is most of it; few are drawn, and their files linked as often as wanted. What does not grow shows as a column that stays the
same. There is no bar here; C7 is measured by seeking.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import material
import numpy as np
from apart import Apart
from largeindex import make_large_index
from side import read_status_mib

from unetfast.bench.harness import SideError, spread, take_turns
from unetfast.bench.toyshards import draw_toy
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack

_SIZES, _QUICK_SIZES = (10**3, 10**4, 10**5, 10**6, 10**7), (10**3, 10**4)
_PACKED, _QUICK_PACKED, _ALL_PACKED = (10**3, 10**4, 3 * 10**4), (16, 32), (10**5,)  # small toy CLEVR frames
_ROUND_FRAMES = 10_000  # packed in all rounds of a size: large ones have fewer
_FRAME_BYTES = 20_000  # room for a small frame, with what a tar adds
_BATCHES, _QUICK_BATCHES = (1, 4, 16, 64), (1, 4)
_LOADER_S, _QUICK_LOADER_S = 0.4, 0.05  # of a round of one setting
_MEMORY_BATCHES = 8
_TIMEOUT_S = 400.0
_OPTIONS = PackOptions(val_fraction=0.0)
_ROWS = 1024  # positions looked up at once, as the loader does


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("growth", __doc__, arguments, measure, add=material.add_all_sides)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the index at growing sizes, then packing, then the loader."""
    from seeking import resume_config

    images = material.make_shards("ade20k", given)
    sides = measure_indexes(images, given)
    columns = {"open ms": "open_ms", "1,024 places ms": "order_ms", "first batch ms": "first_batch_ms"}
    columns |= {"index MiB": "index_mib", "memory MiB": "added_mib"}
    material.print_sides("index", sides, columns)
    packing = measure_packing(given)
    material.print_sides(
        "packing", packing, {"images/s": "images_per_s", "core-us/image": "core_us_per_image", "MiB": "peak_mib"}
    )
    loading = measure_loader(images, given)
    columns = {"images/s": "images_per_s", "core-us/image": "core_us_per_image", "MiB": "host_peak_mib"}
    material.print_sides("loader", loading, columns)
    configs = {"index, loader": resume_config("ade20k").model_dump(mode="json"), "packing": asdict(_OPTIONS)}
    data = {"index": images.label, "packing": "toy clevr, 40x60"}
    return {"data": data, "configs": configs, "sides": sides | packing | loading, "bars": []}


def measure_indexes(images: material.Shards, given: argparse.Namespace) -> dict[str, Any]:
    """Open and seek in indexes of growing size, a process each."""
    found: dict[str, Any] = {}
    for size in _QUICK_SIZES if given.quick else _SIZES:
        name = f"{size:,} samples"
        with material.folder_in_memory(given.data, size * 100) as folder:
            shards = make_large_index(images.shards, folder / "shards", size)
            try:
                found[name] = Apart(measure_index, (shards, size, given.rounds)).result(_TIMEOUT_S)
            except SideError as error:
                found[name] = {"error": str(error)}
    return found


def measure_index(task: tuple[Path, int, int]) -> dict[str, Any]:
    """Time opening, looking up places, and the first batch after a seek to nine tenths of the samples; in a fresh process."""
    from seeking import resume, resume_config

    from unetfast.data.reader import open_shards
    from unetfast.loader.order import Order

    shards, size, num_rounds = task
    config = resume_config("ade20k")
    resume(shards, 0, config)  # imports, page cache
    before_mib = read_status_mib("RssAnon")
    open_ms, order_ms, batch_ms = [], [], []
    for _ in range(num_rounds):
        began_s = time.perf_counter()
        reader = open_shards(shards).split("train")
        open_ms.append(1e3 * (time.perf_counter() - began_s))
        order = Order(size, seed=0)
        began_s = time.perf_counter()
        order.locate(np.arange(_ROWS) + size // 2)
        order_ms.append(1e3 * (time.perf_counter() - began_s))
        added_mib = read_status_mib("RssAnon") - before_mib
        reader.close()
        began_s = time.perf_counter()
        resume(shards, size * 9 // 10, config)
        batch_ms.append(1e3 * (time.perf_counter() - began_s))
    return {
        "open_ms": spread(open_ms),
        "order_ms": spread(order_ms),
        "first_batch_ms": spread(batch_ms),
        "index_mib": round((shards / "train" / "index.npy").stat().st_size / 2**20, 2),
        "added_mib": round(added_mib, 1),
        "host_peak_mib": read_status_mib("VmHWM"),
    }


def measure_packing(given: argparse.Namespace) -> dict[str, Any]:
    """Pack more and more small frames by one worker, each number in a process of its own."""
    drawn = draw_toy("clevr", given.data, small=True, seed=given.seed)
    found: dict[str, Any] = {}
    sizes = _QUICK_PACKED if given.quick else _PACKED + _ALL_PACKED * given.all_sides
    for num_frames in sizes:
        source, linked = link_videos(drawn, given.data / f"{drawn.name}-linked{num_frames}", num_frames)
        name = f"{linked:,} frames"
        num_rounds = max(1, min(given.rounds, _ROUND_FRAMES // linked))
        with material.folder_in_memory(given.data, linked * _FRAME_BYTES) as folder:
            try:
                found[name] = Apart(pack_apart, (source, folder / "packed", linked, num_rounds)).result(_TIMEOUT_S)
            except SideError as error:
                found[name] = {"error": str(error)}
    return found


def pack_apart(task: tuple[Path, Path, int, int]) -> dict[str, Any]:
    """Pack a source some times, and tell time and peak memory; in a fresh process."""
    source, out, num_frames, num_rounds = task
    took = []
    for _ in range(num_rounds):
        run = partial(pack, source, out, dataset="clevr", options=_OPTIONS, workers=1)
        took.append(material.time_call(run))
        num_bytes = sum(path.stat().st_size for path in out.rglob("*.tar"))
        shutil.rmtree(out)
    return material.sum_up(took, num_frames, num_bytes) | {"peak_mib": read_status_mib("VmHWM")}


def link_videos(drawn: Path, out: Path, num_frames: int) -> tuple[Path, int]:
    """Link a toy set's videos under new numbers until they hold `num_frames`; returns the folder and its frames."""
    videos = sorted(drawn.rglob("video_*"))
    frames = len(list(videos[0].glob("*.png")))
    count = -(-num_frames // frames)
    if not out.is_dir():
        work = out.with_name(f"{out.name}.new")
        shutil.rmtree(work, ignore_errors=True)
        for number in range(count):
            video = videos[number % len(videos)]
            target = work / video.parent.relative_to(drawn) / f"video_{number}"
            target.mkdir(parents=True)
            for file in video.iterdir():
                os.link(file, target / file.name)
        work.rename(out)
    return out, count * frames


def measure_loader(images: material.Shards, given: argparse.Namespace) -> dict[str, Any]:
    """Take batches of growing size by one thread and by two, in turn; then each in a fresh process, for its memory."""
    from unetfast.data.reader import open_shards

    seconds = _QUICK_LOADER_S if given.quick else _LOADER_S
    with open_shards(images.shards).split("train") as reader:
        loaders = {}
        for threads in (1, 2):
            for batch_size in _QUICK_BATCHES if given.quick else _BATCHES:
                loaders[threads, batch_size] = _open_loader(reader, threads, batch_size)
        turns = {name: partial(_take_batches, loader, seconds) for name, loader in loaders.items()}
        took = take_turns(turns, given.rounds)
        for loader in loaders.values():
            loader.close()
    return {
        f"{threads} thread{'s' * (threads > 1)}, batch {batch_size}": {
            "images_per_s": spread([count / one.wall_s for one, count in rounds]),
            "core_us_per_image": spread([1e6 * one.core_s / count for one, count in rounds]),
            "host_peak_mib": Apart(measure_memory, (images.shards, threads, batch_size)).result(_TIMEOUT_S),
        }
        for (threads, batch_size), rounds in took.items()
    }


def measure_memory(task: tuple[Path, int, int]) -> float:
    """Return the peak of a process that takes a few batches, MiB; in a fresh process."""
    from unetfast.data.reader import open_shards

    shards, threads, batch_size = task
    with open_shards(shards).split("train") as reader, _open_loader(reader, threads, batch_size) as loader:
        for _ in itertools.islice(loader, _MEMORY_BATCHES):
            pass
        return read_status_mib("VmHWM")


def _open_loader(reader: Any, threads: int, batch_size: int) -> Any:
    """Build the loader of ADE20K's preset at 256x256."""
    import torch
    from seeking import resume_config

    from unetfast.loader.build import build_loader

    config = resume_config("ade20k")
    section = config.loader.model_copy(update={"threads": threads, "size_hw": (256, 256), "batch_size": batch_size})
    config = config.model_copy(update={"loader": section})
    return build_loader(reader, config, training=True, device=torch.device("cpu"))


def _take_batches(loader: Any, seconds: float) -> tuple[material.Took, int]:
    """Take batches for some time, then wait for those that are made ahead, so that none of them falls to another's round."""
    batches = iter(loader)
    count = 0

    def run() -> None:
        nonlocal count
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            count += len(next(batches).sample_ids)

    took = material.time_call(run)
    while not all(job.is_loaded for job in loader._jobs):
        time.sleep(0.001)
    return took, count


if __name__ == "__main__":
    sys.exit(main())
