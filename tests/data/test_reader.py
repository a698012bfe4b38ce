"""Reading back what was packed, from any thread, and saying clearly what is damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from plain_source import draw_sample, edit_manifest, write_source

from unetfast.data import reader as reader_module
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack_scan
from unetfast.data.reader import SplitReader, open_shards
from unetfast.errors import CorruptShardError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scan = write_source(tmp_path / "src", 12)
    pack_scan(scan, tmp_path / "src", tmp_path / "shards", options=PackOptions(shard_mib=0.01, val_fraction=0.3), workers=1)
    return tmp_path / "shards"


@pytest.fixture
def train(folder: Path) -> Iterator[SplitReader]:
    with open_shards(folder).split("train") as reader:
        yield reader


def number_of(reader: SplitReader, sample: int) -> int:
    return int(reader.read_json(sample)["source_path"].split(".")[1])


def test_samples_are_those_of_the_source(train: SplitReader) -> None:
    presence = train.presence()
    assert train.num_samples == len(train.rows) == train.split.samples
    for sample in range(train.num_samples):
        number = number_of(train, sample)
        rgb, mask = draw_sample(number, 3)
        mask[0, : 1 + number % 3] = 255
        np.testing.assert_array_equal(train.decode_mask(sample), mask)
        if number % 3 == 0:
            np.testing.assert_array_equal(train.decode_image(sample), rgb)
        assert train.decode_image(sample).shape == rgb.shape
        assert train.key(sample) == f"shot=2E{number:02d}"
        assert train.read_json(sample)["group"] == f"scene{number // 2}"
        assert presence[sample].tolist() == [bool((mask == class_id).any()) for class_id in range(3)]
    for beyond in (train.num_samples, -1):
        with pytest.raises(IndexError, match=f"sample {beyond} of {train.num_samples}"):
            train.read_image(beyond)


def test_rows_are_read_as_numpy_reads_them(train: SplitReader) -> None:
    for sample in range(train.num_samples):
        assert train.row(sample) == train.rows[sample].item()
        assert train.row(sample)._fields == train.rows.dtype.names


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no test split; there is train .*, val"):
        open_shards(folder).split("test")
    with pytest.raises(UserError, match="no such folder"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_shards(tmp_path / "src")


def test_many_threads_read_the_same(train: SplitReader) -> None:
    expected = [train.read_mask(sample) for sample in range(train.num_samples)]
    barrier = threading.Barrier(8)

    def read(_: int) -> list[bytes]:
        barrier.wait()
        return [train.read_mask(sample) for sample in range(train.num_samples)]

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(read, range(8)))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("near_bytes", [4096, -1])
def test_a_pair_is_image_and_mask(train: SplitReader, near_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in one go, or one by one where they do not lie together."""
    num_reads, pread = [], os.pread
    monkeypatch.setattr(reader_module, "_NEAR_BYTES", near_bytes)
    monkeypatch.setattr(reader_module.os, "pread", lambda *args: num_reads.append(1) or pread(*args))
    pairs = [train.read_pair(sample) for sample in range(train.num_samples)]
    assert len(num_reads) == train.num_samples * (1 if near_bytes > 0 else 2)
    for sample, (image, mask) in enumerate(pairs):
        assert (bytes(image), bytes(mask)) == (train.read_image(sample), train.read_mask(sample))
    with pytest.raises(IndexError, match="sample -1 of"):
        train.read_pair(-1)


@pytest.mark.parametrize("bad", ["image", "mask"])
def test_of_a_pair_the_member_at_fault_is_named(folder: Path, bad: str) -> None:
    with open_shards(folder).split("train") as reader:
        row = reader.row(1)
        file = folder / "train" / reader.split.shards[row.shard].file
        flip(file, row.image_offset if bad == "image" else row.mask_offset)
        with pytest.raises(CorruptShardError, match=rf"shot=2E\d\d \({bad}\) in .*xxh3"):
            reader.read_pair(1)
        assert reader.read_pair(0)
        if bad == "mask":  # and where both are, the mask
            flip(file, row.image_offset)
        else:
            os.truncate(file, row.mask_offset + 1)  # cut short while it is open
        with pytest.raises(CorruptShardError, match=r"\(mask\) in "):
            reader.read_pair(1)


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_one_flipped_bit_is_found_and_named(folder: Path, member: str) -> None:
    with open_shards(folder).split("train") as reader:
        row = reader.rows[1]
        offset = int(row[f"{member}_offset"])
        flip(folder / "train" / reader.split.shards[row["shard"]].file, offset + int(row[f"{member}_length"]) // 2)
        read = {"image": reader.read_image, "mask": reader.read_mask, "json": reader.read_json}[member]
        with pytest.raises(CorruptShardError, match=rf"shot=2E\d\d \({member}\) in .*\.tar at byte {offset}: .*xxh3"):
            read(1)
    with open_shards(folder).split("train", checksum=False) as reader:
        if member == "image":
            assert len(reader.read_image(1)) == row["image_length"]


def test_damage_without_checksum_still_raises(folder: Path) -> None:
    with open_shards(folder).split("train", checksum=False) as reader:
        row = reader.rows[0]
        path = folder / "train" / reader.split.shards[0].file
        data = bytearray(path.read_bytes())
        for member in ("image", "mask", "json"):
            start = int(row[f"{member}_offset"])
            data[start : start + int(row[f"{member}_length"])] = bytes(int(row[f"{member}_length"]))
        path.write_bytes(data)
        for read in (reader.decode_image, reader.decode_mask, reader.read_json):
            with pytest.raises(CorruptShardError, match=r"shot=2E\d\d"):
                read(0)


def test_truncated_and_vanished_shards(folder: Path) -> None:
    with open_shards(folder).split("train") as reader:
        first, second = (folder / "train" / reader.split.shards[place].file for place in (0, 1))
        os.truncate(first, first.stat().st_size - 600)
        second.unlink()
        with pytest.raises(CorruptShardError, match=r"000000\.tar: is \d+ bytes, the manifest says \d+"):
            reader.read_image(0)
        gone = int(np.flatnonzero(reader.rows["shard"] == 1)[0])
        with pytest.raises(CorruptShardError, match=r"000001\.tar: cannot be opened \(No such file"):
            reader.read_image(gone)
        with pytest.raises(CorruptShardError, match="cannot be opened"):
            reader.key(gone)


def test_a_shard_cut_short_while_open(train: SplitReader) -> None:
    train.read_image(0)
    os.truncate(train.folder / train.split.shards[0].file, 100)
    with pytest.raises(CorruptShardError, match=r"sample 0 \(image\).*cut short while it was read"):
        train.read_image(0)


def rewrite_index(folder: Path, rows: np.ndarray) -> None:
    path = folder / "train" / "index.npy"
    np.save(path, rows)
    edit_manifest(folder, index_xxh3=xxhash.xxh3_64_hexdigest(path.read_bytes()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_offset", 1 << 40, "would pass the shard's end"),
        ("image_length", (1 << 32) - 1, "would pass the shard's end"),
        ("shard", 999, "shard 999 of"),
    ],
)
def test_rows_beyond_the_shard_take_no_memory(folder: Path, field: str, value: int, message: str) -> None:
    with open_shards(folder).split("train") as reader:
        rows = reader.rows.copy()
    rows[field][0] = value
    rewrite_index(folder, rows)
    with open_shards(folder).split("train") as reader, pytest.raises(CorruptShardError, match=message):
        reader.read_image(0)


@pytest.mark.parametrize("field", ["height", "width"])
def test_a_row_of_more_pixels_than_the_manifest_knows_is_refused(folder: Path, field: str) -> None:
    with open_shards(folder).split("train") as reader:
        rows = reader.rows.copy()
    rows[field][0] = 30_000
    rewrite_index(folder, rows)
    with open_shards(folder).split("train") as reader:
        for read in (reader.read_image, reader.read_mask, reader.decode_image, reader.decode_mask):
            with pytest.raises(
                CorruptShardError, match=r"shot=2E\d\d .* at byte \d+: the index says .*30000.* the manifest at most"
            ):
                read(0)
        assert reader.read_image(1)


def test_damaged_index_and_presence(folder: Path) -> None:
    index, presence = folder / "train" / "index.npy", folder / "train" / "presence.npy"
    good = index.read_bytes()
    with open_shards(folder).split("train") as reader:
        flip(presence, -1)
        with pytest.raises(CorruptShardError, match=r"presence\.npy: is not the file that was packed"):
            reader.presence()
    flip(index, 200)
    with pytest.raises(CorruptShardError, match=r"index\.npy: is not the file that was packed"):
        open_shards(folder).split("train")
    for bad, message in ((b"no array", "no sound .npy file"), (good[:150], "no sound .npy file")):
        index.write_bytes(bad)
        edit_manifest(folder, index_xxh3=xxhash.xxh3_64_hexdigest(bad))
        with pytest.raises(CorruptShardError, match=message):
            open_shards(folder).split("train")
    index.unlink()
    with pytest.raises(CorruptShardError, match=r"index\.npy: cannot be read"):
        open_shards(folder).split("train")
    rewrite_index(folder, np.zeros(3))
    with pytest.raises(CorruptShardError, match=r"is float64 of shape \(3,\)"):
        open_shards(folder).split("train")


def test_pickled_index_is_never_loaded(folder: Path) -> None:
    path = folder / "train" / "index.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    edit_manifest(folder, index_xxh3=xxhash.xxh3_64_hexdigest(path.read_bytes()))
    with pytest.raises(CorruptShardError, match=r"no sound \.npy file"):
        open_shards(folder).split("train")


def test_large_index_is_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_LOADED_INDEX", 100)
    with open_shards(folder).split("train") as reader:
        assert isinstance(reader.rows, np.memmap)
        assert reader.decode_mask(0).ndim == 2
        mask_offset = int(reader.rows["mask_offset"][0])
    # its hash is not tested then; the member's own is
    index = folder / "train" / "index.npy"
    data = bytearray(index.read_bytes())
    start = data.index(mask_offset.to_bytes(8, "little"), 128)
    data[start : start + 8] = (mask_offset + 512).to_bytes(8, "little")
    index.write_bytes(data)
    with open_shards(folder).split("train") as reader, pytest.raises(CorruptShardError, match=r"\(mask\) in .*xxh3 differs"):
        reader.decode_mask(0)


def test_closed_readers_hold_no_files(folder: Path) -> None:
    def open_files() -> set[str]:
        names = set()
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                names.add(str(path.readlink()))
        return names

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    reader = open_shards(folder).split("train")
    reader.read_image(0)
    assert any(str(folder) in name for name in open_files())
    reader.close()
    reader.close()
    assert not any(str(folder) in name for name in open_files())
    with pytest.raises(ValueError, match="closed"):
        reader.read_image(0)


def test_more_shards_than_open_files_are_read(train: SplitReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit is raised once it is met."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refusals = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    really_open = os.open

    def refuse_once(path: Path, flags: int) -> int:
        if refusals:
            raise refusals.pop()
        return really_open(path, flags)

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))  # so that there is something to raise
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse_once)
            assert train.read_image(0)
        assert not refusals
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_of_open_files_is_no_damage(train: SplitReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `loader.on_bad = "skip"` would leave out sound samples."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"Too many open files.*ulimit -n") as caught:
        train.read_image(0)
    assert not isinstance(caught.value, CorruptShardError)


def test_newer_and_broken_manifests(folder: Path) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    for text, message in (
        ("{", "cannot be read as JSON"),
        (json.dumps(tree | {"format_version": 99}), "format version 99"),
        (json.dumps(tree | {"num_classes": "many"}), "not a valid manifest: num_classes"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            open_shards(folder)


# the reader goes with the module that it would close its files by
LEFT_OPEN = """
import os, sys
from pathlib import Path
from unetfast.data.reader import open_shards
os.reader = open_shards(Path(sys.argv[1])).split("train")
os.reader.read_mask(0)
"""


def test_a_program_that_ends_with_an_open_reader_says_nothing(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
