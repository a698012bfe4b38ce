"""Users of other programs, with their folders and files, by the commands of docs/coming-from.md (with a smaller net)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


def read_scores(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run `eval --json`, which prints one object and nothing else."""
    done = unetfast(folder, "eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    scores: dict[str, Any] = json.loads(done.stdout)
    return scores


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


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
def test_r0_keeps_a_checkpoint_every_five_epochs_and_predicts_the_videos(tmp_path: Path) -> None:
    write_toy(tmp_path / "Videos", "clevr", num_groups=3, images_per_group=2, size_hw=(48, 72), seed=0)
    run_well(tmp_path, "shard", "--src", "Videos", "--out", "shards")
    settings = ["--set", "train.epochs=10", "--set", "loader.batch_size=2", "--set", "eval.every_epochs=5"]
    run_well(tmp_path, "train", "--shards", "shards", "--preset", "r0", "--out", "run", *SMALL, *settings)
    kept = sorted(path.name for path in (tmp_path / "run").glob("Unet_checkpoint_epoch_*.pt"))
    assert kept == ["Unet_checkpoint_epoch_10.pt", "Unet_checkpoint_epoch_5.pt"]
    assert [load_checkpoint(tmp_path / "run" / name).epoch for name in kept] == [10, 5]
    run_well(tmp_path, "predict", "--checkpoint", f"run/{kept[0]}", "Videos/val", "--out", "pred", "--per-class", "--probs")
    video = tmp_path / "pred" / "video_1000"
    masks = np.load(video / "mask.npy", allow_pickle=False)
    source = np.load(tmp_path / "Videos" / "val" / video.name / "mask.npy", allow_pickle=False)
    assert (masks.dtype, masks.shape) == (source.dtype, source.shape) == (np.uint8, (2, 48, 72))
    for frame, mask_HW in enumerate(masks):
        np.testing.assert_array_equal(read_picture(video / f"image_{frame}.png"), mask_HW)
        masks_of = {int(path.name[:2]): read_picture(path) for path in (video / f"image_{frame}_classes").iterdir()}
        assert sorted(masks_of) == np.unique(mask_HW).tolist()
        for class_id, class_HW in masks_of.items():
            np.testing.assert_array_equal(class_HW, np.where(mask_HW == class_id, 255, 0))
        probs_KHW = np.load(video / f"image_{frame}_probs.npy", allow_pickle=False)
        assert probs_KHW.shape == (49, 48, 72)
        np.testing.assert_array_equal(np.take_along_axis(probs_KHW, mask_HW[None], axis=0)[0], probs_KHW.max(axis=0))


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
    assert list((tmp_path / "run" / "saved_images").glob("*.png"))
    scores = read_scores(tmp_path, "--shards", "shards", "--checkpoint", "run/best.pt")
    assert [entry["name"] for entry in scores["classes"]] == ["background", "car"]
    assert scores["num_images"] == 2
    assert scores["mean_dice"] == pytest.approx(sum(entry["dice"] for entry in scores["classes"]) / 2)
    assert 0 < scores["pixel_accuracy"] < 1


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


@pytest.mark.slow
def test_r3_draws_its_run_scores_at_original_size_and_submits(tmp_path: Path) -> None:
    write_toy(tmp_path / "ADE", "ade20k", num_groups=6, seed=0, size_hw=(48, 72))
    run_well(tmp_path, "shard", "--src", "ADE", "--out", "shards")
    settings = ["--set", "train.epochs=2", "--set", "loader.batch_size=2", "--set", "log.panels_every_epochs=1"]
    run_well(tmp_path, "train", "--shards", "shards", "--preset", "ade20k", "--out", "run", *SMALL, *settings)
    pictures = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert {"training_history.png"} | {f"predictions_{name}.png" for name in ("initial", "epoch_1", "epoch_final")} <= pictures
    with Image.open(tmp_path / "run" / "progress.gif") as progress:
        assert (progress.format, getattr(progress, "n_frames", 1) >= 2) == ("GIF", True)
    rows = {row["kind"]: row for row in read_rows(tmp_path / "run" / "metrics.jsonl")}
    assert all(rows[kind].keys() >= {"loss", "mean_iou", "pixel_accuracy"} for kind in ("epoch", "val"))
    scores = read_scores(tmp_path, "--shards", "shards", "--checkpoint", "run/best.pt", "--size", "source")
    assert (scores["size"], scores["num_images"], len(scores["classes"])) == ("source", 2, 150)
    assert scores["score"] == pytest.approx((scores["pixel_accuracy"] + scores["mean_iou"]) / 2)
    photos = sorted((tmp_path / "ADE" / "images" / "validation").iterdir())
    run_well(tmp_path, "predict", "--checkpoint", "run/best.pt", str(photos[0].parent), "--out", "sent", "--submission")
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == [f"{photo.stem}.png" for photo in photos]
    for photo in photos:
        with Image.open(photo) as image, Image.open(tmp_path / "sent" / f"{photo.stem}.png") as mask:
            assert (mask.mode, mask.size) == ("L", image.size)
            values = np.unique(np.array(mask))
        assert 1 <= values.min() <= values.max() <= 150


@pytest.mark.slow
def test_r4_takes_two_folders_and_its_own_block(tmp_path: Path) -> None:
    write_toy(tmp_path / "Cells", "folder", num_groups=8, seed=0, size_hw=(48, 72), layout="flat")
    folders = ["--images", "Cells/images", "--masks", "Cells/masks"]
    run_well(tmp_path, "shard", *folders, "--out", "shards", "--ignore", "255", "--val-fraction", "0.25")
    block = ["--set", "model.convs_per_block=3", "--set", "model.down=strided", "--set", "loader.batch_size=2"]
    run_well(
        tmp_path, "train", "--shards", "shards", "--preset", "r4", "--out", "run", *SMALL, *block, "--set", "train.max_steps=3"
    )
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert (checkpoint.config.model.conv_order, checkpoint.config.model.head_kernel) == ("conv-act-norm", 3)
    assert checkpoint.weights["head.weight"].shape == (3, 4, 3, 3)
    layers = list(checkpoint.build_model().modules())
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in layers) == 5 * 3 + 1  # five blocks and the head
    assert sum(isinstance(layer, torch.nn.Conv2d) and layer.stride == (2, 2) for layer in layers) == 2
    assert not any(isinstance(layer, torch.nn.MaxPool2d) for layer in layers)
    order = [
        type(layer).__name__ for layer in layers if isinstance(layer, torch.nn.Conv2d | torch.nn.ReLU | torch.nn.BatchNorm2d)
    ]
    assert order == ["Conv2d", "ReLU", "BatchNorm2d"] * 15 + ["Conv2d"]
    scores = read_scores(tmp_path, "--shards", "shards", "--checkpoint", "run/best.pt")
    ious = [entry["iou"] for entry in scores["classes"] if entry["iou"] is not None]
    assert (len(scores["classes"]), scores["num_images"]) == (3, 2)
    assert scores["mean_iou"] == pytest.approx(sum(ious) / len(ious))
    assert 0 < scores["num_pixels"] < 2 * 32 * 48  # those of value 255 count nowhere
