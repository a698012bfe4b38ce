"""Reading a shard folder: any member of any sample by its index row, from any thread.

One descriptor a shard, opened when it is first needed; `pread` leaves no position to share, and a truncated file raises where
a memory map would kill the process. Every row is held against the sizes in the manifest before memory is taken, and every
member against its hash.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import xxhash

from unetfast.data.codecs import decode_image, decode_mask
from unetfast.data.indexrow import IndexRow, read_row
from unetfast.data.manifest import INDEX_DTYPE, INDEX_NAME, PRESENCE_NAME, Manifest, SplitInfo, read_manifest
from unetfast.data.sample import MASK_CODECS
from unetfast.data.shard import TAR_BLOCK, parse_tar_header
from unetfast.errors import CorruptShardError, UserError

# a larger index is mapped, so that more samples take no longer to open, and its hash is left to `inspect --verify`; a damaged
# row shows when its member is read, by a hash that does not fit
MAX_LOADED_INDEX = 16 << 20

_MEMBERS = ("image", "mask", "json")  # their places in a row: hashes from 0, offsets from 3, lengths from 6
_DataT = TypeVar("_DataT", bytes, memoryview)
_NEAR_BYTES = 4096  # two members with no more between them are read in one go


def open_shards(folder: Path) -> ShardFolder:
    """Open a packed shard folder.

    Args:
        folder: the folder that holds `manifest.json`.

    Raises:
        UserError: the folder or its manifest is missing or not valid.
    """
    folder = Path(folder)
    return ShardFolder(folder, read_manifest(folder))


class ShardFolder:
    """A shard folder that was opened: its manifest, and a reader for each split.

    Args:
        path: the folder.
        manifest: its manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def split(self, name: str, *, checksum: bool = True) -> SplitReader:
        """Open one split.

        Args:
            name: "train", "val" or "test".
            checksum: test every member's hash when it is read.

        Raises:
            UserError: there is no such split.
            CorruptShardError: its index is damaged.
        """
        if name not in self.manifest.splits:
            there = ", ".join(f"{other} ({info.samples:,} samples)" for other, info in sorted(self.manifest.splits.items()))
            raise UserError(
                f"{self.path}: no {name} split; there is {there}\n"
                f"  name another split, or pack again with a --val-fraction between 0 and 1 where the source has no splits"
            )
        return SplitReader(self.path, self.manifest, name, checksum=checksum)


class SplitReader:
    """Reads the members of one split's samples. Thread-safe.

    Args:
        folder: the shard folder.
        manifest: its manifest.
        name: the split.
        checksum: test every member's hash when it is read.

    Attributes:
        rows: INDEX_DTYPE, (num_samples,); row i is sample i.
        num_samples: of the split.
        manifest: of the folder.
        split: what the manifest says of the split.

    Raises:
        CorruptShardError: the index is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str, *, checksum: bool = True) -> None:
        self.folder = folder / name
        self.name = name
        self.manifest = manifest
        self.split: SplitInfo = manifest.splits[name]
        self.num_samples = self.split.samples
        self.rows = self._load_rows()
        self._row_bytes = self.rows.view(np.uint8).data
        self._shard_bytes = [shard.bytes for shard in self.split.shards]
        self._max_height, self._max_width = self.split.max_hw
        self._checksum = checksum
        self._descriptors: list[int] = [-1] * len(self.split.shards)
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors") and not sys.is_finalizing():  # a process that ends closes its files itself
            self.close()

    def close(self) -> None:
        """Close all files; reading is over then."""
        with self._lock:
            self._closed = True
            for place, descriptor in enumerate(self._descriptors):
                if descriptor >= 0:
                    os.close(descriptor)
                    self._descriptors[place] = -1

    def read_image(self, sample: int) -> bytes:
        """Read a sample's encoded image.

        Raises:
            CorruptShardError: the shard is missing or cut short, or the bytes are not those that were packed.
        """
        return self._read(sample, "image")

    def read_mask(self, sample: int) -> bytes:
        """Read a sample's encoded mask; raises as `read_image` does."""
        return self._read(sample, "mask")

    def read_pair(self, sample: int, row: IndexRow | None = None) -> tuple[bytes | memoryview, bytes | memoryview]:
        """Read a sample's encoded image and mask, in one go where they lie side by side, as the packer puts them.

        Args:
            sample: its place in the split.
            row: its row of the index, where it is read already.

        Raises:
            CorruptShardError: as `read_image`; where both are bad the mask is named.
        """
        row = row or self.row(sample)
        end, start = row.mask_offset + row.mask_length, row.image_offset
        if 0 <= row.mask_offset - start - row.image_length <= _NEAR_BYTES:
            with suppress(CorruptShardError):  # read by themselves, they tell which one is at fault
                self._check_size(sample, "mask", row)
                data = memoryview(self._pread(row.shard, end - start, start, (sample, "image")))
                image, mask = data[: row.image_length], data[row.mask_offset - start :]
                return self._check(sample, "image", row, image), self._check(sample, "mask", row, mask)
        mask_alone = self.read_mask(sample)
        return self.read_image(sample), mask_alone

    def read_json_bytes(self, sample: int) -> bytes:
        """Read a sample's `<key>.json` as it is stored; raises as `read_image` does."""
        return self._read(sample, "json")

    def read_json(self, sample: int) -> dict[str, Any]:
        """Read a sample's `<key>.json`; raises as `read_image` does."""
        data = self.read_json_bytes(sample)
        try:
            tree = json.loads(data)
        except ValueError as error:
            raise CorruptShardError(self.describe(sample, "json"), f"no JSON ({error})") from None
        if not isinstance(tree, dict):
            raise CorruptShardError(self.describe(sample, "json"), "holds no JSON object")
        return tree

    def decode_image(self, sample: int) -> np.ndarray:
        """Read and decode a sample's image at its stored size.

        Returns:
            RGB, uint8, (H, W, 3).

        Raises:
            CorruptShardError: as `read_image`, or the bytes cannot be decoded.
        """
        data, row = self._read(sample, "image"), self.row(sample)
        try:
            return decode_image(data, row.image_codec_name, height=row.height, width=row.width)
        except ValueError as error:
            raise CorruptShardError(self.describe(sample, "image"), f"cannot be decoded ({error})") from None

    def decode_mask(self, sample: int) -> np.ndarray:
        """Read and decode a sample's mask at its stored size.

        Returns:
            Class ids, uint8 or uint16, (H, W); may be read-only.

        Raises:
            CorruptShardError: as `read_mask`, or the bytes cannot be decoded.
        """
        data, row = self._read(sample, "mask"), self.row(sample)
        try:
            return decode_mask(data, MASK_CODECS[row.mask_codec], row.mask_bits, height=row.height, width=row.width)
        except (ValueError, IndexError) as error:
            raise CorruptShardError(self.describe(sample, "mask"), f"cannot be decoded ({error})") from None

    def image_codec(self, sample: int) -> str:
        """Name the codec of a sample's image: "jpeg", "png" or "lz4"; "unknown" where the index holds no known one."""
        return self.row(sample).image_codec_name

    def key(self, sample: int) -> str:
        """Read a sample's key from the tar header in front of its image.

        Raises:
            CorruptShardError: there is no such header.
        """
        row = self.row(sample)
        shard, offset = row.shard, row.image_offset
        try:
            name, size = parse_tar_header(self._pread(shard, TAR_BLOCK, offset - TAR_BLOCK, (sample, "")))
        except ValueError as error:
            if isinstance(error, CorruptShardError):
                raise
            raise CorruptShardError(self._place(shard, offset, f"sample {sample}"), "no tar header in front of it") from None
        if size != row.image_length:
            raise CorruptShardError(
                self._place(shard, offset, f"sample {sample}"), f"{name} is {size} bytes, the index says {row.image_length}"
            )
        return name.split(".", 1)[0]

    def presence(self) -> np.ndarray:
        """Read which classes occur in each sample.

        Returns:
            bool, (num_samples, num_classes).

        Raises:
            CorruptShardError: the file is missing or damaged.
        """
        packed = self._load_array(PRESENCE_NAME, self.split.presence_xxh3)
        num_classes = self.manifest.num_classes
        if packed.dtype != np.uint8 or packed.shape != (self.num_samples, (num_classes + 7) // 8):
            raise CorruptShardError(str(self.folder / PRESENCE_NAME), f"is {packed.dtype} of shape {packed.shape}")
        return np.unpackbits(packed, axis=1, count=num_classes, bitorder="little").astype(bool)

    def describe(self, sample: int, member: str = "image") -> str:
        """Name a member for a message: key, shard, offset."""
        row = self.row(sample)
        try:
            who = self.key(sample)
        except (CorruptShardError, OSError):
            who = f"sample {sample}"
        return self._place(row.shard, row[3 + _MEMBERS.index(member)], f"{who} ({member})")

    def row(self, sample: int) -> IndexRow:
        """Read a sample's index row as plain numbers.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        return read_row(self._row_bytes, sample)

    def _read(self, sample: int, member: str) -> bytes:
        row, place = self.row(sample), _MEMBERS.index(member)
        self._check_size(sample, member, row)
        return self._check(sample, member, row, self._pread(row.shard, row[6 + place], row[3 + place], (sample, member)))

    def _check(self, sample: int, member: str, row: IndexRow, data: _DataT) -> _DataT:
        """Return a member's bytes, if they are those that were packed."""
        if self._checksum and xxhash.xxh3_64_intdigest(data) != row[_MEMBERS.index(member)]:
            raise CorruptShardError(self.describe(sample, member), "the bytes are not those that were packed (xxh3 differs)")
        return data

    def _check_size(self, sample: int, member: str, row: IndexRow) -> None:
        """Refuse a row that claims more pixels than the manifest's largest sample: decoders take memory by it."""
        if row.height > self._max_height or row.width > self._max_width:
            raise CorruptShardError(
                self.describe(sample, member),
                f"the index says {row.width}x{row.height} pixels, the manifest at most {self._max_width}x{self._max_height} "
                "(width x height)",
            )

    def _pread(self, shard: int, length: int, offset: int, who: tuple[int, str]) -> bytes:
        """Read bytes of a shard; `who` (sample, member) is named where that fails."""
        if shard >= len(self._shard_bytes):
            raise CorruptShardError(
                f"{_name(who)} in {self.folder}", f"shard {shard} of {len(self._shard_bytes)} does not exist"
            )
        num_bytes = self._shard_bytes[shard]
        if offset < 0 or offset + length > num_bytes:
            where = self._place(shard, offset, _name(who))
            raise CorruptShardError(where, f"{length} bytes from there would pass the shard's end at {num_bytes}")
        descriptor = self._descriptors[shard]
        if descriptor < 0:
            descriptor = self._open(shard)
        parts: list[bytes] = []
        while length > 0:  # one pread gives at most 2 GiB
            try:
                part = os.pread(descriptor, length, offset)
            except OSError as error:
                where = self._place(shard, offset, _name(who))
                raise CorruptShardError(where, f"cannot be read ({error.strerror})") from None
            if not part:
                raise CorruptShardError(self._place(shard, offset, _name(who)), "the shard was cut short while it was read")
            if len(part) == length and not parts:
                return part
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _open(self, shard: int) -> int:
        info = self.split.shards[shard]
        path = self.folder / info.file
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.folder}: the reader is closed")
            if self._descriptors[shard] >= 0:
                return self._descriptors[shard]
            try:
                descriptor = _open_file(path)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # no damage: not to be left out by on_bad = "skip"
                    raise UserError(
                        f"{path}: cannot be opened ({error.strerror}): this process may not have as many files open as there "
                        "are shards; raise the limit (`ulimit -n 65536`), or pack into fewer, larger shards (--shard-mib)"
                    ) from None
                raise CorruptShardError(str(path), f"cannot be opened ({error.strerror})") from None
            size = os.fstat(descriptor).st_size
            if size != info.bytes:
                os.close(descriptor)
                raise CorruptShardError(str(path), f"is {size} bytes, the manifest says {info.bytes}")
            self._descriptors[shard] = descriptor
            return descriptor

    def _place(self, shard: int, offset: int, who: str) -> str:
        return f"{who} in {self.folder / self.split.shards[shard].file} at byte {offset}"

    def _load_rows(self) -> np.ndarray:
        rows = self._load_array(INDEX_NAME, self.split.index_xxh3)
        if rows.dtype != INDEX_DTYPE or rows.shape != (self.num_samples,):
            raise CorruptShardError(
                str(self.folder / INDEX_NAME), f"is {rows.dtype} of shape {rows.shape}, expected {self.num_samples} index rows"
            )
        return rows

    def _load_array(self, name: str, xxh3: str) -> np.ndarray:
        path = self.folder / name
        try:
            if path.stat().st_size > MAX_LOADED_INDEX:
                mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
                return mapped
            data = path.read_bytes()
            if xxhash.xxh3_64_hexdigest(data) != xxh3:
                raise CorruptShardError(str(path), "is not the file that was packed (xxh3 differs from the manifest)")
            array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except OSError as error:
            raise CorruptShardError(str(path), f"cannot be read ({error.strerror or error})") from None
        except ValueError as error:
            if isinstance(error, CorruptShardError):
                raise
            raise CorruptShardError(str(path), f"is no sound .npy file ({error})") from None
        array.flags.writeable = False
        return array


def _name(who: tuple[int, str]) -> str:
    sample, member = who
    return f"sample {sample} ({member})" if member else f"sample {sample}"


def _open_file(path: Path) -> int:
    """Open a file to read; where the process may have no more, it asks for as many as the system allows it.

    A data set of 10^6 images has more shards than the 1,024 files that a process usually may open.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
    with suppress(ValueError, OSError):  # macOS takes no limit that it calls endless
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return os.open(path, flags)
