"""Reading shards: every sample's image, mask and JSON in stored order, each byte checked, beside the iteration of others (C3).

    python benchmarks/reading.py
    python benchmarks/reading.py --all-sides

Ours reads by index and tests the hash of every member; webdataset iterates over the same tars; streaming and litdata read what
their own writers wrote of the same samples. All sides hand out the same bytes, and decode and parse none.

Each pass of ours and of webdataset opens its files anew: index and tars here, pipeline and tars there. Which tars there are is
known to both before the clock starts, from our manifest and as a list. streaming and litdata, which are in no bar, are opened
once for all rounds. Files are in the page cache, and sets as small as these partly in the processor's caches, for all alike.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import material
import xxhash
from bar import lost_bar, make_bar
from material import Took
from peers import PeersMissingError, readers

from unetfast.bench.harness import installed_version, take_turns
from unetfast.data.reader import ShardFolder, open_shards

_ROUND_SAMPLES, _QUICK_ROUND_SAMPLES = 4096, 32  # read by each side in a round
_COLUMNS = {"images/s": "images_per_s", "MB/s": "mb_per_s", "core-us/image": "core_us_per_image"}
_OURS, _PEER, _ALONE = "unetfast, checked", "webdataset", "pread and hash alone"


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("reading", __doc__, arguments, measure, add=material.add_all_sides)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure C3 on toy ADE20K in real sizes, and on the real Carvana files."""
    real = material.find_real(given.real)
    sets = [material.make_shards("ade20k", given)]
    if real is not None:
        sets.append(material.make_shards("carvana", given, real=real))
    data: dict[str, Any] = {"real_files": real is not None}
    sides: dict[str, Any] = {}
    bars = []
    for made in sets:
        data[made.label], found, bar = measure_readers(made, given)
        sides |= {f"{made.label}: {name}": side for name, side in found.items()}
        bars.append(bar)
        material.print_sides(made.label, found, _COLUMNS)
    versions = {name: installed_version(name) for name in ("webdataset", "mosaicml-streaming", "litdata")}
    return {"data": data, "sides": sides, "bars": bars, "versions": versions}


def measure_readers(made: material.Shards, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read one data set by every reader, in turn."""
    samples = material.read_samples(made.shards)
    passes = max(1, (_QUICK_ROUND_SAMPLES if given.quick else _ROUND_SAMPLES) // len(samples))
    tars = sorted((made.shards / "train").glob("*.tar"))
    failed: dict[str, str] = {}
    shards = open_shards(made.shards)
    num_bytes = count_bytes(shards)
    with ExitStack() as stack:
        folder = stack.enter_context(material.folder_in_memory(given.data, 4 * num_bytes))
        reads: dict[str, Callable[[], tuple[int, int]]] = {
            _OURS: partial(read_ours, shards, checksum=True),
            _ALONE: partial(read_alone, list_members(shards)),
        }
        if given.all_sides:
            reads["unetfast, not checked"] = partial(read_ours, shards, checksum=False)
        for name, build in readers.build_readers(tars, samples, folder).items():
            if name != _PEER and not given.all_sides:
                continue
            try:
                reads[name] = build()
            except (ImportError, PeersMissingError) as error:
                failed[name] = str(error)
        for name, read in reads.items():  # once for the page cache, and to see that each reads all there is
            count, found_bytes = read()
            if count != len(samples) or found_bytes != num_bytes:
                failed[name] = f"read {count} samples of {found_bytes} bytes, expected {len(samples)} of {num_bytes}"
        turns = {
            name: material.settle(partial(_read_often, read, passes), name, failed)
            for name, read in reads.items()
            if name not in failed
        }
        took = take_turns(turns, given.rounds)
    sides = {
        name: material.sum_up(rounds, passes * len(samples), passes * num_bytes)
        for name, rounds in took.items()
        if name not in failed
    }
    sides |= {name: {"error": reason} for name, reason in failed.items()}
    facts = {"samples": len(samples), "bytes": num_bytes, "passes_a_round": passes, "tars": len(tars)}
    facts["packed_with"] = material.describe_packing(made.shards)
    what = f"reading shards, every byte checked, against webdataset's iteration, {made.label}"
    if reason := material.say_failed(failed, _OURS, _PEER):
        return facts, sides, lost_bar("C3", what, floor=5, goal=10, reason=reason)
    sides[_OURS]["core_ratio"] = material.spread(material.core_ratios(took[_OURS], took[_PEER]))
    told = material.say_share("pread and xxh3 of each member", took[_ALONE], took[_OURS], took[_PEER])
    note = "" if _ALONE in failed else told
    return facts, sides, make_bar("C3", what, material.ratios(took[_OURS], took[_PEER]), floor=5, goal=10, note=note)


def count_bytes(shards: ShardFolder) -> int:
    """Sum the lengths of all members of the training samples, as the index tells them."""
    with shards.split("train") as reader:
        return sum(int(reader.rows[f"{member}_length"].sum()) for member in ("image", "mask", "json"))


def read_ours(shards: ShardFolder, *, checksum: bool) -> tuple[int, int]:
    """Open the training split, and read image, mask and JSON of each sample."""
    num_bytes = 0
    with shards.split("train", checksum=checksum) as reader:
        for sample in range(reader.num_samples):
            num_bytes += len(reader.read_image(sample)) + len(reader.read_mask(sample)) + len(reader.read_json_bytes(sample))
        return reader.num_samples, num_bytes


def list_members(shards: ShardFolder) -> list[tuple[Path, list[tuple[int, int]]]]:
    """List offset and length of each member, bytes, by tar."""
    places: dict[int, list[tuple[int, int]]] = {}
    with shards.split("train") as reader:
        for row in reader.rows:
            of_tar = places.setdefault(int(row["shard"]), [])
            of_tar += [(int(row[f"{name}_offset"]), int(row[f"{name}_length"])) for name in ("image", "mask", "json")]
        return [(reader.folder / reader.split.shards[shard].file, of_tar) for shard, of_tar in places.items()]


def read_alone(members: list[tuple[Path, list[tuple[int, int]]]]) -> tuple[int, int]:
    """Read and hash members whose places are known beforehand: what no reader that checks by `pread` can leave out."""
    num_members = num_bytes = 0
    for path, places in members:
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            for offset, length in places:
                data = os.pread(descriptor, length, offset)
                xxhash.xxh3_64_intdigest(data)
                num_bytes += len(data)
        num_members += len(places)
    return num_members // 3, num_bytes


def _read_often(read: Callable[[], tuple[int, int]], passes: int) -> Took:
    def run() -> None:
        for _ in range(passes):
            read()

    gc.collect()  # webdataset leaves its files to the collector
    return material.time_call(run)


if __name__ == "__main__":
    sys.exit(main())
