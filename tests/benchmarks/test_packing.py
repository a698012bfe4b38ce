"""The packing benchmark: every writer writes the same members, and its two packings are the same bytes."""

from __future__ import annotations

import argparse
import json
import os
import tarfile
from pathlib import Path

import material
import packing
import peers
import pytest
from peers import writers
from runs import run_quick

from unetfast.bench.toyshards import make_toy_shards
from unetfast.errors import UserError


def test_writers_and_workers_are_measured(
    toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    record, text = run_quick(packing, toy_root, capsys, monkeypatch, rounds=1)
    assert [bar["bar"] for bar in record["bars"]] == ["C1", "C2"]
    ours = record["sides"]["toy ade20k: unetfast ShardWriter"]
    facts = record["data"]["toy ade20k"]
    assert ours["bytes_per_image"] > facts["mean_bytes"]
    assert ours["images_per_s"]["median"] > 0
    packed = record["data"]["toy carvana, packed"]
    assert packed["identical"]
    assert packed["files_compared"] >= 4  # a tar, its .idx, index, presence, manifest
    assert set(record["missing"]) <= {"ffcv DatasetWriter"}  # where it could be built, nothing is missing
    assert "webdataset TarWriter" in text
    assert "the bare copy of the bytes to a file takes " in record["bars"][0]["note"]
    assert "times the core-seconds" in record["bars"][1]["note"]
    assert record["sides"]["2 workers"]["options"]["val_fraction"] == 0


def test_a_bare_copy_holds_the_bytes_of_all_members(tmp_path: Path) -> None:
    packing.copy_bytes([[b"ab", b"", b"c"], [b"d"]], tmp_path)
    assert (tmp_path / "bytes").read_bytes() == b"abcd"


def test_a_share_is_of_the_same_rounds() -> None:
    part, ours, theirs = ([material.Took(wall_s, wall_s) for wall_s in walls] for walls in ((1.0, 1.0), (2.0, 4.0), (8.0, 8.0)))
    assert material.say_share("copying", part, ours, theirs) == "copying takes 38 % of our time; it alone would be 8x"


@pytest.mark.parametrize("name", ["tarfile", "webdataset TarWriter", "webdataset ShardWriter"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_writes_all_members(name: str, toy_root: Path, tmp_path: Path) -> None:
    if name.startswith("webdataset"):
        pytest.importorskip("webdataset")
    samples = material.read_samples(make_toy_shards("clevr", toy_root, small=True).shards, 20)
    writers.WRITERS[name](samples, tmp_path)
    found = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    expected = [member for sample in samples for member in writers.members(sample).items()]
    assert found == dict(expected)
    assert writers.count_bytes(tmp_path) > sum(len(data) for _, data in expected)


@pytest.mark.skipif(not (peers.FOLDER / "ffcv").is_dir(), reason="no ffcv in .peers/: make peers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ffcv_writes_all_members(toy_root: Path, tmp_path: Path) -> None:
    samples = material.read_samples(make_toy_shards("clevr", toy_root, small=True).shards, 20)
    writers.prepare("ffcv DatasetWriter", tmp_path / "first", samples[0])
    assert writers.tell_missing() == {}
    writers.write_ffcv(samples, tmp_path)
    from ffcv.reader import Reader

    sizes = [Reader(str(tmp_path / "a.beton")).metadata[f"f{number}"]["size"].tolist() for number in range(3)]
    assert list(zip(*sizes, strict=True)) == [tuple(map(len, writers.members(sample).values())) for sample in samples]


def test_a_difference_between_two_packings_is_seen(tmp_path: Path) -> None:
    for name, content in (("one", b"a"), ("two", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000000.tar").write_bytes(content)
        (tmp_path / name / "pack.log").write_bytes(name.encode())
    one, two = (packing.digest_files(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() == {"000000.tar"}
    assert one != two


def test_a_worker_that_fails_is_told_and_its_bar_is_lost(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, workers: int, **__: object) -> None:
        raise OSError(f"no room for {workers}")

    monkeypatch.setattr(packing, "pack", fail)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    _, found, made = packing.measure_workers(argparse.Namespace(quick=True, data=toy_root, seed=0, rounds=2))
    assert found["2 workers"] == {"error": "OSError: no room for 2"}
    assert made["verdict"] == "failed"
    assert made["note"] == "1 workers: OSError: no room for 1; 2 workers: OSError: no room for 2"


def test_samples_come_again_under_other_keys(toy_root: Path) -> None:
    shards = make_toy_shards("clevr", toy_root, small=True).shards
    once, often = material.read_samples(shards), material.read_samples(shards, 50)
    assert len({sample.key for sample in often}) == len(often) == 50
    assert often[len(once)].image == once[0].image


def test_a_side_that_fails_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> dict[str, object]:
        return {"data": {}, "sides": {"a": {"error": "KeyError: gone"}}, "bars": []}

    def refuse(_: object) -> dict[str, object]:
        raise UserError("no such thing")

    assert material.run_program("x", "Doc.", ["--quick"], fail) == 1
    assert material.run_program("x", "Doc.", ["--quick"], refuse) == 2
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["arguments"]["rounds"] == 2
    assert record["command"] == ["benchmarks/x.py", "--quick"]
    assert material.run_program("x", "Doc.", ["--quick"], refuse) == 2
    assert "error: no such thing" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--real .*nowhere: no such folder"):
        material.find_real(tmp_path / "nowhere")
