"""Whole small runs: what they leave, what they say, what they refuse."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetfast.checkpoint import load_checkpoint
from unetfast.config import Config, build_config, read_config_tree
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint
from unetfast.train import loop
from unetfast.train.log import read_rows
from unetfast.train.loop import TrainResult, train

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def finished(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Config]:
    """A run of 30 epochs that has learned something."""
    torch.set_num_threads(1)
    tree: dict[str, Any] = {
        "model": {"base_channels": 4, "depth": 2},
        "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
        "train": {"epochs": 25, "amp": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 1e-2},
        "eval": {"every_epochs": 5},
        "log": {"every_steps": 1, "tensorboard": True, "num_panels": 2, "num_saved_images": 2, "panels_every_epochs": 10},
        "checkpoint": {"every_epochs": 10, "name": "Unet_checkpoint_epoch_{epoch}.pt"},
    }
    config = build_config(tree)
    out = tmp_path_factory.mktemp("runs") / "carvana-1"
    return train(toy_shards, config, out), config


def test_it_learns(finished: tuple[TrainResult, Config]) -> None:
    rows = read_rows(finished[0].out / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 75
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    scores = [row["mean_iou"] for row in rows if row["kind"] == "epoch"]
    assert scores[-1] > scores[0]
    assert scores[-1] > 0.6


def test_run_folder_holds_everything(finished: tuple[TrainResult, Config]) -> None:
    result, config = finished
    names = {path.name for path in result.out.iterdir()}
    assert names == {
        *("config.toml", "metrics.jsonl", "tensorboard", "last.pt", "best.pt", "saved_images", "training_history.png"),
        *("Unet_checkpoint_epoch_10.pt", "Unet_checkpoint_epoch_20.pt"),
        *("predictions_initial.png", "predictions_epoch_10.png", "predictions_epoch_20.png", "predictions_epoch_final.png"),
        *("facts.json", "validation.json", "validation_best.json", "samples", "progress.gif", "report.html"),
    }
    assert len(list((result.out / "saved_images").iterdir())) == 2
    assert build_config(read_config_tree(result.out / "config.toml")) == config
    with Image.open(result.out / "predictions_epoch_final.png") as picture:
        assert np.asarray(picture).std() > 10


def test_rows_tell_steps_epochs_and_units(finished: tuple[TrainResult, Config]) -> None:
    rows = read_rows(finished[0].out / "metrics.jsonl")
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == list(range(1, 76))
    assert [row["epoch"] for row in train_rows] == [step // 3 + 1 for step in range(75)]
    expected = {"kind", "step", "epoch", "loss", "learning_rate", "images_per_s", "data_wait_pct", "step_s"}
    assert set(train_rows[0]) == expected
    assert [(row["step"], row["epoch"]) for row in rows if row["kind"] == "val"] == [(15 * n, 5 * n) for n in range(1, 6)]


def test_result_names_last_and_best(finished: tuple[TrainResult, Config]) -> None:
    result = finished[0]
    assert (result.steps, result.epochs, result.stopped, result.exit_code) == (75, 25, "", 0)
    val = [row for row in read_rows(result.out / "metrics.jsonl") if row["kind"] == "val"]
    best = max(val, key=lambda row: row["mean_dice"])
    where = {"epoch": best["epoch"], "step": best["step"], "weights": "raw"}
    assert result.best == {"metric": "mean_dice", "value": best["mean_dice"], **where}
    assert result.last["mean_iou"] == val[-1]["mean_iou"]
    assert load_checkpoint(result.out / "best.pt").step == best["step"]
    assert load_checkpoint(result.out / "last.pt").step == 75
    assert load_checkpoint(result.out / "Unet_checkpoint_epoch_10.pt").epoch == 10


def test_best_checkpoint_gives_its_scores_again(finished: tuple[TrainResult, Config], toy_shards: Path) -> None:
    result = finished[0]
    evaluation = evaluate_checkpoint(toy_shards, result.out / "best.pt", device="cpu", threads=1, stdout=io.StringIO())
    assert evaluation.metrics.mean_dice == result.best["value"]


def test_checkpoint_carries_data_and_normalisation(finished: tuple[TrainResult, Config], toy_shards: Path) -> None:
    checkpoint = load_checkpoint(finished[0].out / "last.pt")
    manifest = open_shards(toy_shards).manifest
    assert checkpoint.labels == manifest.labels
    assert checkpoint.manifest_digest == manifest.digest()
    # the network holds them as float32
    assert checkpoint.mean == pytest.approx(manifest.splits["train"].mean, rel=1e-6)
    assert checkpoint.std == pytest.approx(manifest.splits["train"].std, rel=1e-6)


def test_finished_run_has_nothing_to_resume(
    finished: tuple[TrainResult, Config], toy_shards: Path, tmp_path: Path, ear: Any
) -> None:
    result, config = finished
    shutil.copytree(result.out, tmp_path / "run")
    before = load_checkpoint(tmp_path / "run" / "last.pt").weights
    again = train(toy_shards, config, tmp_path / "run", resume=True, console=ear.console)
    assert again.steps == 75
    assert "all 25 epochs are done already" in ear.heard
    after = load_checkpoint(tmp_path / "run" / "last.pt").weights
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_says_what_it_understood(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    train(toy_shards, make_config(), tmp_path / "run", console=ear.console)
    for part in (
        "(carvana, 12 train / 3 val, 2 classes)",
        "32x48 (stored 40x60; loader.size_hw), batch 4",
        "U-Net 4..16",
        "2 epochs, 6 steps, adam 0.003",
        "epoch 1/2  step 2/6",
        "img/s",
        "warning: 3 validation images: their scores are no measure",
        "val     step 6 (epoch 2/2): mDice",
        "(car)",
        "best so far",
        "best    mDice 0.",
        " at step ",
    ):
        assert part in ear.heard
    assert f"next: unetfast predict --checkpoint {tmp_path / 'run' / 'best.pt'} IMAGE_OR_FOLDER" in ear.heard


def test_a_run_with_a_cache_says_so_and_learns_the_same(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    weights = []
    for cache in ("off", "ram"):
        config = make_config(loader={"cache": cache}, train={"epochs": 2})
        train(toy_shards, config, tmp_path / cache, console=ear.console)
        weights.append(load_checkpoint(tmp_path / cache / "last.pt").weights)
    assert 'loader  cpu (loader.cache = "ram"), 32x48 (stored 40x60; loader.size_hw), batch 4, cache ram, ' in ear.heard
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_used_folder_is_refused(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="go on with it by --resume, or take another --out"):
        train(toy_shards, make_config(), tmp_path)
    with pytest.raises(UserError, match="no such run to resume"):
        train(toy_shards, make_config(), tmp_path / "gone", resume=True)


def test_refused_run_leaves_no_folder(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"\[loss\]"):
        train(toy_shards, make_config(loss={"class_weights": [1.0, 2.0, 3.0]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_val_split_it_says_so(
    pack_toy: Callable[[float], Path], tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    shards = pack_toy(0.0)
    result = train(shards, make_config(), tmp_path / "run", console=ear.console)
    assert "no val split" in ear.heard
    assert (result.best, result.last) == ({}, {})
    best, last = (load_checkpoint(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert all(torch.equal(best.weights[name], last.weights[name]) for name in best.weights)
    assert (tmp_path / "run" / "predictions_epoch_final.png").exists()
    with pytest.raises(UserError, match="plateau"):
        train(shards, make_config(schedule={"name": "plateau"}), tmp_path / "other")


def test_without_train_split_it_refuses(pack_toy: Callable[[float], Path], tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="train"):
        train(pack_toy(1.0), make_config(), tmp_path / "run")


def test_split_smaller_than_a_batch(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    config = make_config(loader={"batch_size": 30}, train={"epochs": 5}, log={"every_steps": 1})
    result = train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert "warning: batch 30 is larger than the 12 training samples: a step spans 2.5 epochs" in ear.heard
    assert (result.steps, result.epochs) == (2, 5)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [(row["kind"], row["step"], row["epoch"]) for row in rows] == [
        ("train", 1, 3),
        ("epoch", 1, 2),
        ("val", 1, 2),
        ("train", 2, 5),
        ("epoch", 2, 5),
        ("val", 2, 5),
    ]


def test_max_steps_stops_inside_an_epoch_with_scores(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    result = train(toy_shards, make_config(train={"max_steps": 4}), tmp_path / "run", console=ear.console)
    assert (result.steps, result.epochs, result.stopped, result.exit_code) == (4, 1, "max_steps", 0)
    assert ": 4 steps (train.max_steps), adam" in ear.heard
    assert "val     step 4 (epoch 2/2): mDice" in ear.heard
    assert "stopped at step 4 by train.max_steps" in ear.heard
    assert (tmp_path / "run" / "best.pt").exists()
    assert (tmp_path / "run" / "predictions_epoch_final.png").exists()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "val"] == [3, 4]


def test_max_steps_at_an_epochs_end_validates_once(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    train(toy_shards, make_config(train={"max_steps": 3}), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "val"] == [3]
    assert (tmp_path / "run" / "predictions_epoch_final.png").exists()


def test_initial_weights_are_taken_over_and_said(
    finished: tuple[TrainResult, Config], toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    start = finished[0].out / "last.pt"
    config = make_config(train={"init_checkpoint": str(start), "max_steps": 1}, optimizer={"learning_rate": 1e-12})
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    given, taken = load_checkpoint(start).weights, load_checkpoint(tmp_path / "run" / "last.pt").weights
    torch.testing.assert_close(taken["head.weight"], given["head.weight"])
    assert f"weights {start}" in ear.heard


def test_accumulation_computes_the_whole_batchs_step(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    weights = []
    for parts in (1, 4):
        config = make_config(
            model={"norm": "group", "base_channels": 16},
            train={"accumulation": parts, "max_steps": 2},
            optimizer={"name": "sgd", "learning_rate": 0.1, "clip_norm": 0.5},
        )
        train(toy_shards, config, tmp_path / f"run-{parts}")
        weights.append(load_checkpoint(tmp_path / f"run-{parts}" / "last.pt").weights)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_blow_up_make_no_best(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    config = make_config(
        model={"norm": "none"},
        optimizer={"name": "sgd", "learning_rate": 1e30},
        checkpoint={"best_metric": "val_loss"},
        train={"max_bad_steps": 100},
    )
    result = train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert result.best == {}
    assert not (tmp_path / "run" / "best.pt").exists()
    assert "nan" in ear.heard
    assert "no validation pass gave a number for val_loss" in ear.heard


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"amp": "bf16", "max_steps": 2}},
        {"train": {"deterministic": True, "channels_last": False, "max_steps": 2}},
        {"eval": {"size": "source"}, "train": {"max_steps": 2}},
        {"loss": {"bce": 1.0, "dice": 1.0, "class_weights": "auto"}, "train": {"max_steps": 2}},
        {"loader": {"sampler": "balanced"}, "schedule": {"name": "cosine", "warmup_steps": 1}, "train": {"max_steps": 2}},
    ],
    ids=["bf16", "deterministic", "source-size", "losses", "balanced-cosine"],
)
def test_choices_work(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, sections: dict[str, Any]) -> None:
    result = train(toy_shards, make_config(**sections), tmp_path / "run")
    assert result.steps == 2
    assert result.last["num_images"] == 3
    assert not torch.are_deterministic_algorithms_enabled()


def test_same_seed_same_weights_other_seed_others(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    found = []
    for place, seed in enumerate((1, 1, 2)):
        config = make_config(train={"seed": seed, "max_steps": 2}, model={"dropout": 0.2})
        train(toy_shards, config, tmp_path / f"{place}")
        found.append(load_checkpoint(tmp_path / f"{place}" / "last.pt").weights["head.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_learning_rates_follow_the_schedule(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        schedule={"name": "cosine", "warmup_steps": 2}, optimizer={"learning_rate": 1.0}, log={"every_steps": 1}
    )
    train(toy_shards, config, tmp_path / "run")
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_compiled_run_saves_plain_names_and_equal_weights(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo traces the model and runs the graph as it is: no C++ compiler is waited for."""
    compile_model = torch.nn.Module.compile
    asked: list[dict[str, Any]] = []

    def compile_eagerly(self: torch.nn.Module, **options: Any) -> None:
        asked.append(options)
        compile_model(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    found = []
    for mode in ("off", "on"):
        config = make_config(train={"compile": mode, "max_steps": 3}, optimizer={"name": "sgd"})
        train(toy_shards, config, tmp_path / mode)
        found.append(load_checkpoint(tmp_path / mode / "last.pt").weights)
    assert asked == [{"fullgraph": True, "dynamic": False}]
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight)


def test_a_step_waits_for_nothing_on_the_host(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """Log rows alone read sums: between them no number is fetched from the device."""
    reads: list[int] = []
    original = torch.Tensor.item

    def count(self: torch.Tensor) -> Any:
        reads.append(1)
        return original(self)

    steps: list[int] = []

    def step(run: Any, batch: Any) -> None:
        before = len(reads)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "item", count)
            patch.setattr(torch.Tensor, "tolist", count)
            train_step(run, batch)
        steps.append(len(reads) - before)

    train_step = loop.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        train(toy_shards, make_config(optimizer={"clip_norm": 1.0}), tmp_path / "run")
    assert steps == [0] * 6
