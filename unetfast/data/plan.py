"""What goes where, settled before anything is encoded: splits, order, and the cut into shards.

All of it follows from the listing of the source, the options and the seed, so each shard is an independent piece of work, and
neither the number of workers nor an interruption can show in the bytes. Chance is a seeded hash of names, not a generator's
stream: adding a sample moves no other, and no version of numpy matters.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from unetfast.data.manifest import SPLIT_NAMES
from unetfast.data.options import PackOptions
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import SourceScan
from unetfast.errors import BadSampleError, UserError

MIB = 1 << 20
# a split is cut into at least this many shards, so that all cores of a machine have work, while each holds MIN_SHARD_BYTES
MIN_SHARDS = 16
MIN_SHARD_BYTES = 1 * MIB


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be packed.

    Args:
        split: "train", "val" or "test".
        number: of the shard in its split, from 0.
        samples: in the order in which they are packed.
    """

    split: str
    number: int
    samples: tuple[SampleRef, ...]

    @property
    def name(self) -> str:
        """The shard's file without suffix, relative to the shard folder."""
        return f"{self.split}/{self.number:06d}"


@dataclass(frozen=True, slots=True)
class PackPlan:
    """All shards of a packing.

    Args:
        shards: in the order of splits and numbers.
        split_rule: how samples came to their splits; for the manifest.
        source_xxh3: over names and sizes of the source's files.
        listing_xxh3: the same with modification times: tells whether the files were touched since.
        source_bytes: images and masks as they stand in the source.
        warnings: what the user should know about his data's split.
    """

    shards: tuple[ShardPlan, ...]
    split_rule: str
    source_xxh3: str
    listing_xxh3: str
    source_bytes: int
    warnings: list[str] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)

    def count_samples(self) -> dict[str, int]:
        """Samples of each split, before any is found to be bad."""
        counts = Counter[str]()
        for shard in self.shards:
            counts[shard.split] += len(shard.samples)
        return dict(counts)


def build_plan(scan: SourceScan, root: Path, options: PackOptions) -> PackPlan:
    """Assign every sample to a split, a shard, and a place in it.

    Args:
        scan: the scanned source.
        root: the source folder.
        options: seed, val fraction, shard size.

    Raises:
        UserError: the source holds no samples.
        BadSampleError: two samples of a split have the same key.
    """
    if not scan.samples:
        raise UserError(f"{root}: no pair of image and mask in it ({scan.dataset}, {scan.layout})")
    splits, rule, warnings = assign_splits(scan.samples, options)
    shards: list[ShardPlan] = []
    for split in SPLIT_NAMES:
        samples = order_samples(splits.get(split, []), options.seed)
        check_keys(samples)
        shards += [ShardPlan(split, number, tuple(part)) for number, part in enumerate(cut_shards(samples, options.shard_mib))]
    source_xxh3, listing_xxh3 = hash_listing(scan.samples, root)
    source_bytes = sum(ref.num_bytes for ref in scan.samples)
    return PackPlan(tuple(shards), rule, source_xxh3, listing_xxh3, source_bytes, warnings)


def assign_splits(samples: list[SampleRef], options: PackOptions) -> tuple[dict[str, list[SampleRef]], str, list[str]]:
    """Sort samples into splits: the source's own, else by group.

    A source that has a train split alone is split too: there would be nothing to validate on. Groups are ranked by a seeded
    hash of their names; the first `val_fraction` of them (at least one, and not all, where there are two) go to val. A
    sample without a group is a group of its own.

    Returns:
        Samples of each split, the rule in words, and warnings.
    """
    named = {ref.split for ref in samples}
    if named not in ({""}, {"train"}):
        unknown = named - set(SPLIT_NAMES)
        if unknown:
            raise UserError(f"samples have splits {sorted(named)}; known are {', '.join(SPLIT_NAMES)}, for all or for none")
        splits = {split: [ref for ref in samples if ref.split == split] for split in SPLIT_NAMES if split in named}
        return splits, "source", _find_shared_groups(splits)
    groups = {_group_of(ref) for ref in samples}
    ranked = sorted(groups, key=lambda group: (_hash(group, options.seed), group))
    num_val = round(options.val_fraction * len(ranked))
    warnings = []
    if 0 < options.val_fraction < 1:
        num_val = min(max(num_val, 1), len(ranked) - 1)
        if num_val == 0:
            warnings.append("there is one group alone, and all of it went to train: there is no val split")
    held_back = set(ranked[:num_val])
    splits = {"train": [], "val": []}
    for ref in samples:
        splits["val" if _group_of(ref) in held_back else "train"].append(ref)
    grouped = any(ref.group for ref in samples)
    rule = f"{'by group' if grouped else 'by sample'}, seed {options.seed}, val fraction {options.val_fraction:g}"
    if grouped:
        rule += f", {len(ranked) - num_val} groups train, {num_val} val"
    if named == {"train"}:
        rule = f"of the source's train split, {rule}"
    return {split: refs for split, refs in splits.items() if refs}, rule, warnings


def order_samples(samples: Iterable[SampleRef], seed: int) -> list[SampleRef]:
    """Shuffle by a seeded hash of the names; independent of the order in which they come."""
    return sorted(samples, key=lambda ref: (_hash(f"order:{ref.name}", seed), ref.name))


def cut_shards(samples: list[SampleRef], shard_mib: float) -> list[list[SampleRef]]:
    """Cut a split, in its order, into shards of about equal source bytes, each at least one sample.

    There are as many as keep a shard at `shard_mib`; a small split is cut finer, into up to 16 shards of at least 1 MiB.
    """
    total = sum(ref.num_bytes for ref in samples)
    num_shards = max(1, math.ceil(total / (shard_mib * MIB)), min(MIN_SHARDS, total // MIN_SHARD_BYTES))
    shards: list[list[SampleRef]] = [[] for _ in range(num_shards)]
    before = 0
    for ref in samples:
        middle = 2 * before + ref.num_bytes  # in half bytes, so that all is in integers
        shards[min(num_shards - 1, middle * num_shards // (2 * total or 1))].append(ref)
        before += ref.num_bytes
    return [shard for shard in shards if shard]


def check_keys(samples: list[SampleRef]) -> None:
    """Prove that keys are unique in a split.

    Raises:
        BadSampleError: two names have one key.
    """
    seen: dict[str, SampleRef] = {}
    for ref in samples:
        other = seen.setdefault(ref.key, ref)
        if other is not ref:
            raise BadSampleError(
                ref.source_path, f"has the key {ref.key} that {other.source_path} has too", "rename one of the two files"
            )


def hash_listing(samples: list[SampleRef], root: Path) -> tuple[str, str]:
    """Hash the source's files: names and sizes, and the same with modification times; 16 hex digits each.

    A file that is not there (a link into nowhere) counts with size -1; it is a bad sample, and told when it is to be read.
    """
    names, times = xxhash.xxh3_64(), xxhash.xxh3_64()
    stats: dict[str, tuple[int, int]] = {}
    for ref in sorted(samples, key=lambda ref: (ref.split, ref.name)):
        parts = [ref.split, ref.name, ref.group, ref.source_path]
        for span in (ref.image, ref.mask):
            if span.path not in stats:
                stats[span.path] = _stat(span.path)
            parts.append(_describe(span, root, stats[span.path][0]))
        line = "\0".join(parts).encode("utf-8", "surrogateescape") + b"\n"
        names.update(line)
        times.update(line)
        times.update(repr([stats[span.path][1] for span in (ref.image, ref.mask)]).encode())
    return names.hexdigest(), times.hexdigest()


def _stat(path: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns; -1 where there is no such file."""
    try:
        stat = Path(path).stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _describe(span: FileSpan, root: Path, size: int) -> str:
    return f"{os.path.relpath(span.path, root)}:{size}:{span.offset}:{span.length}:{span.frame}"


def _group_of(ref: SampleRef) -> str:
    return f"group:{ref.group}" if ref.group else f"sample:{ref.name}"


def _hash(text: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogateescape"), seed=seed)


def _find_shared_groups(splits: dict[str, list[SampleRef]]) -> list[str]:
    """Warn of groups that stand in two of the source's own splits."""
    warnings = []
    groups = {split: {ref.group for ref in refs if ref.group} for split, refs in splits.items()}
    for place, first in enumerate(groups):
        for second in list(groups)[place + 1 :]:
            shared = sorted(groups[first] & groups[second])
            if shared:
                some = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
                warnings.append(
                    f"{first} and {second} share {len(shared)} groups ({some}): "
                    "scores there are better than on unseen ones. The source's own split is kept"
                )
    return warnings
