"""Which config and which folder a command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unetfast.config import reading
from unetfast.data.manifest import INDEX_DTYPE, Manifest, read_manifest
from unetfast.errors import UserError
from unetfast.train.setup import describe_sizes, preset_for, resolve_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Presets that differ in their number of epochs, and an empty working folder."""
    folder = tmp_path / "configs"
    folder.mkdir()
    names = [name + end for name in ("carvana", "clevr", "ade20k", "folder") for end in ("", "-cpu")]
    for epochs, name in enumerate(names, start=1):
        (folder / f"{name}.toml").write_text(f"[train]\nepochs = {epochs}\n")
    monkeypatch.setattr(reading, "preset_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def manifest_of(shards: Path, dataset: str, num_classes: int) -> Manifest:
    return read_manifest(shards).model_copy(update={"dataset": dataset, "num_classes": num_classes})


@pytest.mark.parametrize(
    ("dataset", "num_classes", "device", "preset"),
    [
        ("carvana", 2, CUDA, "carvana"),
        ("carvana", 2, CPU, "carvana-cpu"),
        ("clevr", 49, CPU, "clevr-cpu"),
        ("ade20k", 150, CUDA, "ade20k"),
        ("folder", 7, CUDA, "folder"),
        ("webdataset", 2, CPU, "folder-cpu"),
    ],
)
def test_preset_of_a_data_set(toy_shards: Path, dataset: str, num_classes: int, device: torch.device, preset: str) -> None:
    assert preset_for(manifest_of(toy_shards, dataset, num_classes), device) == preset


def test_stored_sizes_are_told_as_a_range() -> None:
    rows = np.zeros(3, INDEX_DTYPE)
    rows["height"], rows["width"] = 512, 640
    assert describe_sizes(rows) == "512x640"
    rows["height"][1], rows["width"][2] = 480, 800
    assert describe_sizes(rows) == "480x640 to 512x800"


def test_default_is_the_data_sets_preset_and_the_next_folder(toy_shards: Path, tmp_path: Path, ear: Any) -> None:
    (tmp_path / "runs" / "carvana-3").mkdir(parents=True)
    run = resolve_run(toy_shards, overrides=["train.device=cpu"], console=ear.console)
    assert run.config.train.epochs == 2
    assert run.out == Path("runs/carvana-4")
    assert "preset carvana-cpu (for carvana" in ear.heard
    assert "train.device=cpu" in ear.heard


def test_named_preset_and_settings(toy_shards: Path, tmp_path: Path) -> None:
    run = resolve_run(toy_shards, preset="clevr", overrides=["train.seed=7"], out=tmp_path / "mine")
    assert (run.config.train.epochs, run.config.train.seed, run.out) == (3, 7, tmp_path / "mine")


def test_own_config_file(toy_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[train]\nepochs = 40\n")
    assert resolve_run(toy_shards, config=tmp_path / "own.toml").config.train.epochs == 40


def test_resume_takes_the_runs_own_config(toy_shards: Path, tmp_path: Path, ear: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("[train]\nepochs = 50\nseed = 3\n")
    run = resolve_run(toy_shards, overrides=["train.epochs=60"], out=tmp_path / "run", resume=True, console=ear.console)
    assert (run.config.train.epochs, run.config.train.seed) == (60, 3)
    assert "the run's own" in ear.heard


def test_a_bad_setting_is_not_blamed_on_the_preset_alone(toy_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preset clevr, changed by train\.epochs=2\.5: not a valid config"):
        resolve_run(toy_shards, preset="clevr", overrides=["train.epochs=2.5"], out=tmp_path / "mine")


def test_contradictions_are_refused(toy_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        resolve_run(toy_shards, config=tmp_path / "a.toml", preset="clevr")
    with pytest.raises(UserError, match="--out"):
        resolve_run(toy_shards, resume=True)
    with pytest.raises(UserError, match=r"did you mean train\.epochs"):
        resolve_run(toy_shards, preset="clevr", overrides=["train.epoch=3"])
    with pytest.raises(UserError, match="no preset 'vgg'"):
        resolve_run(toy_shards, preset="vgg")
