"""Folders that the user names one by one: any pair, Carvana by its names, and every mistake by its folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unetfast.data.pack import pack_folders
from unetfast.data.reader import open_shards
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.named import scan_named
from unetfast.data.toy import write_toy
from unetfast.errors import UserError


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    write_toy(tmp_path / "Data", "carvana", num_groups=4, images_per_group=2, size_hw=(24, 32), seed=0, layout="four-folders")
    return tmp_path / "Data"


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders that lie far from each other and have no telling names."""
    write_toy(tmp_path / "toy", "folder", num_groups=5, seed=0, layout="flat")
    images, masks = tmp_path / "a" / "x", tmp_path / "b" / "deep" / "y"
    found = sorted(path for path in (tmp_path / "toy").iterdir() if path.is_dir())
    roles = {("masks" if "mask" in path.name or "label" in path.name else "images"): path for path in found}
    shutil.copytree(roles["images"], images)
    shutil.copytree(roles["masks"], masks)
    return images, masks


def test_any_pair_of_folders_is_packed(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unetfast", "shard", "--images", *map(str, [pictures[0]]), "--masks", str(pictures[1])]
    done = subprocess.run([*command, "--out", str(tmp_path / "shards")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = open_shards(tmp_path / "shards").manifest
    assert manifest.dataset == "folder"
    assert sum(split.samples for split in manifest.splits.values()) == 5
    with open_shards(tmp_path / "shards").split("train") as reader:
        assert reader.read_json(0)["source_path"].startswith("a/x/")


def test_carvanas_names_are_known_in_any_folder(cars: Path, tmp_path: Path) -> None:
    (cars / "train_images").rename(tmp_path / "pics")
    folders = {"train": (tmp_path / "pics", cars / "train_masks"), "val": (cars / "val_images", cars / "val_masks")}
    report = pack_folders(folders, tmp_path / "shards")
    assert report.manifest is not None
    assert report.manifest.dataset == "carvana"
    assert set(report.samples) == {"train", "val"}
    _, alone = scan_named({"": folders["train"]}, SourceOptions())
    assert {sample.group for sample in alone.samples} == {sample.name.rsplit("_", 1)[0] for sample in alone.samples}


def test_named_folders_give_the_pixels_of_the_same_data_set_as_a_whole(cars: Path, tmp_path: Path) -> None:
    folders = {split: (cars / f"{split}_images", cars / f"{split}_masks") for split in ("train", "val")}
    pack_folders(folders, tmp_path / "shards")
    with open_shards(tmp_path / "shards").split("val") as reader:
        masks = {reader.read_json(sample)["source_path"]: reader.decode_mask(sample) for sample in range(reader.num_samples)}
    assert set(masks) == {f"val_images/{path.name}" for path in (cars / "val_images").iterdir()}
    assert all(mask.shape == (24, 32) and mask.max() == 1 for mask in masks.values())


def test_mistakes_are_named(cars: Path, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = pictures
    missing = tmp_path / "nowhere"
    with pytest.raises(UserError, match=f"{missing}: no such folder; it should hold the train masks"):
        scan_named({"train": (images, missing)}, SourceOptions())
    twice = {"train": (images, masks), "val": (images, masks)}
    with pytest.raises(UserError, match="named for the train images and for the val images"):
        scan_named(twice, SourceOptions())
    with pytest.raises(UserError, match="lies in the source folder"):
        pack_folders({"": pictures}, images / "shards")
    with pytest.raises(UserError, match="no image has a mask"):
        scan_named({"": (images, cars / "train_masks")}, SourceOptions())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to pack: give --src FOLDER, or --images FOLDER and --masks FOLDER"),
        (["--images", "a"], "--images and --masks belong together"),
        (["--images", "a", "--masks", "b", "--val-masks", "c"], "--val-images and --val-masks belong together"),
        (["--src", "a", "--masks", "b"], "--src a: names the whole data set"),
        (["--images", "a", "--masks", "b", "--dataset", "clevr"], "--dataset clevr: needs --src"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from unetfast.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["shard", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
