"""Seek: from a shard folder and a saved position to the first batch of 16, beside webdataset's replay (C7).

    python benchmarks/seeking.py

A resume opens the folder, builds the loader, takes the state and hands out a batch; files are in the page cache. The index of
10^6 samples is synthesised (largeindex.py); images are toy ADE20K in real sizes. webdataset has no index: to go on at sample
10^5 it reads all before it; both sides of that ratio read the small samples of toy CLEVR, which is its best case.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import material
import torch
from bar import lost_bar, make_bar
from largeindex import make_large_index
from material import Took
from peers import readers

from unetfast.bench.harness import spread, take_turns
from unetfast.config import Config, apply_overrides, build_config, read_preset_tree
from unetfast.data.reader import open_shards
from unetfast.loader.build import build_loader

BATCH_SIZE = 16
_SEEKS, _QUICK_SEEKS = (1_000, 1_000_000), (500, 5_000)  # samples before the one that is wanted
_REPLAY, _QUICK_REPLAY = 100_000, 1_000
_RESUMES = 5  # of a round; a round's figure is their median


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("seeking", __doc__, arguments, measure)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure both halves of C7."""
    seeks = _QUICK_SEEKS if given.quick else _SEEKS
    replay = _QUICK_REPLAY if given.quick else _REPLAY
    big, small = material.make_shards("ade20k", given), material.make_shards("clevr", given)
    failed: dict[str, str] = {}
    with material.folder_in_memory(given.data, seeks[-1] * 200) as folder:
        turns: dict[str, Any] = {}
        for place in seeks:
            index = make_large_index(big.shards, folder / f"ade20k-{place}", place + place // 4 + BATCH_SIZE)
            turns[f"resume at {place:,}"] = partial(_resume_round, index, place, resume_config("ade20k"))
        index = make_large_index(small.shards, folder / "clevr", replay + replay // 4 + BATCH_SIZE)
        turns[f"resume at {replay:,}, clevr"] = partial(_resume_round, index, replay, resume_config("clevr"))
        tars = sorted((small.png_shards / "train").glob("*.tar"))
        turns[f"webdataset replays {replay:,}, clevr"] = partial(material.time_call, partial(replay_webdataset, tars, replay))
        for turn in list(turns.values())[:-1]:
            turn()
        guarded = {name: material.settle(turn, name, failed) for name, turn in turns.items()}
        took = take_turns(guarded, given.rounds)
    sides: dict[str, Any] = {
        name: {
            "first_batch_ms": spread([1e3 * one.wall_s for one in rounds]),
            "core_ms": spread([1e3 * one.core_s for one in rounds]),
        }
        for name, rounds in took.items()
        if name not in failed
    }
    sides |= {name: {"error": reason} for name, reason in failed.items()}
    material.print_sides("to the first batch of 16", sides, {"ms": "first_batch_ms", "core-ms": "core_ms"})
    names = list(turns)
    data = {"ade20k": str(big.label), "clevr": str(small.label), "batch_size": BATCH_SIZE, "cores": torch.get_num_threads()}
    configs = {name: resume_config(name).model_dump(mode="json") for name in ("ade20k", "clevr")}
    return {"data": data, "configs": configs, "sides": sides, "bars": build_bars(names, took, failed, seeks, replay)}


def build_bars(
    names: list[str], took: dict[str, list[Took]], failed: dict[str, str], seeks: tuple[int, ...], replay: int
) -> list[dict[str, Any]]:
    """Put the seek beside its bound, and the resume beside the replay."""
    what = f"first batch of {BATCH_SIZE} after a resume at sample {seeks[-1]:,}, index opened, page cache warm"
    beside = f"resume at sample {replay:,} against webdataset's replay, toy clevr"
    first, last, ours, theirs = names
    bars = [
        lost_bar("C7", what, floor=50, goal=20, unit="ms", less_is_better=True, reason=reason)
        if (reason := material.say_failed(failed, last))
        else make_bar("C7", what, [1e3 * one.wall_s for one in took[last]], floor=50, goal=20, unit="ms", less_is_better=True)
    ]
    if first not in failed and last not in failed:
        grown = spread([after.wall_s / before.wall_s for before, after in zip(took[first], took[last], strict=True)])
        bars[0]["note"] = f"{grown['median']:.1f} times the time of a resume at {seeks[0]:,}"
    if reason := material.say_failed(failed, ours, theirs):
        return [*bars, lost_bar("C7", beside, floor=100, goal=1000, reason=reason)]
    return [*bars, make_bar("C7", beside, material.ratios(took[ours], took[theirs]), floor=100, goal=1000)]


def resume_config(preset: str) -> Config:
    """Resolve a preset at batch 16, on the CPU backend."""
    overrides = [f"loader.batch_size={BATCH_SIZE}", "loader.backend=cpu"]
    return build_config(apply_overrides(read_preset_tree(preset), overrides), where=f"preset {preset}")


def resume(shards: Path, position: int, config: Config) -> int:
    """Open a folder, go to a position of the training stream and take one batch; returns its first sample."""
    with (
        open_shards(shards).split("train") as reader,
        build_loader(reader, config, training=True, device=torch.device("cpu")) as loader,
    ):
        loader.load_state_dict(loader.state_dict() | {"position": position})
        return int(next(iter(loader)).sample_ids[0])


def _resume_round(shards: Path, position: int, config: Config) -> Took:
    """Resume some times; the clock stops at the batch, before threads are ended."""
    times = []
    for _ in range(_RESUMES):
        gc.collect()
        wall_s, core_s = time.perf_counter(), time.process_time()
        with open_shards(shards).split("train") as reader:
            loader = build_loader(reader, config, training=True, device=torch.device("cpu"))
            loader.load_state_dict(loader.state_dict() | {"position": position})
            next(iter(loader))
            times.append(Took(time.perf_counter() - wall_s, time.process_time() - core_s))
            loader.close()
    return sorted(times, key=lambda took: took.wall_s)[len(times) // 2]


def replay_webdataset(tars: list[Path], position: int) -> int:
    """Go on at a position as webdataset must: read what is before it, then decode a batch."""
    urls = itertools.islice(itertools.cycle([str(path) for path in tars]), len(tars) * (position + BATCH_SIZE))
    batch = []
    for sample in itertools.islice(readers.iterate_webdataset(urls), position, position + BATCH_SIZE):
        image = next(data for name, data in sample.items() if name.endswith(("jpg", "image.png")))
        batch.append(readers.decode_pillow(image, sample["mask.png"]))
    assert len(batch) == BATCH_SIZE
    return len(batch)


if __name__ == "__main__":
    sys.exit(main())
