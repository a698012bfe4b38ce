"""`unetfast inspect` on packed toy data: what it says, what it proves, what it draws."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from unetfast.app.inspect import inspect_shards
from unetfast.data.pack import pack
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


def test_sheet_is_a_picture(shards: Path, tmp_path: Path) -> None:
    text, report = run(shards, sheet=tmp_path / "deep" / "sheet.png")
    assert report.sheet == tmp_path / "deep" / "sheet.png"  # type: ignore[attr-defined]
    with Image.open(tmp_path / "deep" / "sheet.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 1000
    assert "sheet: " in text


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
