"""The learning-rate test on toy data: the training's own steps, nothing left behind, plain words where there is no answer."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetfast import cli
from unetfast.checkpoint import load_checkpoint
from unetfast.config import Config, build_config, config_to_toml
from unetfast.errors import UserError
from unetfast.train import lrfind
from unetfast.train.log import read_rows
from unetfast.train.loop import train
from unetfast.train.lrfind import find_learning_rate, run_lr_find
from unetfast.train.lrjudge import RateTest, judge

MakeConfig = Callable[..., Config]
# runs that are looked at for their losses alone
QUIET: dict[str, Any] = {
    "log": {"every_steps": 1, "num_panels": 1, "num_saved_images": 0, "gif": False, "report": False},
    "eval": {"every_epochs": 100},
}


@pytest.fixture(scope="module")
def found(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RateTest, Path]:
    """A test of 80 steps with Adam, and the empty folder in which it ran."""
    torch.set_num_threads(1)
    tree: dict[str, Any] = {
        "model": {"base_channels": 4, "depth": 2},
        "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
        "train": {"amp": "off", "device": "cpu"},
        "loss": {"dice": 1.0},
    }
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        test = find_learning_rate(toy_shards, build_config(tree), num_steps=80, first=1e-6, last=10.0)
    return test, folder


def test_rates_grow_by_a_constant_factor(found: tuple[RateTest, Path]) -> None:
    rates = found[0].rates
    assert rates[0] == pytest.approx(1e-6)
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert factors == pytest.approx([1e7 ** (1 / 79)] * len(factors))


def test_it_finds_a_rate_that_trains(
    found: tuple[RateTest, Path], toy_shards: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    verdict = judge(found[0])
    assert verdict.suggestion is not None
    assert 1e-4 < verdict.suggestion < 0.3
    last_losses = []
    for place, rate in enumerate((verdict.suggestion / 100, verdict.suggestion)):
        config = make_config(
            loss={"dice": 1.0}, train={"max_steps": 18, "epochs": 9}, optimizer={"learning_rate": rate}, **QUIET
        )
        train(toy_shards, config, tmp_path / f"{place}")
        rows = read_rows(tmp_path / f"{place}" / "metrics.jsonl")
        last_losses.append(np.mean([row["loss"] for row in rows if row["kind"] == "train"][-3:]))
    assert last_losses[1] < 0.8 * last_losses[0]


def test_nothing_is_written(found: tuple[RateTest, Path]) -> None:
    assert list(found[1].iterdir()) == []


def test_its_steps_are_the_trainings(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """With all rates alike, the losses are those that training with this rate logs, step by step."""
    sections: dict[str, Any] = {
        "train": {"epochs": 9, "max_steps": 20, "accumulation": 2},
        "model": {"dropout": 0.2},
        "augment": {"hflip": {"prob": 0.5}},
        "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0},
        **QUIET,
    }
    train(toy_shards, make_config(**sections), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    wanted = [row["loss"] for row in rows if row["kind"] == "train"]
    test = find_learning_rate(toy_shards, make_config(**sections), num_steps=20, first=1e-3, last=1e-3 * (1 + 1e-12))
    assert test.losses == pytest.approx(wanted, rel=1e-5)


def test_schedule_average_and_early_stop_have_no_part(toy_shards: Path, make_config: MakeConfig) -> None:
    plain = find_learning_rate(toy_shards, make_config(), num_steps=20, first=1e-5, last=1e-2)
    others = make_config(
        schedule={"name": "one-cycle", "warmup_steps": 5},
        ema={"decay": 0.9},
        early_stop={"patience": 1},
        optimizer={"learning_rate": 0.5},
    )
    assert find_learning_rate(toy_shards, others, num_steps=20, first=1e-5, last=1e-2).losses == plain.losses


def test_it_starts_from_given_weights_and_leaves_them(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    train(toy_shards, make_config(train={"epochs": 6}, optimizer={"learning_rate": 1e-2}, **QUIET), tmp_path / "run")
    start = tmp_path / "run" / "last.pt"
    before = start.read_bytes()
    config = make_config(train={"init_checkpoint": str(start)})
    test = find_learning_rate(toy_shards, config, num_steps=20, first=1e-7, last=1e-6, console=ear.console)
    fresh = find_learning_rate(toy_shards, make_config(), num_steps=20, first=1e-7, last=1e-6)
    assert test.losses[0] < 0.7 * fresh.losses[0]
    assert f"weights {start}" in ear.heard
    assert start.read_bytes() == before
    assert load_checkpoint(start).step == 18


def test_rates_that_blow_up_at_once_get_no_suggestion(toy_shards: Path, make_config: MakeConfig) -> None:
    config = make_config(model={"norm": "none"}, optimizer={"name": "sgd"})
    test = find_learning_rate(toy_shards, config, num_steps=40, first=1e4, last=1e12)
    assert test.diverged
    assert len(test.rates) < 40
    verdict = judge(test)
    assert verdict.suggestion is None
    assert "diverged" in verdict.reason
    assert "smaller --from" in verdict.remedy


def test_rates_that_move_nothing_get_no_suggestion(toy_shards: Path, make_config: MakeConfig) -> None:
    verdict = judge(find_learning_rate(toy_shards, make_config(), num_steps=30, first=1e-12, last=1e-9))
    assert verdict.suggestion is None
    assert verdict.reason.startswith("the loss is flat over rates from 1e-12 to 1e-09")


def test_the_command_draws_and_says_what_to_do(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    toml, picture = tmp_path / "config.toml", tmp_path / "lr.png"
    toml.write_text(config_to_toml(make_config()))
    options = ["lr-find", "--shards", str(toy_shards), "--config", str(toml), "--out", str(picture)]
    options += ["--set", "loss.dice=1", "--from", "1e-6", "--to", "10", "--steps", "60"]
    with pytest.raises(SystemExit) as stop:
        cli.main(options)
    said = capsys.readouterr()
    assert not stop.value.code
    assert "result  learning rate 0.0" in said.out
    assert (
        f"next: unetfast train --shards {toy_shards} --config {toml} --set loss.dice=1 --set optimizer.learning_rate=0.0"
        in said.out
    )
    assert "U-Net 4..16" in said.err
    with Image.open(picture) as drawn:
        assert drawn.size == (1000, 600)

    with pytest.raises(SystemExit) as stop:
        cli.main([*options, "--to", "1e-5", "--steps", "20", "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1
    assert (tree["suggestion"], tree["num_steps"], tree["picture"]) == (None, 20, str(picture))
    assert len(tree["losses"]) == len(tree["rates"]) == 20


def test_plain_words_where_there_is_no_suggestion(toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = RateTest(20, [10.0 ** (place / 20 - 7) for place in range(20)], [0.7] * 20, [0.7] * 20)
    monkeypatch.setattr(lrfind, "find_learning_rate", lambda *_args, **_options: flat)
    out = io.StringIO()
    assert not run_lr_find(toy_shards, overrides=["train.device=cpu"], picture=tmp_path / "lr.png", stdout=out)
    lines = out.getvalue().splitlines()
    assert lines[1].startswith("result  no suggestion: the loss is flat")
    assert lines[2].startswith("next: take a larger --to")
    assert (tmp_path / "lr.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 19}, "--steps 19: at least 20"),
        ({"first": 0.0}, "--from 0 --to 1: both above 0"),
        ({"first": 1.0}, "--from 1 --to 1: both above 0, and the second larger"),
        ({"last": float("nan")}, "--from 1e-07 --to nan"),
        ({"picture": Path("lr.jpg")}, "--out lr.jpg: the picture is a PNG"),
        ({"picture": Path("nowhere/lr.png")}, "--out nowhere/lr.png: there is no folder nowhere"),
    ],
)
def test_a_bad_option_is_named(toy_shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_lr_find(toy_shards, **options)


def test_batch_size_auto_is_settled_first(toy_shards: Path, make_config: MakeConfig, ear: Any) -> None:
    config = make_config(loader={"batch_size": "auto"})
    test = find_learning_rate(toy_shards, config, num_steps=20, first=1e-5, last=1e-2, console=ear.console)
    assert "batch   auto: loader.batch_size = " in ear.heard
    assert len(test.losses) == 20


def test_several_processes_are_refused(toy_shards: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="lr-find works in one process"):
        find_learning_rate(toy_shards, make_config())
