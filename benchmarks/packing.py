"""Writing shards: our writer beside those of others (C1), and the whole packer with two workers against one (C2).

    python benchmarks/packing.py
    python benchmarks/packing.py --all-sides

C1 writes the same encoded samples by each writer into a folder in memory, so that no disk is measured: ours with its
checksums, index and `.idx`, the others with what they write; beside them the bare copy of the same bytes into a file, the limit
of any writer. --all-sides brings the writers that stand in no bar. C2 packs full-size toy Carvana from source folder to
manifest and compares every byte of the two results.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import material
from bar import absent_bar, lost_bar, make_bar
from material import Took
from peers import PeersMissingError, writers

from unetfast.bench.harness import SideError, installed_version, take_turns
from unetfast.bench.toyshards import draw_toy
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.packdir import LOG_NAME
from unetfast.data.sample import Sample
from unetfast.data.shard import ShardWriter

_WRITE_BYTES = 160_000_000  # what a writer writes in a round
_QUICK_WRITE_BYTES = 2_000_000
DRAWN_CARS = 16  # toy images; files are linked as often as wanted
_PACKED_IMAGES, _QUICK_PACKED_IMAGES = 256, 32
_OURS, _PEER, _COPY = "unetfast ShardWriter", "webdataset TarWriter", "bare copy to a file"
_OPTIONS = PackOptions(val_fraction=0.0)
_COLUMNS = {
    "images/s": "images_per_s",
    "MB/s": "mb_per_s",
    "core-us/image": "core_us_per_image",
    "bytes/image": "bytes_per_image",
}


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("packing", __doc__, arguments, measure, add=material.add_all_sides)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure C1 on each data set, then C2."""
    real = material.find_real(given.real)
    sets = [material.make_shards("ade20k", given)]
    if real is not None:
        sets.append(material.make_shards("carvana", given, real=real))
    data: dict[str, Any] = {"real_files": real is not None}
    sides: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    for made in sets:
        facts, found, bar = measure_writers(made, given)
        data[made.label] = facts
        sides |= {f"{made.label}: {name}": side for name, side in found.items()}
        bars.append(bar)
        material.print_sides(made.label, found, _COLUMNS)
    facts, found, bar = measure_workers(given)
    data["toy carvana, packed"] = facts
    material.print_sides("pack()", found, {"images/s": "images_per_s", "core-us/image": "core_us_per_image"})
    return {
        "data": data,
        "sides": sides | found,
        "bars": [*bars, bar],
        "missing": writers.tell_missing(),
        "versions": {name: installed_version(name) for name in ("webdataset", "mosaicml-streaming", "litdata", "ffcv")},
    }


def measure_writers(made: material.Shards, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Write the samples of one data set by every writer, in turn."""
    wanted = _QUICK_WRITE_BYTES if given.quick else _WRITE_BYTES
    samples = material.read_samples(made.shards)
    mean_bytes = sum(len(sample.image) + len(sample.mask) for sample in samples) / len(samples)
    samples = material.read_samples(made.shards, max(8, int(wanted / mean_bytes)))
    num_bytes = sum(len(sample.image) + len(sample.mask) for sample in samples)
    names = list(writers.WRITERS) if given.all_sides else [_PEER]
    failed: dict[str, str] = {}
    sizes: dict[str, float] = {}
    with material.folder_in_memory(given.data, num_bytes) as folder:
        turns = {
            _OURS: _write_side(_OURS, write_ours, samples, folder, sizes),
            _COPY: _write_side(_COPY, copy_bytes, [writers.members(sample).values() for sample in samples], folder, sizes),
        }
        for name in names:
            try:
                writers.prepare(name, folder / f"first-{name}", samples[0])
            except (ImportError, PeersMissingError) as error:
                failed[name] = str(error)
                continue
            turns[name] = _write_side(name, writers.WRITERS[name], samples, folder, sizes)
        guarded = {name: material.settle(turn, name, failed) for name, turn in turns.items()}
        took = take_turns(guarded, given.rounds)
        where = folder.parts[1] if folder.parts[:2] != ("/", "dev") else "memory"
    sides = {
        name: material.sum_up(rounds, len(samples), num_bytes) | {"bytes_per_image": round(sizes[name] / len(samples))}
        for name, rounds in took.items()
        if name not in failed
    }
    sides |= {name: {"error": reason} for name, reason in failed.items()}
    facts = {"samples": len(samples), "bytes": num_bytes, "mean_bytes": round(mean_bytes), "written_to": where}
    facts["packed_with"] = material.describe_packing(made.shards)
    what = f"pack writer with checksums and index against webdataset's TarWriter, {made.label}"
    if reason := material.say_failed(failed, _OURS, _PEER):
        return facts, sides, lost_bar("C1", what, floor=3.5, goal=6, reason=reason)
    ours, theirs = took[_OURS], took[_PEER]
    sides[_OURS]["core_ratio"] = material.spread(material.core_ratios(ours, theirs))
    note = material.say_share("the bare copy of the bytes to a file", took[_COPY], ours, theirs) if _COPY not in failed else ""
    return facts, sides, make_bar("C1", what, material.ratios(ours, theirs), floor=3.5, goal=6, note=note)


def write_ours(samples: Sequence[Sample], folder: Path) -> None:
    """Write one shard with its `.idx` and its index rows, as a worker of the packer does."""
    with ShardWriter(folder / "a.tar") as writer:
        for sample in samples:
            writer.add(sample)
        content = writer.finish()
    (folder / "a.idx").write_text(content.idx, encoding="ascii")
    (folder / "index").write_bytes(content.rows.tobytes())


def copy_bytes(members: Sequence[Iterable[bytes]], folder: Path) -> None:
    """Write what the samples hold one behind the other, a call each: no headers, no checksum, no index."""
    with (folder / "bytes").open("wb", buffering=0) as file:
        for pieces in members:
            os.writev(file.fileno(), list(pieces))


def _write_side(
    name: str, write: Callable[[Any, Path], object], samples: Sequence[Any], root: Path, sizes: dict[str, float]
) -> Any:
    def run() -> Took:
        folder = root / "round"
        folder.mkdir()
        try:
            took = material.time_call(functools.partial(write, samples, folder))
            sizes[name] = writers.count_bytes(folder)
        finally:
            shutil.rmtree(folder)
        return took

    return run


def measure_workers(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Pack full-size toy Carvana by one worker and by two, in turn, and compare what comes out."""
    num_images = _QUICK_PACKED_IMAGES if given.quick else _PACKED_IMAGES
    drawn = draw_toy("carvana", given.data, num_samples=DRAWN_CARS, small=given.quick, seed=given.seed)
    cores = len(os.sched_getaffinity(0))
    what = "packing with 2 workers against 1, full-size toy Carvana from source to manifest, output byte-identical"
    with material.folder_in_memory(given.data, 1 << 30) as folder:
        source = link_cars(drawn, given.data / f"{drawn.name}-linked{num_images}", num_images)
        digests: dict[str, dict[str, str]] = {}
        failed: dict[str, str] = {}
        sides = {
            f"{count} workers": material.settle(
                functools.partial(_pack_side, source, folder, count, digests), f"{count} workers", failed
            )
            for count in (1, 2)
        }
        took = take_turns(sides, given.rounds)
    found: dict[str, Any] = {
        name: material.sum_up(rounds, num_images, sum(path.stat().st_size for path in source.rglob("*.jpg")))
        for name, rounds in took.items()
        if name not in failed
    }
    for side in found.values():
        side["options"] = asdict(_OPTIONS)
    found |= {name: {"error": reason} for name, reason in failed.items()}
    one, two = (digests.get(f"{count} workers", {}) for count in (1, 2))
    same = one == two and not failed
    facts = {"samples": num_images, "distinct": DRAWN_CARS, "files_compared": len(one), "identical": same}
    if cores < 2:
        return facts, found, absent_bar("C2", what, floor=1.7, goal=1.95, reason="this process may use one core alone")
    if reason := material.say_failed(failed, *sides):
        return facts, found, lost_bar("C2", what, floor=1.7, goal=1.95, reason=reason)
    rounds = material.ratios(took["2 workers"], took["1 workers"])
    note = "the two results differ"
    if same:
        core_s = [sum(one.core_s for one in took[f"{count} workers"]) for count in (2, 1)]
        note = f"an image takes {core_s[0] / core_s[1]:.3g} times the core-seconds; at most {cores} cores are there"
    return facts, found, make_bar("C2", what, rounds, floor=1.7, goal=1.95, sound=same, note=note)


def link_cars(drawn: Path, out: Path, num_images: int) -> Path:
    """Link a toy set's files under new car ids until there are `num_images`; the links take no room.

    Returns:
        `out`, a source folder like the drawn one.
    """
    if out.is_dir():
        return out
    images = sorted((drawn / "train").glob("*.jpg"))
    work = out.with_name(f"{out.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("train", "train_masks"):
        (work / name).mkdir(parents=True)
    for number in range(num_images):
        image = images[number % len(images)]
        stem = f"{number // len(images):02x}{image.stem[2:]}"
        for source, target in (
            (image, work / "train" / f"{stem}.jpg"),
            (drawn / "train_masks" / f"{image.stem}_mask.gif", work / "train_masks" / f"{stem}_mask.gif"),
        ):
            os.link(source, target)
    work.rename(out)
    return out


def _pack_side(source: Path, root: Path, num_workers: int, digests: dict[str, dict[str, str]]) -> Took:
    out = root / "packed"
    with _removed_after(out):
        took = material.time_call(lambda: pack(source, out, dataset="carvana", options=_OPTIONS, workers=num_workers))
        digests[f"{num_workers} workers"] = digest_files(out)
    return took


def digest_files(folder: Path) -> dict[str, str]:
    """Hash every file of a shard folder but the log, which holds times."""
    import xxhash

    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOG_NAME]
    return {path.relative_to(folder).as_posix(): xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in paths}


@contextlib.contextmanager
def _removed_after(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SideError as error:
        sys.exit(str(error))
