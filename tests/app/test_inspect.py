"""`unetfast inspect` on packed toy data: what it says, what it proves, what it draws."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unetfast.app.inspect import find_training_size, inspect_shards
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.toy.layouts import write_toy
from unetfast.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    write_toy(root / "src", "clevr", num_groups=2, seed=0, images_per_group=4)
    pack(root / "src", root / "shards", workers=1)
    return root / "shards"


def run(shards: Path, **arguments: object) -> tuple[str, object]:
    stream = io.StringIO()
    report = inspect_shards(shards, results=Console(file=stream, width=50), **arguments)  # type: ignore[arg-type]
    return stream.getvalue(), report


def test_summary_names_splits_classes_and_normalisation(shards: Path) -> None:
    text, report = run(shards)
    assert report.problems == []  # type: ignore[attr-defined]
    for part in (
        "clevr",
        "49 classes",
        "split",
        "train",
        "val",
        "160 px",
        "240 px",
        "mean 0.",
        "background",
        "packed with",
    ):
        assert part in text
    lines = text.splitlines()
    assert sum(line.split()[:1] == ["48"] for line in lines) == 1  # every class has its line
    assert "verified" not in text


def test_verify_says_what_was_proven(shards: Path) -> None:
    text, report = run(shards, verify=True)
    assert report.verified  # type: ignore[attr-defined]
    assert "verified: every byte, header and pixel of 8 samples: all is well" in text


def test_verify_lists_problems(shards: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    (broken / "val" / "000000.tar").write_bytes(b"gone")
    text, report = run(broken, verify=True)
    assert report.problems  # type: ignore[attr-defined]
    assert "problem: " in text
    assert "000000.tar: is 4 bytes" in text
    assert "all is well" not in text


def test_sheet_is_a_picture_of_the_classes_in_their_colors(shards: Path, tmp_path: Path) -> None:
    text, report = run(shards, sheet=tmp_path / "deep" / "sheet.png")
    assert report.sheet == tmp_path / "deep" / "sheet.png"  # type: ignore[attr-defined]
    with Image.open(tmp_path / "deep" / "sheet.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 1000
        assert picture.height > 1400  # 4 rows of samples, the legend, the figures
        colors = {color for _, color in picture.getcolors(1 << 24) or []}
    manifest = open_shards(shards).manifest
    occurring = {k for split in manifest.splits.values() for k, count in enumerate(split.class_pixels) if count}
    assert len(occurring) > 5
    assert {manifest.labels.classes[k].color for k in occurring} <= colors
    assert "sheet.png (samples with masks and legend, shares of the classes, sizes of the samples)" in text


def test_the_training_size_is_that_of_the_preset() -> None:
    assert find_training_size("clevr") == ((160, 240), "training size of preset clevr")
    assert find_training_size("something") == ((256, 256), "training size of preset folder")


def test_unequal_classes_are_told(shards: Path) -> None:
    text, report = run(shards)
    assert len(report.warnings) >= 1  # type: ignore[attr-defined]
    assert "warning: unequal classes in train: " in text
    assert "--set loss.class_weights=auto" in text
    assert "--set augment.max_class_share=0.75" in text


def test_names_that_no_font_has_are_said_on_stderr_and_are_no_error(tmp_path: Path) -> None:
    """A folder with class names in Chinese and emoji, through the real command: one line, whatever fonts are installed."""
    source = tmp_path / "src"
    for part in ("images", "masks"):
        (source / part).mkdir(parents=True)
    for number in range(4):
        mask = np.zeros((24, 32), np.uint8)
        mask[8:16, 8 : 16 + number] = 1
        mask[18:, 20:] = 2
        Image.fromarray(np.full((24, 32, 3), 60 * number, np.uint8)).save(source / "images" / f"\u8eca{number}.png")
        Image.fromarray(mask).save(source / "masks" / f"\u8eca{number}.png")
    names = ["background", "\u8eca \u8f1b", "\U000f0000"]  # the last one is in no font: a private character
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "unetfast", "shard", "--src", str(source), "--classes", str(tmp_path / "classes.txt"),
         "--out", str(tmp_path / "shards")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    importlib.import_module("matplotlib.font_manager")  # lists this machine's fonts once, and says so where that takes long
    command = [sys.executable, "-m", "unetfast", "inspect", str(tmp_path / "shards"), "--sheet", str(tmp_path / "sheet.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "no font here has all characters of a name, such as U+" in done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_a_reader_that_goes_away_is_no_error(shards: Path) -> None:
    """`unetfast inspect shards/ | head`: exit code 1 would say that the shards are damaged."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "unetfast", "inspect", str(shards)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_results_that_find_no_space(shards: Path) -> None:
    command = [sys.executable, "-m", "unetfast", "inspect", str(shards)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output: No space left on device; free some space")


def test_errors_name_the_remedy(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png"):
        run(shards, sheet=tmp_path / "sheet.jpg")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        run(shards, sheet=tmp_path / "file" / "sheet.png")
    with pytest.raises(UserError, match="is a file; give the shard folder"):
        run(shards / "manifest.json")
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nowhere")
