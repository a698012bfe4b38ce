"""The reading benchmark: all sides read the same samples, and ours finds a damaged byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import reading
from peers import readers
from runs import run_quick

from unetfast.bench.toyshards import make_toy_shards
from unetfast.data.reader import open_shards

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_readers_are_measured(toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    record, _ = run_quick(reading, toy_root, capsys, monkeypatch)
    assert [bar["bar"] for bar in record["bars"]] == ["C3"]
    assert record["data"]["toy ade20k"]["samples"] == 16
    assert record["sides"]["toy ade20k: unetfast, checked"]["core_us_per_image"]["median"] > 0


def test_all_readers_read_the_same_bytes(toy_root: Path) -> None:
    pytest.importorskip("webdataset")
    shards = make_toy_shards("clevr", toy_root, small=True).shards
    tars = sorted((shards / "train").glob("*.tar"))
    with open_shards(shards).split("train") as reader:
        count, num_bytes = reading.read_ours(reader)
        num_json = int(reader.rows["json_length"].sum())
    assert readers.read_tarfile(tars) == (count, num_bytes + num_json)
    assert readers.read_webdataset(tars) == (count, num_bytes + num_json)
