"""The mask benchmark: a line a data set, sizes beside, and masks that differ never pass."""

from __future__ import annotations

import argparse
from pathlib import Path

import masks
import material
import numpy as np
import pytest
from runs import run_quick


def test_masks_of_three_sets_are_measured(
    toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run_quick(masks, toy_root, capsys, monkeypatch)
    assert [bar["bar"] for bar in record["bars"]] == ["C6", "C6", "C6"]
    assert all(facts["identical"] for name, facts in record["data"].items() if name.startswith("toy"))
    assert record["data"]["toy carvana"]["mask_bits"] == 1
    assert record["data"]["toy ade20k"]["size_ratio"] > 0


def test_masks_that_differ_do_not_pass(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = argparse.Namespace(data=toy_root, quick=True, seed=0, rounds=1)
    made = material.make_shards("clevr", given)
    monkeypatch.setattr(masks, "decode_pillow", lambda sample: np.zeros((sample.height, sample.width), np.uint8))
    facts, _, bar = masks.measure_set(made, given)
    assert not facts["identical"]
    assert bar["verdict"] == "short"
    assert bar["note"].startswith("the decoded masks differ; 16 masks at ")
    assert "inflating the LZ4 frame takes" in bar["note"]
