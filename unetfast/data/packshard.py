"""Packing one shard: the piece of work that a packer's worker does, and what it leaves for the manifest.

Each shard ends in a result file beside the plan. The manifest is put together from these files alone, whether they were
written a moment ago or before an interruption.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from unetfast.data.encode import SampleEncoder
from unetfast.data.manifest import INDEX_DTYPE
from unetfast.data.packdir import PackFolder, naming_disk_errors
from unetfast.data.plan import ShardPlan
from unetfast.data.sample import Sample, SampleRef, SampleStats
from unetfast.data.shard import ShardWriter
from unetfast.errors import BadSampleError

# a sample and its counts; or, of a bad one, its file and the reason
Encoded = tuple[Sample, SampleStats] | tuple[str, str]


@dataclass(slots=True)
class ShardResult:
    """What was packed into one shard; all counts are integers, so that sums do not depend on their order.

    Args:
        num_samples: packed; 0 where every one was bad, and then there is no tar.
        num_bytes: of the tar.
        xxh3: of the tar.
        idx_xxh3: of the .idx file.
        rows: index rows, INDEX_DTYPE; `shard` and `group` are still 0.
        presence: uint8, (samples, ceil(num_classes / 8)), see `manifest.PRESENCE_NAME`.
        groups: of each sample; "" is none.
        channel_sum: as in `SampleStats`, over all samples.
        channel_square_sum: likewise.
        class_pixels: likewise.
        class_images: samples in which each class occurs.
        ignored_pixels: pixels of `ignore_index`.
        notes: how often each change was made on the way in.
        codecs: samples of each image codec.
        image_bytes: of all packed images.
        mask_bytes: of all packed masks.
        skipped: (file, reason) of each bad sample, in the order of the plan.
    """

    num_samples: int = 0
    num_bytes: int = 0
    xxh3: str = ""
    idx_xxh3: str = ""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, INDEX_DTYPE))
    presence: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    groups: list[str] = field(default_factory=list)
    channel_sum: list[int] = field(default_factory=lambda: [0, 0, 0])
    channel_square_sum: list[int] = field(default_factory=lambda: [0, 0, 0])
    class_pixels: list[int] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    ignored_pixels: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)
    image_bytes: int = 0
    mask_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> bytes:
        tree = {name: value for name, value in asdict(self).items() if name not in ("rows", "presence")}
        tree["rows"] = base64.b64encode(self.rows.tobytes()).decode()
        tree["presence"] = base64.b64encode(self.presence.tobytes()).decode()
        return json.dumps(tree).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        tree: dict[str, Any] = json.loads(data)
        tree["rows"] = np.frombuffer(base64.b64decode(tree["rows"]), INDEX_DTYPE)
        presence = np.frombuffer(base64.b64decode(tree["presence"]), np.uint8)
        tree["presence"] = presence.reshape(tree["num_samples"], -1) if tree["num_samples"] else np.zeros((0, 0), np.uint8)
        tree["skipped"] = [tuple(pair) for pair in tree["skipped"]]
        return cls(**tree)


@dataclass(frozen=True, slots=True)
class ShardDone:
    """What a worker tells when a shard is finished."""

    shard: ShardPlan
    num_skipped: int


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Samples of a shard that are encoded apart from its others.

    Args:
        shard: name of the shard that they belong to.
        start: place of the first one in it.
        samples: in the shard's order.
    """

    shard: str
    start: int
    samples: tuple[SampleRef, ...]


@dataclass(frozen=True, slots=True)
class PartDone:
    """What a worker hands over of a part.

    Args:
        shard: as in `ShardPart`.
        start: likewise.
        encoded: one a sample of the part, in its order.
    """

    shard: str
    start: int
    encoded: list[Encoded]


@dataclass(frozen=True, slots=True)
class ShardPacker:
    """Packs shards, or encodes parts of them, into a folder. Picklable: it travels to worker processes.

    Args:
        encoder: of the data set's samples.
        out: the shard folder, under work.
    """

    encoder: SampleEncoder
    out: Path

    def __call__(self, task: ShardPlan | ShardPart, report: Callable[[int], None]) -> ShardDone | PartDone:
        """Pack a shard, or encode the samples of a part of one.

        Raises:
            BadSampleError: a sample is bad, and bad ones are not to be skipped.
            UserError: the disk is full, or may not be written.
        """
        if isinstance(task, ShardPart):
            return PartDone(task.shard, task.start, list(self._encode(task.samples, report)))
        return self.write(task, self._encode(task.samples, report))

    def write(self, shard: ShardPlan, encoded: Iterable[Encoded]) -> ShardDone:
        """Write one shard: tar and idx under their names first, the result file that vouches for them last.

        Args:
            shard: where it belongs.
            encoded: one a sample of the shard, in its order.

        Raises:
            UserError: the disk is full, or may not be written.
        """
        folder = PackFolder(self.out)
        tar, idx = (self.out / f"{shard.name}{suffix}" for suffix in (".tar", ".idx"))
        with naming_disk_errors(self.out):
            temporary = folder.temporary(tar)
            with ShardWriter(temporary) as writer:
                result = self._add_samples(encoded, writer)
                content = writer.finish()
            if result.num_samples:
                result.num_bytes, result.xxh3, result.rows = content.num_bytes, content.xxh3, content.rows
                result.idx_xxh3 = xxhash.xxh3_64_hexdigest(content.idx.encode())
                folder.reveal(temporary, tar)
                folder.publish(idx, content.idx.encode())
            else:
                temporary.unlink()
            folder.publish(folder.result_path(shard.name), result.to_json())
        return ShardDone(shard, len(result.skipped))

    def _encode(self, refs: Iterable[SampleRef], report: Callable[[int], None]) -> Iterator[Encoded]:
        for ref in refs:
            encoded: Encoded
            try:
                encoded = self.encoder.encode(ref)
            except BadSampleError as error:
                if self.encoder.options.on_bad == "error":
                    raise
                encoded = (error.file, error.reason)
            yield encoded
            report(1)

    def _add_samples(self, encoded: Iterable[Encoded], writer: ShardWriter) -> ShardResult:
        totals = _Totals(self.encoder.labels.num_classes)
        result = ShardResult()
        for first, second in encoded:
            if isinstance(first, Sample) and isinstance(second, SampleStats):
                writer.add(first)
                totals.add(first, second)
            else:
                result.skipped.append((str(first), str(second)))
        totals.store(result)
        return result


class _Totals:
    """Sums over the samples of a shard."""

    def __init__(self, num_classes: int) -> None:
        self.channel_sum = np.zeros(3, np.int64)
        self.channel_square_sum = np.zeros(3, np.int64)
        self.class_pixels = np.zeros(num_classes, np.int64)
        self.ignored_pixels = 0
        self.present: list[np.ndarray] = []
        self.groups: list[str] = []
        self.notes = Counter[str]()
        self.codecs = Counter[str]()
        self.image_bytes = 0
        self.mask_bytes = 0

    def add(self, sample: Sample, stats: SampleStats) -> None:
        self.channel_sum += stats.channel_sum
        self.channel_square_sum += stats.channel_square_sum
        self.class_pixels += stats.class_pixels
        self.ignored_pixels += stats.ignored_pixels
        self.present.append(stats.class_pixels > 0)
        self.groups.append(sample.group)
        self.notes.update(stats.notes)
        self.codecs[sample.image_codec] += 1
        self.image_bytes += len(sample.image)
        self.mask_bytes += len(sample.mask)

    def store(self, result: ShardResult) -> None:
        result.num_samples = len(self.groups)
        result.groups = self.groups
        result.channel_sum = self.channel_sum.tolist()
        result.channel_square_sum = self.channel_square_sum.tolist()
        result.class_pixels = self.class_pixels.tolist()
        result.ignored_pixels = self.ignored_pixels
        result.class_images = np.sum(self.present, axis=0).tolist() if self.present else [0] * len(self.class_pixels)
        if self.present:
            result.presence = np.packbits(np.array(self.present), axis=1, bitorder="little")
        result.notes, result.codecs = dict(self.notes), dict(self.codecs)
        result.image_bytes, result.mask_bytes = self.image_bytes, self.mask_bytes
