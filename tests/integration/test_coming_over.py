"""Users of other programs, with their folders and files, by the commands of docs/coming-from.md (with a smaller net)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unetfast.checkpoint import load_checkpoint
from unetfast.data.toy import write_toy
from unetfast.train.log import read_rows

SMALL = [
    *("--set", "loader.size_hw=[32, 48]", "--set", "model.base_channels=4", "--set", "model.depth=2"),
    *("--set", "loader.threads=1", "--set", "log.tensorboard=false", "--set", "log.report=false"),
]
HYPERPARAMS = {
    "Learning Rate": 0.001,
    "Device": "cpu",
    "Batch Size": 4,
    "Epochs": 2,
    "Num Workers": 2,
    "Image Height": 32,
    "Image Width": 48,
    "Pin Memory": True,
    "Load Checkpoint": False,
    "Train Images": "Data/train_images/",
    "Train Masks": "Data/train_masks/",
    "Val Images": "Data/val_images/",
    "Val Masks": "Data/val_masks/",
}


def unetfast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unetfast", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def run_well(folder: Path, *arguments: str) -> str:
    done = unetfast(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(folder: Path, *arguments: str) -> str:
    """Run a command that must end in one clear line."""
    done = unetfast(folder, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    write_toy(folder / "Data", "carvana", num_groups=4, images_per_group=2, size_hw=(48, 72), seed=0, layout="four-folders")
    return folder


@pytest.mark.slow
def test_r0_keeps_a_checkpoint_every_five_epochs(tmp_path: Path) -> None:
    write_toy(tmp_path / "Videos", "clevr", num_groups=3, images_per_group=2, size_hw=(48, 72), seed=0)
    run_well(tmp_path, "shard", "--src", "Videos", "--out", "shards")
    settings = ["--set", "train.epochs=10", "--set", "loader.batch_size=2", "--set", "eval.every_epochs=5"]
    run_well(tmp_path, "train", "--shards", "shards", "--preset", "r0", "--out", "run", *SMALL, *settings)
    kept = sorted(path.name for path in (tmp_path / "run").glob("Unet_checkpoint_epoch_*.pt"))
    assert kept == ["Unet_checkpoint_epoch_10.pt", "Unet_checkpoint_epoch_5.pt"]
    assert [load_checkpoint(tmp_path / "run" / name).epoch for name in kept] == [10, 5]


@pytest.mark.slow
def test_r1_writes_its_checkpoint_each_epoch_and_goes_on_from_it(cars: Path, tmp_path: Path) -> None:
    run_well(cars, "shard", "--src", "Data", "--out", str(tmp_path / "shards"))
    preset = ["--shards", "shards", "--preset", "r1", *SMALL, "--set", "loader.batch_size=2"]
    run_well(tmp_path, "train", *preset, "--out", "run", "--set", "train.epochs=1")
    kept = tmp_path / "run" / "my_checkpoint.pth.tar"
    assert load_checkpoint(kept).epoch == 1
    run_well(tmp_path, "train", *preset, "--out", "run", "--resume", "--set", "train.epochs=2")
    assert load_checkpoint(kept).epoch == 2
    told = run_well(
        tmp_path, "train", *preset, "--out", "new", "--set", f"train.init_checkpoint={kept}", "--set", "train.max_steps=1"
    )
    assert re.search(r"weights .*my_checkpoint\.pth\.tar \(.*\): \d+ tensors taken over", told)
    assert (tmp_path / "run" / "saved_images").is_dir()


@pytest.mark.slow
def test_r2_trains_from_its_json_file_alone(cars: Path) -> None:
    (cars / "hyperparams.json").write_text(json.dumps(HYPERPARAMS))
    smaller = ["--set", "model.base_channels=4", "--set", "model.depth=2"]
    told = run_well(cars, "train", "--config", "hyperparams.json", "--out", "run", *smaller)
    assert "Pin Memory = true: accepted" in told
    assert "Num Workers = 2: threads, not processes" in told
    packed = list((cars / "shards").iterdir())
    assert len(packed) == 1
    assert packed[0].name.startswith("hyperparams-")
    rows = read_rows(cars / "run" / "metrics.jsonl")
    assert {"epoch", "val"} <= {row["kind"] for row in rows}
    assert all({"mean_iou", "mean_dice"} <= row.keys() for row in rows if row["kind"] in ("epoch", "val"))
    config = load_checkpoint(cars / "run" / "last.pt").config
    assert (config.loader.threads, config.loader.batch_size, config.train.epochs) == (2, 4, 2)
    # the second time the shards are taken as they are; with a further image they are packed anew
    manifest = packed[0] / "manifest.json"
    before = manifest.stat().st_mtime_ns
    quick = ["--config", "hyperparams.json", *smaller, "--set", "train.max_steps=1"]
    run_well(cars, "train", *quick, "--out", "again")
    assert manifest.stat().st_mtime_ns == before
    for kind, suffix in (("images", ".jpg"), ("masks", "_mask.gif")):
        first = next(iter(sorted((cars / "Data" / f"train_{kind}").iterdir())))
        (first.parent / f"0123456789ab_01{suffix}").write_bytes(first.read_bytes())
    run_well(cars, "train", *quick, "--out", "third")
    assert manifest.stat().st_mtime_ns != before
    assert list((cars / "shards").iterdir()) == packed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_r2_with_a_gpu_that_is_not_there_names_the_override(cars: Path) -> None:
    (cars / "gpu.json").write_text(json.dumps(HYPERPARAMS | {"Device": "cuda"}))
    assert "--set train.device=cpu" in refused(cars, "train", "--config", "gpu.json", "--out", "gpu")
    assert not list(cars.glob("shards/gpu-*"))  # said before anything is packed


def test_r2_mistakes_are_one_line_each(cars: Path) -> None:
    (cars / "load.json").write_text(json.dumps(HYPERPARAMS | {"Load Checkpoint": True}))
    told = refused(cars, "train", "--config", "load.json", "--out", "load")
    assert "my_checkpoint.pth.tar: no such checkpoint" in told
    assert "--set train.init_checkpoint=" in told
    (cars / "typo.json").write_text(json.dumps(HYPERPARAMS | {"Lerning Rate": 1}))
    assert "'Lerning Rate' (did you mean learningrate?)" in refused(cars, "train", "--config", "typo.json")
    (cars / "bare.json").write_text(json.dumps({"Epochs": 1}))
    assert "names no folders of images and masks" in refused(cars, "train", "--config", "bare.json")
    assert "--shards: give the shard folder" in refused(cars, "train")
    assert not (cars / "load").exists()
    assert not list(cars.glob("shards/load-*"))
