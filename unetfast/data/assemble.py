"""From the results of all shards to a split's index, presence and counts.

Shards that hold nothing (every sample was bad) are left out; an index row's shard is a place among those that are there.
"""

from __future__ import annotations

import io
import math

import numpy as np
import xxhash

from unetfast.data.manifest import INDEX_NAME, PRESENCE_NAME, Manifest, ShardInfo, SplitInfo
from unetfast.data.packdir import PackFolder
from unetfast.data.packshard import ShardResult
from unetfast.data.plan import PackPlan, ShardPlan


def write_splits(folder: PackFolder, plan: PackPlan, results: list[ShardResult]) -> dict[str, SplitInfo]:
    """Write index and presence of every split.

    Args:
        folder: under work; all shards stand in it.
        plan: of the packing.
        results: one for each shard of the plan, in its order.

    Returns:
        What the manifest says of each split; splits without a sample are left out.
    """
    splits: dict[str, SplitInfo] = {}
    for name in dict.fromkeys(shard.split for shard in plan.shards):
        pairs = zip(plan.shards, results, strict=True)
        parts = [(shard, result) for shard, result in pairs if shard.split == name and result.num_samples]
        if parts:
            splits[name] = _write_split(folder, name, parts)
    return splits


def find_warnings(manifest: Manifest) -> list[str]:
    """Warn of masks from which nothing can be learnt."""
    images = [sum(counts) for counts in zip(*(split.class_images for split in manifest.splits.values()), strict=True)]
    there = [name for name, count in zip(manifest.labels.names, images, strict=True) if count]
    if len(there) == 1:
        return [f"all masks hold one class alone, {there[0]}: nothing can be learnt from them. Are mask values mapped right?"]
    if not there:
        return ["all pixels of all masks are ignored: nothing can be learnt from them. Are mask values mapped right?"]
    return []


def _write_split(folder: PackFolder, name: str, parts: list[tuple[ShardPlan, ShardResult]]) -> SplitInfo:
    results = [result for _, result in parts]
    rows = np.concatenate([result.rows for result in results])
    rows["shard"] = np.repeat(np.arange(len(results)), [result.num_samples for result in results])
    groups = [group for result in results for group in result.groups]
    number_of = {group: number for number, group in enumerate(sorted(set(groups) - {""}), start=1)}
    rows["group"] = [number_of.get(group, 0) for group in groups]
    index, presence = _build_npy(rows), _build_npy(np.concatenate([result.presence for result in results]))
    folder.publish(folder.out / name / INDEX_NAME, index)
    folder.publish(folder.out / name / PRESENCE_NAME, presence)
    mean, std = _normalise(rows, results)
    return SplitInfo(
        samples=len(rows),
        groups=len(number_of),
        shards=tuple(
            ShardInfo(
                file=f"{shard.number:06d}.tar",
                samples=result.num_samples,
                bytes=result.num_bytes,
                xxh3=result.xxh3,
                idx_xxh3=result.idx_xxh3,
            )
            for shard, result in parts
        ),
        index_xxh3=xxhash.xxh3_64_hexdigest(index),
        presence_xxh3=xxhash.xxh3_64_hexdigest(presence),
        mean=mean,
        std=std,
        class_pixels=_add_up([result.class_pixels for result in results]),
        class_images=_add_up([result.class_images for result in results]),
        ignored_pixels=sum(result.ignored_pixels for result in results),
        min_hw=(int(rows["height"].min()), int(rows["width"].min())),
        max_hw=(int(rows["height"].max()), int(rows["width"].max())),
    )


def _normalise(rows: np.ndarray, results: list[ShardResult]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel in [0, 1], from exact integers; rounded once, at the end."""
    num_pixels = int((rows["height"].astype(np.int64) * rows["width"].astype(np.int64)).sum())
    means, stds = [], []
    for total, squares in zip(
        _add_up([result.channel_sum for result in results]),
        _add_up([result.channel_square_sum for result in results]),
        strict=True,
    ):
        means.append(round(total / (255 * num_pixels), 9))
        stds.append(round(math.sqrt(num_pixels * squares - total * total) / (255 * num_pixels), 9))
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _add_up(counts: list[list[int]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*counts, strict=True))


def _build_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
