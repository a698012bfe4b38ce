"""Proof that a shard folder is what its manifest says: every byte, every header, every pixel.

What the packer promises is checked from the files alone, so that the same test finds a flipped bit, an index that belongs to
another tar, a mask with an unknown id, and an edited manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from unetfast.data.counting import count_ids
from unetfast.data.encode import sum_channels
from unetfast.data.manifest import Manifest, ShardInfo
from unetfast.data.reader import ShardFolder, SplitReader, open_shards
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS, shorten
from unetfast.data.shard import TAR_BLOCK, IdxPart, build_idx, build_member_names, build_tar_header
from unetfast.data.workers import count_cores
from unetfast.errors import CorruptShardError

MAX_PROBLEMS = 200
# normalisation is counted before a lossy encoding, so decoded pixels come near it only
_MEAN_TOLERANCE = 0.005
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found in one sample."""

    problems: list[str]
    key: str = ""
    group: str = ""
    class_pixels: np.ndarray | None = None
    ignored_pixels: int = 0
    channel_sum: np.ndarray | None = None


def verify_shards(folder: Path, *, threads: int = 0, report: Callable[[int], None] | None = None) -> list[str]:
    """Read, hash and decode everything in a shard folder, and compare it with its manifest.

    Args:
        folder: the shard folder.
        threads: that decode; 0 is one for each core.
        report: takes the number of samples checked since the last call.

    Returns:
        What is wrong, a line each, at most 200 and a word on the rest; empty where all is well.

    Raises:
        UserError: the folder or its manifest is missing or not valid; there is nothing to compare with.
    """
    shards = open_shards(folder)
    problems: list[str] = []
    with ThreadPoolExecutor(threads or count_cores()) as pool:
        for problem in _iter_problems(shards, pool, report or (lambda _: None)):
            if len(problems) == MAX_PROBLEMS:
                problems.append("... and more")
                break
            problems.append(problem)
    return problems


def _iter_problems(shards: ShardFolder, pool: ThreadPoolExecutor, report: Callable[[int], None]) -> Iterator[str]:
    manifest = shards.manifest
    if (manifest.num_classes, manifest.ignore_index) != (manifest.labels.num_classes, manifest.labels.ignore_index):
        yield f"{shards.path}: num_classes or ignore_index of the manifest differ from its label table"
        return
    for name, split in manifest.splits.items():
        for info in split.shards:
            yield from _check_file(shards.path / name / info.file, info)
        listed = {info.file for info in split.shards}
        for path in sorted((shards.path / name).glob("*.tar")):
            if path.name not in listed:
                yield f"{path}: is not in the manifest"
        try:
            reader = shards.split(name)
        except CorruptShardError as error:
            yield _tell(error)
            continue
        with reader:
            yield from _check_split(reader, manifest, pool, report)


def _check_file(path: Path, info: ShardInfo) -> Iterator[str]:
    """Hash a tar and its .idx."""
    try:
        size = path.stat().st_size
        if size != info.bytes:
            yield f"{path}: is {size} bytes, the manifest says {info.bytes}"
        elif _hash_file(path) != info.xxh3:
            yield f"{path}: is not the file that was packed (xxh3 differs from the manifest)"
        if _hash_file(path.with_suffix(".idx")) != info.idx_xxh3:
            yield f"{path.with_suffix('.idx')}: is not the file that was packed (xxh3 differs from the manifest)"
    except OSError as error:
        yield f"{error.filename}: cannot be read ({error.strerror})"


def _check_split(
    reader: SplitReader, manifest: Manifest, pool: ThreadPoolExecutor, report: Callable[[int], None]
) -> Iterator[str]:
    """Check every sample of a split, then what the manifest says of all."""
    where, split = str(reader.folder), reader.split
    try:
        presence = reader.presence()
    except CorruptShardError as error:
        yield _tell(error)
        presence = None
    yield from _compare_sizes(reader)
    totals = _Totals(manifest.num_classes)
    starts = np.flatnonzero(np.diff(reader.rows["shard"].astype(np.int64), prepend=-1))
    if reader.rows["shard"][starts].tolist() != list(range(len(split.shards))):
        yield f"{where}: the index does not list all samples of one shard after those of another"
        return
    for number, samples in enumerate(np.split(np.arange(reader.num_samples), starts[1:])):
        checked = list(pool.map(lambda sample: _check_sample(reader, int(sample)), samples))
        report(len(samples))
        sound = True
        for sample, found in zip(samples, checked, strict=True):
            yield from found.problems
            sound = sound and not found.problems
            if found.class_pixels is not None:
                yield from totals.add(reader, int(sample), found)
                if presence is not None and not np.array_equal(presence[sample], found.class_pixels > 0):
                    yield f"{where}/presence.npy: row {sample} is not what the mask of {found.key} holds"
        if sound:
            yield from _check_layout(reader, number, samples, [found.key for found in checked])
        if len(samples) != split.shards[number].samples:
            yield f"{where}/{split.shards[number].file}: holds {len(samples)} samples, the manifest says otherwise"
    if totals.num_samples == reader.num_samples:
        yield from totals.compare(reader)


def _check_sample(reader: SplitReader, sample: int) -> _Checked:
    """Read and decode one sample."""
    row = reader.rows[sample]
    try:
        key = reader.key(sample)
        tree = reader.read_json(sample)
        rgb_HWC, mask_HW = reader.decode_image(sample), reader.decode_mask(sample)
    except CorruptShardError as error:
        return _Checked([_tell(error)])
    stated = {
        "height": int(row["height"]),
        "width": int(row["width"]),
        "image_codec": IMAGE_CODECS[row["image_codec"]],
        "mask_codec": MASK_CODECS[row["mask_codec"]],
        "mask_bits": int(row["mask_bits"]),
    }
    problems = [
        f"{reader.describe(sample, 'json')}: {name} is {tree.get(name)!r}, the index says {value!r}"
        for name, value in stated.items()
        if tree.get(name) != value
    ]
    counts, unknown = count_ids(mask_HW, reader.manifest.labels)
    if unknown:
        problems.append(f"{reader.describe(sample, 'mask')}: holds ids that no class has ({shorten(unknown)})")
    channel_sum, _ = sum_channels(rgb_HWC)
    group = str(tree.get("group", ""))
    return _Checked(problems, key, group, counts[:-1], int(counts[-1]), channel_sum)


def _check_layout(reader: SplitReader, shard: int, samples: np.ndarray, keys: list[str]) -> Iterator[str]:
    """Compare all tar headers, the gaps between members and the .idx with what the index rows demand."""
    info = reader.split.shards[shard]
    path = reader.folder / info.file
    position = 0
    idx_parts: list[IdxPart] = []
    with path.open("rb") as file:
        for sample, key in zip(samples, keys, strict=True):
            row = reader.rows[sample]
            names = build_member_names(key, IMAGE_CODECS[row["image_codec"]], MASK_CODECS[row["mask_codec"]])
            spans = [(int(row[f"{member}_offset"]), int(row[f"{member}_length"])) for member in ("image", "mask", "json")]
            for name, (offset, length) in zip(names, spans, strict=True):
                file.seek(position)
                if offset != position + TAR_BLOCK or file.read(TAR_BLOCK) != build_tar_header(name, length):
                    yield f"{path} at byte {position}: no header of {name} ({length} bytes)"
                    return
                position = offset + length + -length % TAR_BLOCK
            idx_parts.append((names, spans))
        file.seek(position)
        if file.read() != bytes(2 * TAR_BLOCK):
            yield f"{path} at byte {position}: the end of the tar was expected"
    idx = path.with_suffix(".idx")
    if not idx.exists() or idx.read_text(encoding="ascii", errors="replace") != build_idx(idx_parts):
        yield f"{idx}: does not fit its tar"


class _Totals:
    """What was counted over a split."""

    def __init__(self, num_classes: int) -> None:
        self.num_samples = 0
        self.keys: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.class_pixels = np.zeros(num_classes, np.int64)
        self.class_images = np.zeros(num_classes, np.int64)
        self.ignored_pixels = 0
        self.channel_sum = np.zeros(3, np.int64)

    def add(self, reader: SplitReader, sample: int, found: _Checked) -> Iterator[str]:
        """Count one sample."""
        assert found.class_pixels is not None
        assert found.channel_sum is not None
        self.num_samples += 1
        self.class_pixels += found.class_pixels
        self.class_images += found.class_pixels > 0
        self.ignored_pixels += found.ignored_pixels
        self.channel_sum += found.channel_sum
        other = self.keys.setdefault(found.key, sample)
        if other != sample:
            yield f"{reader.describe(sample)}: sample {other} has the same key"
        number = int(reader.rows[sample]["group"])
        if self.groups.setdefault(found.group, number) != number or (number == 0) != (found.group == ""):
            yield f"{reader.describe(sample)}: group {number} in the index is not group {found.group!r}"

    def compare(self, reader: SplitReader) -> Iterator[str]:
        """Compare the sums with the manifest."""
        split = reader.split
        pairs: list[tuple[str, object, object]] = [
            ("class_pixels", split.class_pixels, tuple(self.class_pixels.tolist())),
            ("class_images", split.class_images, tuple(self.class_images.tolist())),
            ("ignored_pixels", split.ignored_pixels, self.ignored_pixels),
            ("groups", split.groups, len(self.groups.keys() - {""})),
        ]
        yield from _compare(reader, pairs)
        num_pixels = int(self.class_pixels.sum()) + self.ignored_pixels
        mean = self.channel_sum / (255 * num_pixels)
        if np.abs(mean - split.mean).max() > _MEAN_TOLERANCE:
            yield f"{reader.folder}: mean of the manifest is {split.mean}, counted was {np.round(mean, 4).tolist()}"


def _compare_sizes(reader: SplitReader) -> Iterator[str]:
    """Compare the manifest's bounds of image sizes with the index; the reader refuses samples beyond them."""
    sides = reader.rows["height"], reader.rows["width"]
    smallest, largest = tuple(int(side.min()) for side in sides), tuple(int(side.max()) for side in sides)
    yield from _compare(reader, [("min_hw", reader.split.min_hw, smallest), ("max_hw", reader.split.max_hw, largest)])


def _compare(reader: SplitReader, pairs: list[tuple[str, object, object]]) -> Iterator[str]:
    for name, stated, counted in pairs:
        if stated != counted:
            yield f"{reader.folder}: {name} of the manifest is {_shorten(stated)}, counted were {_shorten(counted)}"


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _tell(error: CorruptShardError) -> str:
    return f"{error.where}: {error.reason}"
