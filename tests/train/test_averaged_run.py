"""A run that keeps a moving average: it is scored beside the weights, saved, and chosen where it is better."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unetfast import cli
from unetfast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unetfast.config import Config, build_config
from unetfast.errors import UserError
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint
from unetfast.infer.load import load_model
from unetfast.train import epoch, loop
from unetfast.train.epoch import better_scores
from unetfast.train.log import read_rows
from unetfast.train.loop import TrainResult, train

TREE: dict[str, dict[str, Any]] = {
    "model": {"base_channels": 4, "depth": 2},
    "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
    "train": {"amp": "off", "device": "cpu"},
    "optimizer": {"learning_rate": 3e-3},
    "log": {"tensorboard": False, "gif": False, "report": False, "num_panels": 1, "num_saved_images": 0},
}


def make_config(**sections: dict[str, Any]) -> Config:
    return build_config({name: TREE.get(name, {}) | sections.get(name, {}) for name in (*TREE, *sections)})


class Ear:
    def __init__(self) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=200)

    @property
    def heard(self) -> str:
        return self._file.getvalue()


@pytest.fixture(scope="module")
def averaged(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, str]:
    """A run of four epochs whose average lags far behind, and what it said."""
    out, ear = tmp_path_factory.mktemp("averaged") / "run", Ear()
    torch.set_num_threads(1)  # as the tests have it that score its checkpoint again
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, epoch):
            patch.setattr(module, "draw_history", lambda run, rows: None)
        config = make_config(ema={"decay": 0.9, "warmup": False}, train={"epochs": 4})
        return train(toy_shards, config, out, console=ear.console), ear.heard


def rows_of(result: TrainResult, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(result.out / "metrics.jsonl") if row["kind"] == kind]


def test_both_are_scored_in_every_pass(averaged: tuple[TrainResult, str]) -> None:
    result, heard = averaged
    raw, ema = rows_of(result, "val"), rows_of(result, "val_ema")
    assert [row["step"] for row in raw] == [row["step"] for row in ema] == [3, 6, 9, 12]
    assert all(one.keys() == other.keys() for one, other in zip(raw, ema, strict=True))
    assert all(one["loss"] != other["loss"] for one, other in zip(raw, ema, strict=True))
    for one, other in zip(raw, ema, strict=True):
        line = next(line for line in heard.splitlines() if line.startswith(f"val     step {one['step']} "))
        before, _, behind = line.partition("   ema: ")
        assert f"loss {one['loss']:.4f}" in before
        assert f"loss {other['loss']:.4f}" in behind


def test_best_is_chosen_over_both_and_says_which(averaged: tuple[TrainResult, str]) -> None:
    result, _ = averaged
    scored = [(row["mean_dice"], row["step"], "raw") for row in rows_of(result, "val")]
    scored += [(row["mean_dice"], row["step"], "ema") for row in rows_of(result, "val_ema")]
    value, step, weights = max(scored, key=lambda entry: entry[0])
    assert (result.best["value"], result.best["step"], result.best["weights"]) == (value, step, weights)
    best = load_checkpoint(result.out / "best.pt")
    assert (best.step, best.best["weights"]) == (step, weights)
    assert best.choose_weights()[0] == weights


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_checkpoint_gives_both_scores_again(averaged: tuple[TrainResult, str], toy_shards: Path, weights: str) -> None:
    result, _ = averaged
    row = rows_of(result, "val" if weights == "raw" else "val_ema")[-1]
    out = io.StringIO()
    evaluate_checkpoint(
        toy_shards, result.out / "last.pt", device="cpu", threads=1, weights=weights, json=True, batch_size=4, stdout=out
    )
    scores = json.loads(out.getvalue())
    assert scores["weights"] == weights
    assert scores["mean_dice"] == row["mean_dice"]
    assert scores["loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_average_of_the_checkpoint_follows_its_steps(toy_shards: Path, tmp_path: Path) -> None:
    """Averaged by hand over the weights of every step."""
    states: list[dict[str, torch.Tensor]] = []
    original = loop.train_step

    def step_and_keep(run: Any, batch: Any) -> None:
        if not states:
            states.append({name: weight.detach().clone() for name, weight in run.model.named_parameters()})
        original(run, batch)
        states.append({name: weight.detach().clone() for name, weight in run.model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step_and_keep)
        config = make_config(ema={"decay": 0.9, "warmup": False}, train={"max_steps": 5})
        train(toy_shards, config, tmp_path / "run")
    expected = {name: weight.double() for name, weight in states[0].items()}
    for state in states[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * weight.double() for name, weight in state.items()}
    kept = load_checkpoint(tmp_path / "run" / "last.pt").ema
    for name, weight in expected.items():
        torch.testing.assert_close(kept[name].double(), weight, rtol=1e-5, atol=1e-7)


def test_loaded_model_says_which_weights_it_has(averaged: tuple[TrainResult, str]) -> None:
    result, _ = averaged
    for weights, words in (("raw", "raw weights (asked for)"), ("ema", "moving average of the weights (asked for)")):
        ear = Ear()
        trained = load_model(result.out / "last.pt", device="cpu", weights=weights, console=ear.console)
        assert words in ear.heard
        assert trained.weights == weights
        expected = trained.checkpoint.weights if weights == "raw" else trained.checkpoint.ema
        assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.model.state_dict().items())
    ear = Ear()
    trained = load_model(result.out / "best.pt", device="cpu", console=ear.console)
    assert "(the better ones in validation)" in ear.heard
    assert trained.weights == result.best["weights"]


def change(path: Path, out: Path, **parts: Any) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    for name, value in parts.items():
        setattr(checkpoint, name, value)
    save_checkpoint(out, checkpoint)
    return checkpoint


def test_average_that_is_not_there_is_one_clear_error(averaged: tuple[TrainResult, str], tmp_path: Path) -> None:
    path = tmp_path / "without.pt"
    change(averaged[0].out / "last.pt", path, ema={}, best={})
    with pytest.raises(UserError, match=r"without\.pt: this checkpoint holds no moving average .* take --weights raw"):
        load_model(path, device="cpu", weights="ema")
    assert load_model(path, device="cpu").weights == "raw"
    with pytest.raises(UserError, match="weights 'mean': give one of auto, raw, ema"):
        load_checkpoint(path).build_model("mean")


def test_command_line_says_it_in_one_line(
    averaged: tuple[TrainResult, str],
    toy_shards: Path,
    toy_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(averaged[0].out / "last.pt", tmp_path / "without.pt", ema={}, best={})
    arguments = ["--checkpoint", str(tmp_path / "without.pt"), "--weights", "ema", "--device", "cpu"]
    for command in (["eval", "--shards", str(toy_shards)], ["predict", str(toy_source), "--out", str(tmp_path / "pred")]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *arguments])
        assert stop.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert "holds no moving average of the weights (the run had ema.decay = 0): take --weights raw" in lines[-1]


def test_it_says_that_it_keeps_one(averaged: tuple[TrainResult, str]) -> None:
    assert "adam 0.003, constant, moving average of the weights (ema.decay 0.9)" in averaged[1]


def test_without_validation_auto_takes_the_weights_themselves(averaged: tuple[TrainResult, str], tmp_path: Path) -> None:
    change(averaged[0].out / "last.pt", tmp_path / "new.pt", best={})
    ear = Ear()
    assert load_model(tmp_path / "new.pt", device="cpu", console=ear.console).weights == "raw"
    assert "raw weights (nothing was validated)" in ear.heard


def test_checkpoint_from_before_there_were_averages_is_read(averaged: tuple[TrainResult, str], tmp_path: Path) -> None:
    tree = torch.load(averaged[0].out / "last.pt", weights_only=True)
    del tree["ema"], tree["best"]["weights"]
    torch.save(tree, tmp_path / "old.pt")
    old = load_checkpoint(tmp_path / "old.pt")
    assert old.ema == {}
    assert old.choose_weights()[0] == "raw"


@pytest.mark.parametrize(
    ("metric", "raw", "ema", "weights"),
    [
        ("mean_dice", 0.5, 0.6, "ema"),
        ("mean_dice", 0.6, 0.6, "raw"),
        ("mean_dice", None, 0.1, "ema"),
        ("mean_dice", 0.1, None, "raw"),
        ("val_loss", 0.5, 0.6, "raw"),
        ("val_loss", 0.6, 0.5, "ema"),
        ("val_loss", None, 0.5, "ema"),
        ("val_loss", None, None, "raw"),
    ],
)
def test_better_of_two(metric: str, raw: float | None, ema: float | None, weights: str) -> None:
    key = "loss" if metric == "val_loss" else metric
    found, scores = better_scores(metric, {"loss": 1.0, key: raw}, {"loss": 1.0, key: ema})
    assert found == weights
    assert scores[metric] == (raw if weights == "raw" else ema)


def test_plateau_watches_the_weights_themselves(toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average that gets better and better does not keep the rate up while the weights stand still."""
    monkeypatch.setattr(epoch, "draw_history", lambda run, rows: None)
    monkeypatch.setattr(loop, "draw_history", lambda run, rows: None)
    original, better = epoch.validate_both, iter(range(100))

    def validate_both(*args: Any, **kwargs: Any) -> Any:
        evaluation, ema = original(*args, **kwargs)
        object.__setattr__(evaluation, "loss", 1.0)
        object.__setattr__(ema, "loss", 0.9 - next(better) / 10)
        return evaluation, ema

    monkeypatch.setattr(epoch, "validate_both", validate_both)
    schedule = {"name": "plateau", "plateau_patience": 0, "plateau_factor": 0.5}
    config = make_config(ema={"decay": 0.5}, train={"epochs": 3}, schedule=schedule)
    result = train(toy_shards, config, tmp_path / "run")
    assert load_checkpoint(result.out / "last.pt").schedule["factor"] == 0.25
