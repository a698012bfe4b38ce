"""`unetfast predict` from the command line: options reach the work, mistakes are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetfast import cli


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "deep/b.jpg", "deep/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_pattern_in_windows_with_copies(
    tmp_path: Path,
    photos: Path,
    save_tiny_model: Callable[..., Path],
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, out = save_tiny_model(), tmp_path / "out"
    options = ["--window", "auto", "--overlap", "0.25", "--scale", "0.5", "--tta", "flips", "--probs", "--device", "cpu"]
    assert run("--checkpoint", checkpoint, photos / "**" / "*.jpg", "--out", out, *options) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == ["a.png", "deep/b.png"]
    assert np.load(out / "deep" / "b_probs.npy").shape == (2, 70, 90)
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("window  32x48, overlap 0.25, sees 64x96 pixels", "mean of 2 copies", "megapixels/s"):
        assert words in captured.err
    (photos / "a.jpg").write_bytes(b"no image")
    assert run("--checkpoint", checkpoint, photos, "--out", out, "--max-pixels", "6299", "--device", "cpu") == 1
    captured = capsys.readouterr()
    assert captured.err.count("--max-pixels 6300 allows it") == 2
    assert "3 images failed" in captured.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "12"], "error: --window 12: give auto, off or HEIGHTxWIDTH in pixels, such as 512x512"),
        (["--scale", "2"], "error: --overlap and --scale are for windows"),
        (["--window", "auto", "--overlap", "0.99"], "error: Invalid value for '--overlap'"),
        (["--tta", "turns"], "error: Invalid value for '--tta'"),
        (["--max-pixels", "0"], "error: Invalid value for '--max-pixels'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", tmp_path / "best.pt", photos, "--out", tmp_path / "out", *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(words)
    assert captured.err.count("\n") == 1


def test_a_pattern_that_matches_nothing_is_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", tmp_path / "best.pt", photos / "*.tiff", "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {photos}/*.tiff: the pattern matches nothing")
    assert captured.err.count("\n") == 1
