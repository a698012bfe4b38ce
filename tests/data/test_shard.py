"""Shards are plain USTAR tars for tarfile, webdataset, GNU tar and DALI's own indexer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash

from unetfast.data.codecs import encode_image, encode_mask
from unetfast.data.sample import Sample, escape_key
from unetfast.data.shard import ShardContent, ShardWriter, build_json, build_tar_header, parse_tar_header


def make_samples(count: int = 5) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        height, width = 8 + number, 9 + number
        mask = rng.integers(0, 2, (height, width), dtype=np.uint8)
        codec = ("jpeg", "lz4", "png")[number % 3]
        samples.append(
            Sample(
                key=escape_key(f"odd näme.{number}"),
                image=encode_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), codec),
                image_codec=codec,
                mask=encode_mask(mask, "png" if number == 4 else "lz4", 8),
                mask_codec="png" if number == 4 else "lz4",
                height=height,
                width=width,
                mask_bits=8,
                source_path=f"train/odd näme.{number}.png",
                group=f"car{number // 2}",
            )
        )
    return samples


def write(path: Path, samples: list[Sample]) -> ShardContent:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.finish()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, (1 << 32) - 1])
def test_headers_equal_tarfiles(size: int) -> None:
    """The very bytes that tarfile writes for a USTAR member with mode 644, owner 0 and time 0."""
    info = tarfile.TarInfo("a" * 80 + ".image.lz4")
    info.size = size
    assert build_tar_header(info.name, size) == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    assert parse_tar_header(build_tar_header(info.name, size)) == (info.name, size)


def test_headers_refuse_what_does_not_fit() -> None:
    for name, size in (("a" * 101, 1), ("a", 1 << 32), ("a", -1)):
        with pytest.raises(ValueError, match="do not fit"):
            build_tar_header(name, size)
    with pytest.raises(UnicodeEncodeError):
        build_tar_header("ä", 1)
    good = build_tar_header("name", 7)
    for block in (b"", bytes(512), good[:511], b"x" + good[1:], b"\xff" * 512):
        with pytest.raises(ValueError, match="no tar header"):
            parse_tar_header(block)


def test_tarfile_reads_members_where_the_rows_say(tmp_path: Path) -> None:
    samples = make_samples()
    content = write(tmp_path / "a.tar", samples)
    data = (tmp_path / "a.tar").read_bytes()
    assert (len(data), xxhash.xxh3_64_hexdigest(data)) == (content.num_bytes, content.xxh3)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 15
    assert {(member.mtime, member.uid, member.gid, member.mode, member.type) for member in members} == {
        (0, 0, 0, 0o644, tarfile.REGTYPE)
    }
    for number, (sample, row) in enumerate(zip(samples, content.rows, strict=True)):
        for place, name in enumerate(("image", "mask", "json")):
            member = members[3 * number + place]
            offset, length = int(row[f"{name}_offset"]), int(row[f"{name}_length"])
            assert (member.offset_data, member.size) == (offset, length)
            assert xxhash.xxh3_64_intdigest(data[offset : offset + length]) == row[f"{name}_xxh3"]
        assert data[row["image_offset"] :][: row["image_length"]] == sample.image
        tree = json.loads(data[row["json_offset"] :][: row["json_length"]])
        assert (tree["source_path"], tree["group"], tree["height"]) == (sample.source_path, sample.group, sample.height)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.tar", make_samples()).xxh3 == write(tmp_path / "b.tar", make_samples()).xxh3
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_the_shard(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = make_samples()
    write(tmp_path / "a.tar", samples)
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False))
    assert [found["__key__"] for found in read] == [sample.key for sample in samples]
    for found, sample in zip(read, samples, strict=True):
        image = {"jpeg": "jpg", "lz4": "image.lz4", "png": "image.png"}[sample.image_codec]
        assert found[image] == sample.image
        assert found[f"mask.{sample.mask_codec}"] == sample.mask


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
def test_gnu_tar_lists_the_shard(tmp_path: Path) -> None:
    samples = make_samples()
    write(tmp_path / "a.tar", samples)
    done = subprocess.run(["tar", "-tf", str(tmp_path / "a.tar")], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split()[0] == f"{samples[0].key}.jpg"


@pytest.mark.dali
@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
def test_idx_equals_that_of_dalis_tool(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    content = write(tmp_path / "a.tar", make_samples())
    subprocess.run([sys.executable, "-m", "wds2idx", str(tmp_path / "a.tar"), str(tmp_path / "a.idx")], check=True)
    assert (tmp_path / "a.idx").read_text() == content.idx


def test_an_unfinished_shard_keeps_the_first_error(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "a.tar") as writer:
            writer.add(make_samples(1)[0])
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()


def draw_odd(count: int) -> list[Sample]:
    """Samples of made-up bytes: every codec, lengths on and off a block's edge, names that JSON must escape."""
    return [
        Sample(
            key=escape_key(f'dir/odd näme.{number} "q"'),
            image=bytes(range(256)) * (number * 7 + 1) + bytes(number % 5),
            image_codec=("jpeg", "lz4", "png")[number % 3],
            mask=b"m" * (number * 131 % 1500),
            mask_codec=("lz4", "png")[number % 2],
            height=3 + number,
            width=5 + number,
            mask_bits=(1, 8, 16)[number % 3],
            source_path=f'träin/odd "{number}"\\ \x07.png',
            group=f"car{number // 2}" if number % 4 else "",
        )
        for number in range(count)
    ]


def test_bytes_are_those_that_were_always_written(tmp_path: Path) -> None:
    """Sums of the tar, its .idx and its rows as the first writer of this format gave them."""
    content = write(tmp_path / "a.tar", draw_odd(40))
    assert (content.num_bytes, content.xxh3) == (1542144, "3fbf315d6a95f675")
    assert xxhash.xxh3_64_hexdigest((tmp_path / "a.tar").read_bytes()) == "3fbf315d6a95f675"
    assert xxhash.xxh3_64_hexdigest(content.idx.encode()) == "5764aa5b0482891a"
    assert xxhash.xxh3_64_hexdigest(content.rows.tobytes()) == "18a4ff5c95a8c9c1"


def test_json_is_what_the_json_module_writes() -> None:
    for sample in draw_odd(12):
        tree = json.loads(build_json(sample))
        assert build_json(sample) == json.dumps(tree, sort_keys=True).encode()
        assert (tree["source_path"], tree["group"], tree["width"]) == (sample.source_path, sample.group, sample.width)


def test_a_call_that_writes_less_than_asked_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a pipe's edge or a nearly full disk: the rest follows."""
    whole = write(tmp_path / "a.tar", draw_odd(40))
    real_writev, real_write = os.writev, os.write
    monkeypatch.setattr(os, "writev", lambda descriptor, pieces: real_writev(descriptor, [b"".join(pieces)[:1000]]))
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:100_000]))
    assert write(tmp_path / "b.tar", draw_odd(40)).xxh3 == whole.xxh3
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_members_beyond_a_call_go_out_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems take 1,024 pieces a call, and memory is held for about a MiB."""
    calls: list[tuple[int, int]] = []
    real_writev = os.writev

    def count(descriptor: int, pieces: list[bytes]) -> int:
        calls.append((len(pieces), sum(map(len, pieces))))
        return real_writev(descriptor, pieces)

    monkeypatch.setattr(os, "writev", count)
    write(tmp_path / "a.tar", draw_odd(2) * 300)
    assert len(calls) > 2
    assert all(num_pieces < 1024 for num_pieces, _ in calls)
    calls.clear()
    write(tmp_path / "a.tar", draw_odd(60))
    assert len(calls) > 2
    assert all(num_bytes < (1 << 20) + 120_000 for _, num_bytes in calls)
