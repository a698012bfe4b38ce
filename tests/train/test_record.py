"""What a run leaves besides its numbers: facts, validation in detail, samples, GIF, report; through stop, resume and end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from unetfast.app.report import make_report
from unetfast.checkpoint import load_checkpoint
from unetfast.config import Config, build_config
from unetfast.data.manifest import read_manifest
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.infer.load import load_model
from unetfast.loader.build import build_loader
from unetfast.train import loop
from unetfast.train.history import read_record, write_report
from unetfast.train.log import read_rows
from unetfast.train.loop import train
from unetfast.train.progress import list_pictures
from unetfast.train.runfolder import RunFolder
from unetfast.train.samples import choose_extremes, predict_panel

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import look

MakeConfig = Callable[..., Config]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stopped_and_resumed(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of 4 epochs that a signal stopped in its third, and what stood in its folder then."""
    torch.set_num_threads(1)
    tree: dict[str, Any] = {
        "model": {"base_channels": 4, "depth": 2},
        "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
        "train": {"epochs": 4, "amp": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 1e-2},
        "ema": {"decay": 0.5},
        "log": {"every_steps": 1, "tensorboard": False, "num_panels": 2, "num_saved_images": 0, "panels_every_epochs": 1},
    }
    out = tmp_path_factory.mktemp("runs") / "toy <1> & co"
    original = loop.train_step

    def step_and_stop(run: Any, batch: Any) -> None:
        original(run, batch)
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.train_step = step_and_stop
    try:
        assert train(toy_shards, build_config(tree), out).stopped == "signal"
    finally:
        loop.train_step = original
    at_stop = {"names": {path.name for path in out.iterdir()}, "facts": read(out / "facts.json")}
    train(toy_shards, build_config(tree), out, resume=True)
    return out, at_stop


def test_facts_tell_data_model_and_each_start(stopped_and_resumed: tuple[Path, dict[str, Any]], toy_shards: Path) -> None:
    out, at_stop = stopped_and_resumed
    facts, manifest = read(out / "facts.json"), read_manifest(toy_shards)
    assert facts["manifest_digest"] == manifest.digest()
    assert [entry["name"] for entry in facts["classes"]] == manifest.labels.names
    assert {name: split["samples"] for name, split in facts["splits"].items()} == {"train": 12, "val": 3}
    assert facts["splits"]["train"]["class_pixels"] == list(manifest.splits["train"].class_pixels)
    weights = load_checkpoint(out / "last.pt").build_model()
    assert facts["parameters"] == sum(parameter.numel() for parameter in weights.parameters())
    starts = facts["starts"]
    assert [(start["step"], start["end_step"], start["outcome"]) for start in starts] == [(0, 7, "signal"), (7, 12, "finished")]
    assert all({"unetfast", "python", "torch"} <= start["versions"].keys() for start in starts)
    assert any("3 validation images" in warning for warning in starts[0]["warnings"])
    assert starts[0] == at_stop["facts"]["starts"][0]


def test_a_run_stopped_by_a_signal_leaves_at_once(stopped_and_resumed: tuple[Path, dict[str, Any]]) -> None:
    assert not {"report.html", "progress.gif", "samples"} & stopped_and_resumed[1]["names"]


@pytest.mark.parametrize("name", ["validation.json", "validation_best.json"])
def test_the_validation_in_detail_is_that_of_its_row(stopped_and_resumed: tuple[Path, dict[str, Any]], name: str) -> None:
    out, _ = stopped_and_resumed
    tree, rows = read(out / name), read_rows(out / "metrics.jsonl")
    kind = "val_ema" if tree["weights"] == "ema" else "val"
    (row,) = [row for row in rows if row["kind"] == kind and row["step"] == tree["step"]]
    if name == "validation.json":
        assert tree["step"] == 12
    else:
        best = read_record(out, pictures=False).best_row()
        assert best is not None
        assert (best["kind"], best["step"]) == (kind, tree["step"])
        assert load_checkpoint(out / "best.pt").step == tree["step"]
    matrix_KK = np.zeros((2, 2), dtype=np.int64)
    matrix_KK[tree["confusion"]["true"], tree["confusion"]["pred"]] = tree["confusion"]["pixels"]
    assert matrix_KK.sum() == row["num_pixels"] == 3 * 32 * 48
    ious = matrix_KK.diagonal() / (matrix_KK.sum(axis=0) + matrix_KK.sum(axis=1) - matrix_KK.diagonal())
    assert ious.tolist() == pytest.approx([entry["iou"] for entry in row["classes"]])
    assert tree["images"]["sample"] == [0, 1, 2]
    # images of one size: the accuracy of the split is the mean of theirs
    assert np.mean(tree["images"]["accuracy"]) == pytest.approx(row["pixel_accuracy"], abs=1e-5)


def test_samples_are_drawn_worst_and_best_with_the_best_weights(
    stopped_and_resumed: tuple[Path, dict[str, Any]], toy_shards: Path
) -> None:
    out, _ = stopped_and_resumed
    tree, validation = read(out / "samples" / "samples.json"), read(out / "validation_best.json")
    assert (tree["step"], tree["weights"]) == (validation["step"], validation["weights"])
    assert [entry["kind"] for entry in tree["samples"]] == ["worst", "worst", "best"]
    order = np.argsort(validation["images"]["iou"], kind="stable").tolist()
    assert [entry["sample"] for entry in tree["samples"]] == [order[0], order[1], order[2]]
    trained = load_model(out / "best.pt", device="cpu")
    with open_shards(toy_shards).split("val") as reader:
        for entry in tree["samples"]:
            with Image.open(out / "samples" / entry["picture"]) as picture:
                assert picture.width > 4 * 48
            panel = predict_panel(trained, reader, entry["sample"])
            valid_HW = panel.mask_HW != 255
            accuracy = (panel.mask_HW == panel.pred_HW)[valid_HW].mean()
            assert accuracy == pytest.approx(entry["accuracy"], abs=1e-5)  # the picture is of what was scored


def test_a_sample_is_seen_as_the_loader_sees_it(stopped_and_resumed: tuple[Path, dict[str, Any]], toy_shards: Path) -> None:
    out, _ = stopped_and_resumed
    trained = load_model(out / "best.pt", device="cpu")
    with open_shards(toy_shards).split("val") as reader:
        config = trained.checkpoint.config
        with build_loader(reader, config, training=False, device=torch.device("cpu"), batch_size=3) as loader:
            batch = next(iter(loader))
            for place in range(3):
                panel = predict_panel(trained, reader, place)
                np.testing.assert_array_equal(panel.image_HWC, batch.image_NCHW[place].permute(1, 2, 0).numpy())
                np.testing.assert_array_equal(panel.mask_HW, batch.mask_NHW[place].numpy())


def test_the_gif_of_a_resumed_run_has_all_of_its_epochs(stopped_and_resumed: tuple[Path, dict[str, Any]]) -> None:
    out, _ = stopped_and_resumed
    titles = [title for title, _ in list_pictures(RunFolder(out), max_epoch=4)]
    assert titles == ["before training", "epoch 1", "epoch 2", "epoch 3", "epoch 4, the end"]
    with Image.open(out / "progress.gif") as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 5


def test_pictures_of_steps_that_were_cut_off_are_no_frames(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("initial", 5, 10, 15, "final"):
        Image.new("RGB", (10, 10)).save(folder.predictions(name))
    titles = [title for title, _ in list_pictures(folder, max_epoch=10, is_inside=True)]
    assert titles == ["before training", "epoch 5", "epoch 10", "epoch 11, the end"]
    folder.predictions("final").unlink()
    assert [path.name for _, path in list_pictures(folder, max_epoch=12)][-1] == "predictions_epoch_10.png"


def test_the_report_of_a_real_run_renders_in_a_browser(
    stopped_and_resumed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = stopped_and_resumed
    seen = look(out / "report.html", tmp_path, width=400)
    assert seen.console == []
    assert seen.requests == set()
    assert seen.probe["wide"] == seen.probe["clipped"] == []
    assert seen.probe["broken"] == 0
    assert "samples" in seen.probe["sections"]
    assert len(seen.probe["sections"]) == 10


def test_the_report_says_what_the_run_came_to(stopped_and_resumed: tuple[Path, dict[str, Any]]) -> None:
    out, _ = stopped_and_resumed
    page = (out / "report.html").read_text(encoding="utf-8")
    best = read_record(out).best_row()
    assert best is not None
    for words in (f"{best['mean_dice']:.4f}", "toy &lt;1&gt; &amp; co", "resumed after step 7", "mean Dice, EMA"):
        assert words in page
    assert page.count("data:image/jpeg") == 3 + 2


def test_a_run_without_val_split_is_reported(
    pack_toy: Callable[[float], Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(pack_toy(0.0), make_config(train={"max_steps": 4}, log={"report": True, "gif": True}), out)
    assert not (out / "validation.json").exists()
    assert not (out / "samples").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Nothing was validated" in page
    assert "stopped by train.max_steps" in page
    with Image.open(out / "progress.gif") as gif:
        assert gif.format == "GIF"


def test_gif_and_report_can_be_left_out_and_the_report_made_later(
    toy_shards: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = make_config(train={"epochs": 1}, log={"gif": False, "report": False})
    train(toy_shards, config, out)
    assert not {"report.html", "progress.gif", "samples"} & {path.name for path in out.iterdir()}
    assert make_report(out) == out / "report.html"
    assert "no pictures: the run did not come to its end" in (out / "report.html").read_text(encoding="utf-8")
    make_report(out, out=tmp_path / "elsewhere.html")
    assert (tmp_path / "elsewhere.html").stat().st_size > 10_000


def test_a_run_of_an_older_version_is_reported(toy_shards: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(toy_shards, make_config(train={"epochs": 1}), out)
    for name in ("facts.json", "validation.json", "validation_best.json"):
        (out / name).unlink()
    write_report(out, out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "the run is of an older version" in page
    assert "background" in page


def test_extremes_overlap_nowhere_and_leave_out_what_has_no_score() -> None:
    assert choose_extremes([0.5, None, 0.1, 0.9], num_each=6) == {"worst": [2, 0], "best": [3]}
    assert choose_extremes([0.5] * 20, num_each=3) == {"worst": [0, 1, 2], "best": [19, 18, 17]}
    assert choose_extremes([None]) == {"worst": [], "best": []}
    assert choose_extremes([0.3]) == {"worst": [0], "best": []}


# folders that are no run, and damaged ones


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("[train]\nepochs = 3\n")
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 1, "loss": 0.5}\n')
    return run


def test_the_least_run_folder_is_reported(small_run: Path) -> None:
    assert make_report(small_run).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, r"not a run folder \(metrics\.jsonl is not in it\); give a folder that `unetfast train"),
        ("config.toml", None, r"not a run folder \(config\.toml is not in it\)"),
        ("config.toml", b"[train\n", r"config\.toml: cannot be read \(.*\); it is written anew when the run is resumed"),
        ("metrics.jsonl", b'{"kind": "train"}\n', r"metrics\.jsonl: line 1 is no row of metrics .*; remove that line"),
        ("metrics.jsonl", b"\xff\xfe", r"metrics\.jsonl: cannot be read"),
        ("facts.json", b"{", r"facts\.json: cannot be read .*; remove it, and the report does without"),
        ("facts.json", b"[1]", r"facts\.json: holds no object; remove it, and the report does without"),
        ("validation.json", b"\xff", r"validation\.json: cannot be read"),
        ("predictions_initial.png", b"no picture", r"predictions_initial\.png: cannot be read .*; remove it"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_file(small_run: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (small_run / name).unlink()
    else:
        (small_run / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        make_report(small_run)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run folder; give a folder"):
        make_report(tmp_path / "nowhere")


def test_a_page_needs_a_place(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder; give --out a file, such as .*report\.html"):
        make_report(small_run, out=tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*missing; make it, or give --out another file"):
        make_report(small_run, out=tmp_path / "missing" / "page.html")
