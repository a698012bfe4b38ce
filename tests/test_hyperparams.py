"""`hyperparams.json` as a config: every spelling, what becomes of each setting, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unetfast.config import build_config, read_any_config, read_hyperparams
from unetfast.config.hyperparams import ACCEPTED, normalize_key
from unetfast.errors import UserError

SPELLINGS = {
    "spaced": {
        "Learning Rate": 0.0001,
        "Device": "cpu",
        "Batch Size": 16,
        "Epochs": 3,
        "Num Workers": 2,
        "Image Height": 160,
        "Image Width": 240,
        "Pin Memory": True,
        "Load Checkpoint": False,
        "Train Images": "Data/train_images/",
        "Train Masks": "Data/train_masks/",
        "Val Images": "Data/val_images/",
        "Val Masks": "Data/val_masks/",
    },
    "constants": {
        "LEARNING_RATE": 1e-4,
        "DEVICE": "cpu",
        "BATCH_SIZE": 16,
        "NUM_EPOCHS": 3,
        "NUM_WORKERS": 2,
        "IMAGE_HEIGHT": 160,
        "IMAGE_WIDTH": 240,
        "PIN_MEMORY": True,
        "LOAD_MODEL": False,
        "TRAIN_IMG_DIR": "Data/train_images/",
        "TRAIN_MASK_DIR": "Data/train_masks/",
        "VAL_IMG_DIR": "Data/val_images/",
        "VAL_MASK_DIR": "Data/val_masks/",
    },
    "by split and role, a size in one": {
        "lr": 0.0001,
        "device": "cpu",
        "batch": 16,
        "epochs": 3,
        "workers": 2,
        "image size": [160, 240],
        "pin_memory": True,
        "LOAD_CHECKPOINT": 0,
        "data": {
            "train": {"images": "Data/train_images", "masks": "Data/train_masks"},
            "val": {"images": "Data/val_images", "masks": "Data/val_masks"},
        },
    },
    "nested, camel case, as text": {
        "training": {"learningRate": "1e-4", "device": "CPU", "batchSize": "16", "numEpochs": 3.0, "workers": 2},
        "image": {"imageHeight": 160, "imageWidth": 240},
        "pin-memory": False,
        "load-model": "false",
        "paths": {
            "trainImageDir": "Data/train_images",
            "trainMaskDir": "Data/train_masks",
            "validation image folder": "Data/val_images",
            "validation mask folder": "Data/val_masks",
        },
    },
}


def write(folder: Path, tree: Any, name: str = "hyperparams.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("tree", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling_gives_the_same_run(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read = read_hyperparams(write(tmp_path, tree))
    config = build_config(read.tree)
    assert (config.optimizer.learning_rate, config.train.device, config.loader.batch_size) == (1e-4, "cpu", 16)
    assert (config.train.epochs, config.loader.threads, config.loader.size_hw) == (3, 2, (160, 240))
    assert config.train.init_checkpoint == ""
    assert config.checkpoint.name == "my_checkpoint.pth.tar"
    assert {split: [place.as_posix() for place in pair] for split, pair in read.folders.items()} == {
        "train": ["Data/train_images", "Data/train_masks"],
        "val": ["Data/val_images", "Data/val_masks"],
    }
    assert any("pinned" in note for note in read.notes)
    assert any("threads, not processes" in note for note in read.notes)


def test_what_the_file_leaves_out_is_the_presets(tmp_path: Path) -> None:
    config = build_config(read_any_config(write(tmp_path, {"lr": 1e-3})))
    assert (config.optimizer.learning_rate, config.train.epochs, config.augment.scale.prob) == (1e-3, 3, 0.5)


@pytest.mark.parametrize("key", [key for key in ACCEPTED if key not in ("height", "width")])
def test_every_accepted_key_is_in_the_documentation(key: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    assert key in {normalize_key(word) for line in page.splitlines() for word in line.split("`")[1::2]}


def test_paths_beside_the_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "Data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = read_hyperparams(write(tmp_path / "project", {"train images": "Data", "train masks": "masks"}))
    assert read.folders["train"] == (tmp_path / "project" / "Data", Path("masks"))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"Load Checkpoint": True}, "my_checkpoint.pth.tar"),
        ({"LOAD_MODEL": "True", "Checkpoint": "runs/a/last.pt"}, "runs/a/last.pt"),
        ({"load model": "old.pth"}, "old.pth"),
        ({"load model": 1, "Checkpoint": None}, "my_checkpoint.pth.tar"),
        ({"Load Checkpoint": False, "Checkpoint": "old.pth"}, ""),
    ],
)
def test_a_checkpoint_to_load_becomes_initial_weights(
    tree: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build_config(read_any_config(write(tmp_path, tree))).train.init_checkpoint == expected


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"Learning Rat": 1}, r"unknown key 'Learning Rat' \(did you mean learningrate\?\); docs/coming-from\.md"),
        ({"frobnicate": 1, "zzz": 2}, "unknown keys 'frobnicate', 'zzz'"),
        ({"lr": 1e-3, "Learning Rate": 1e-4}, "'lr' and 'Learning Rate' mean the same and differ"),
        ({"Batch Size": "many"}, 'Batch Size = "many": must be a number'),
        ({"Batch Size": 2.5}, "must be a whole number"),
        ({"Epochs": True}, "must be a number"),
        ({"Device": 0}, "Device = 0: must be a text"),
        ({"Image Height": 160}, "Image Height stands alone"),
        ({"Train Images": "a"}, "Train Images stands alone; name the folder of the train masks too"),
        ({"Val Images": "a", "Val Masks": "b"}, "for validation and none for training"),
        ({"Train Images": "", "Train Masks": "b"}, "must be the path of a folder"),
        ({"Load Checkpoint": 3}, "must be true, false or the path of a checkpoint"),
        ({"Epochs": float("nan")}, "Epochs = NaN: must be a number"),
        ({"Epochs": float("inf")}, "must be a number"),
        ({"Batch Size": "inf"}, "must be a number"),
        ({"image size": 160}, r"image size = 160: must be \[height, width\]"),
        ({"Load Checkpoint": True, "Checkpoint": 3}, "Checkpoint = 3: must be the path of a checkpoint"),
        ([1, 2], "must hold one JSON object of settings, not a list"),
    ],
)
def test_mistakes_are_one_clear_line(tree: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, tree)
    with pytest.raises(UserError, match=message) as caught:
        read_hyperparams(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "hyperparams.json"
    with pytest.raises(UserError, match="cannot read the config file"):
        read_any_config(path)
    path.write_text("{'lr': 1}")
    with pytest.raises(UserError, match="not a JSON file"):
        read_any_config(path)


def test_values_out_of_range_are_named_by_our_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.learning_rate = -1\.0"):
        build_config(read_any_config(write(tmp_path, {"lr": -1})))
