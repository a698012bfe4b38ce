"""The reading benchmark: all sides read the same samples, and ours finds a damaged byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import material
import pytest
import reading
from peers import readers, writers
from runs import run_quick

from unetfast.bench.toyshards import make_toy_shards
from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_readers_are_measured(toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    record, _ = run_quick(reading, toy_root, capsys, monkeypatch)
    assert [bar["bar"] for bar in record["bars"]] == ["C3"]
    assert record["data"]["toy ade20k"]["samples"] == 16
    sides = ["toy ade20k: unetfast, checked", "toy ade20k: pread and hash alone", "toy ade20k: webdataset"]
    assert list(record["sides"]) == sides  # those of the bar
    assert record["sides"][sides[0]]["core_us_per_image"]["median"] > 0
    assert record["data"]["toy ade20k"]["packed_with"]["mask_codec"] == "lz4"
    assert "pread and xxh3 of each member takes " in record["bars"][0]["note"]


def test_all_readers_read_the_same_bytes(toy_root: Path) -> None:
    pytest.importorskip("webdataset")
    shards = make_toy_shards("clevr", toy_root, small=True).shards
    tars = sorted((shards / "train").glob("*.tar"))
    folder = open_shards(shards)
    samples = material.read_samples(shards)
    expected = (len(samples), sum(len(data) for sample in samples for data in writers.members(sample).values()))
    assert expected[1] == reading.count_bytes(folder)
    assert reading.read_alone(reading.list_members(folder)) == expected
    for checksum in (True, False):
        assert reading.read_ours(folder, checksum=checksum) == expected
    assert readers.read_tarfile(tars) == expected
    assert readers.read_webdataset(tars) == expected


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_ours_finds_a_damaged_byte_of_each_member(member: str, toy_root: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(make_toy_shards("clevr", toy_root, small=True).shards, shards)
    folder = open_shards(shards)
    with folder.split("train") as reader:
        row = reader.rows[-1]
        tar = reader.folder / reader.split.shards[int(row["shard"])].file
    data = bytearray(tar.read_bytes())
    data[int(row[f"{member}_offset"])] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptShardError, match="not those that were packed"):
        reading.read_ours(folder, checksum=True)
    reading.read_ours(folder, checksum=False)


def test_each_pass_opens_its_files_anew(toy_root: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(make_toy_shards("clevr", toy_root, small=True).shards, shards)
    folder = open_shards(shards)
    reading.read_ours(folder, checksum=True)
    for tar in (shards / "train").glob("*.tar"):
        tar.unlink()
    with pytest.raises(CorruptShardError, match="cannot be opened"):
        reading.read_ours(folder, checksum=True)
