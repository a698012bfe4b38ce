"""The seek benchmark: a synthesised index reads as a packed one, and a resume hands out the batch that the order says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import seeking
from largeindex import make_large_index
from material import Took
from runs import run_quick

from unetfast.bench.toyshards import make_toy_shards
from unetfast.data.reader import open_shards
from unetfast.loader.order import Order

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_resume_is_measured_beside_a_replay(
    toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(seeking, "_RESUMES", 1)
    record, _ = run_quick(seeking, toy_root, capsys, monkeypatch)
    assert [(bar["bar"], bar["unit"]) for bar in record["bars"]] == [("C7", "ms"), ("C7", "x")]
    assert record["bars"][0]["less_is_better"]
    assert "times the time of a resume at 500" in record["bars"][0]["note"]


def test_a_bar_whose_side_failed_is_lost_and_the_other_stands() -> None:
    names = ["resume at 500", "resume at 1,000", "resume at 100", "replay"]
    took = {name: [Took(wall_s, wall_s)] for name, wall_s in zip(names, (0.02, 0.03, 0.01, 2.0), strict=True)}
    seek, beside = seeking.build_bars(names, took, {"replay": "ImportError: gone"}, (500, 1000), 100)
    assert (seek["verdict"], beside["verdict"], beside["note"]) == ("pass", "failed", "replay: ImportError: gone")
    seek, beside = seeking.build_bars(names, took, {"resume at 1,000": "OSError: full"}, (500, 1000), 100)
    assert (seek["verdict"], seek["note"], seek["less_is_better"]) == ("failed", "resume at 1,000: OSError: full", True)
    assert beside["verdict"] == "pass"


def test_a_large_index_reads_as_a_packed_one(toy_root: Path, tmp_path: Path) -> None:
    small = make_toy_shards("ade20k", toy_root, small=True).shards
    large = make_large_index(small, tmp_path / "large", 10_001)
    with open_shards(small).split("train") as reader, open_shards(large).split("train") as many:
        assert many.num_samples == 10_001
        for sample in (0, 17, 5_000, 10_000):
            assert many.read_image(sample) == reader.read_image(sample % reader.num_samples)
            assert many.key(sample) == reader.key(sample % reader.num_samples)
        assert len(many.split.shards) == int(many.rows["shard"].max()) + 1
        assert len(many.split.shards) > len(reader.split.shards)
    config = seeking.resume_config("ade20k")
    expected = Order(10_001, seed=config.train.seed).locate(np.array([9_000])).sample_ids[0]
    assert seeking.resume(large, 9_000, config) == expected
