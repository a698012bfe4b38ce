"""The toy data of `make bench`: what a program reads is there before it starts."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import material
import packing
import pytest
import toydata
from runs import run_quick

from unetfast.bench import toyshards


def test_programs_find_their_data_drawn(
    toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run_quick(toydata, toy_root, capsys, monkeypatch)
    assert all(seconds >= 0 for seconds in record["seconds"].values())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(toyshards, "_draw", refuse)
    pytest.importorskip("webdataset")
    run_quick(packing, toy_root, capsys, monkeypatch, rounds=1)


def test_packed_files_of_another_time_are_replaced(toy_root: Path, tmp_path: Path) -> None:
    given = argparse.Namespace(data=tmp_path / "kept", quick=True, seed=0)
    drawn = toyshards.draw_toy("carvana", toy_root, small=True)
    for num_images in (16, 12):
        shutil.rmtree(tmp_path / "carvana", ignore_errors=True)
        shutil.copytree(drawn, tmp_path / "carvana")
        for image in sorted((tmp_path / "carvana" / "train").glob("*.jpg"))[num_images:]:
            image.unlink()
            (tmp_path / "carvana" / "train_masks" / f"{image.stem}_mask.gif").unlink()
        made = material.make_shards("carvana", given, real=tmp_path)
        assert len(material.read_samples(made.shards)) == num_images
