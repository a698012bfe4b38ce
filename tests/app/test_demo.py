"""The demo: it learns what no threshold can, starts afresh, and deletes nothing of others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from toy_thresholds import best_threshold_dice

from unetfast.app import demo
from unetfast.app.demo import MARKER_NAME, DemoPlan, list_held_back, run_demo
from unetfast.errors import UserError

QUICK = ["train.max_steps=2", "loader.size_hw=[32, 48]", "model.base_channels=4", "model.depth=2", "train.device=cpu"]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


@pytest.fixture
def tiny_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"carvana": DemoPlan(5, 2, 0.2), "clevr": DemoPlan(3, 2, 0.34), "ade20k": DemoPlan(5, None, 0.2)}
    monkeypatch.setattr(demo, "DEMO_PLANS", plans)


@pytest.mark.usefixtures("tiny_plans")
@pytest.mark.parametrize("dataset", ["carvana", "clevr", "ade20k"])
def test_each_demo_does_the_whole_job(dataset: str, tmp_path: Path, console: Console) -> None:
    out = tmp_path / "demo"
    report = run_demo(dataset=dataset, out=out, overrides=QUICK, console=console)
    scores = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    assert scores == report.scores
    assert {"loss", "mean_iou", "mean_dice", "pixel_accuracy", "num_images", "classes"} <= set(scores)
    assert scores["num_images"] == len(list_held_back(out))
    for name in ("predictions.png", "training_history.png", "sheet.png"):
        with Image.open(out / name) as picture:
            picture.load()
    overlays = [path for path in (out / "pred").iterdir() if "overlay" in path.name]
    assert len(overlays) == min(8, scores["num_images"])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for command in ("shard", "inspect", "train", "eval", "predict"):
        assert f"$ unetfast {command} " in text


@pytest.mark.usefixtures("tiny_plans")
def test_a_demo_starts_afresh_and_keeps_what_is_not_its_own(tmp_path: Path, console: Console) -> None:
    out = tmp_path / "demo"
    run_demo(dataset="clevr", out=out, overrides=QUICK, console=console)
    run_demo(dataset="carvana", out=out, overrides=QUICK, console=console)
    assert not (out / "Data" / "val").exists()
    first = {path.relative_to(out): path.read_bytes() for path in (out / "shards").rglob("*.tar")}
    mine = out / "pred" / "notes.txt"
    mine.write_text("keep me", encoding="utf-8")
    with pytest.raises(UserError, match=r"did not make: pred/notes\.txt\n.*--out"):
        run_demo(dataset="carvana", out=out, overrides=QUICK, console=console)
    assert mine.read_text(encoding="utf-8") == "keep me"
    assert first == {path.relative_to(out): path.read_bytes() for path in (out / "shards").rglob("*.tar")}


def test_a_folder_of_others_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "Data").mkdir()
    (tmp_path / "Data" / "mine.jpg").write_bytes(b"1")
    with pytest.raises(UserError, match="what it did not make: Data"):
        demo.remove_former_demo(tmp_path)
    assert (tmp_path / "Data" / "mine.jpg").read_bytes() == b"1"


def test_a_demo_that_was_interrupted_is_removed_but_not_what_stands_beside_it(tmp_path: Path) -> None:
    demo._start_folder(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.tar.part").write_bytes(b"1")
    (tmp_path / "mine.txt").write_bytes(b"2")
    with pytest.raises(UserError, match=r"mine\.txt"):
        demo.remove_former_demo(tmp_path)
    assert (tmp_path / "shards" / "000000.tar.part").exists()
    (tmp_path / "mine.txt").unlink()
    demo.remove_former_demo(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_marker_is_no_permission_to_delete(tmp_path: Path) -> None:
    (tmp_path / MARKER_NAME).write_text("{", encoding="utf-8")
    (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="did not make"):
        demo.remove_former_demo(tmp_path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_bytes(b"1")
    out = tmp_path / "demo"
    demo._start_folder(out)
    (out / "Data").symlink_to(outside, target_is_directory=True)
    demo.remove_former_demo(out)
    assert (outside / "mine.txt").exists()
    out.rmdir()
    out.symlink_to(outside, target_is_directory=True)
    with pytest.raises(UserError, match="not a folder"):
        demo.remove_former_demo(out)


def test_unknown_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are: carvana, clevr, ade20k"):
        run_demo(dataset="folder", out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_demo_learns_what_no_threshold_can(tmp_path: Path, console: Console) -> None:
    out = tmp_path / "demo"
    report = run_demo(dataset="carvana", out=out, overrides=["train.device=cpu"], console=console)
    dice = {entry["name"]: entry["dice"] for entry in report.scores["classes"]}
    images = list_held_back(out)
    masks = [out / "Data" / "train_masks" / f"{path.stem}_mask.gif" for path in images]
    train_cars = {path.stem[:12] for path in (out / "Data" / "train").iterdir()} - {path.stem[:12] for path in images}
    assert len(images) == report.scores["num_images"] >= 32
    assert len(train_cars) * 4 + len(images) == len(list((out / "Data" / "train").iterdir())), "a car stands on both sides"
    assert dice["car"] >= 0.95
    assert best_threshold_dice(images, masks) <= 0.8
