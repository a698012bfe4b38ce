"""The model rung: training's own step on one batch, and its figures against the device's limits."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unetfast.bench import model as model_module
from unetfast.bench.command import BenchRequest, run_bench
from unetfast.bench.machine import Machine
from unetfast.bench.model import ModelRung, judge_step, measure_model, repeat_batch
from unetfast.train.run import Run
from unetfast.train.step import train_step

BuildRun = Callable[..., Run]


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Machine({torch.float32: 1e10, torch.bfloat16: 4e10}, {torch.float32: 64}, 1e9)
    monkeypatch.setattr(model_module, "measure_machine", lambda device, dtypes: known)


def test_batch_is_kept_in_memory_of_its_own(build_small_run: BuildRun) -> None:
    batch = next(iter(build_small_run().loader))
    image_NCHW = batch.image_NCHW.clone()
    batches = repeat_batch(batch)
    first = next(batches)
    batch.image_NCHW.zero_()
    assert first is next(batches)
    assert torch.equal(first.image_NCHW, image_NCHW)
    assert first.image_NCHW.stride() == batch.image_NCHW.stride()


def test_rung_takes_training_steps_and_tells_their_limits(build_small_run: BuildRun) -> None:
    run = build_small_run()
    before = [weight.clone() for weight in run.model.parameters()]
    result = measure_model(run, next(iter(run.loader)), rounds=2, seconds=0.01)
    assert run.step > 6
    assert not any(torch.equal(weight, former) for weight, former in zip(run.model.parameters(), before, strict=True))
    facts = json.loads(json.dumps(result.to_json()))["facts"]
    assert result.name == "model"
    assert len(facts["step_ms"]["rounds"]) == 2
    assert "data_wait_pct" not in facts
    assert facts["matrix_tflop_per_s"] == 0.01
    assert facts["bandwidth_gb_per_s"] == 1
    assert facts["parameters"] == sum(weight.numel() for weight in run.model.parameters())
    assert "% of a step" in facts["next_limit"]


def test_shares_are_limits_over_the_measured_step(build_small_run: BuildRun) -> None:
    run = build_small_run()
    batch = next(iter(run.loader))
    train_step(run, batch)
    facts = judge_step(run, batch, step_s=2.0)
    flop_s = 4 * facts["gflop_step_per_image"] * 1e9 / 1e10
    assert facts["share_of_matrix_rate_pct"] == pytest.approx(100 * flop_s / 2, rel=1e-3)
    assert facts["share_of_roofline_pct"] == pytest.approx(100 * 4 / facts["roofline_images_per_s"] / 2, rel=1e-3)
    assert facts["roofline"]["counted"] == "eager"
    assert facts["roofline"]["fused_ms"] < facts["roofline"]["eager_ms"]
    assert facts["roofline"]["measured_ms"] > 0
    assert facts["roofline"]["arithmetic_ms"] == pytest.approx(1000 * flop_s, rel=1e-3)


def test_bf16_is_held_to_its_own_rate(build_small_run: BuildRun) -> None:
    run = build_small_run(train={"amp": "bf16"})
    batch = next(iter(run.loader))
    train_step(run, batch)
    assert judge_step(run, batch, step_s=1.0)["matrix_tflop_per_s"] == 0.04


def test_step_that_cannot_be_counted_is_measured_and_says_why(
    build_small_run: BuildRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise model_module.NotTraceableError("out of memory on cpu")

    monkeypatch.setattr(model_module, "trace_step", refuse)
    run = build_small_run()
    rung = ModelRung(run, next(iter(run.loader)))
    rung.warm_up(0.01)
    assert rung.run_round().num_images > 0
    facts = rung.describe()
    assert facts["not_counted"] == "out of memory on cpu"
    assert "roofline" not in facts


def test_untraced_rung_tells_only_its_steps(build_small_run: BuildRun) -> None:
    run = build_small_run()
    rung = ModelRung(run, next(iter(run.loader)), name="without bf16", traced=False)
    rung.warm_up(0.01)
    rung.run_round()
    assert rung.name == "without bf16"
    assert "machine" not in rung.describe()


def test_command_shows_levels_of_the_model_rung(car_shards: Path, tmp_path: Path, one_thread: None) -> None:
    settings = ("model.base_channels=4", "model.depth=2", "loader.size_hw=[32,48]", "train.device=cpu")
    shown = io.StringIO()
    asked = BenchRequest("model", car_shards, None, tmp_path, overrides=settings, rounds=1, seconds=0.01)
    record = run_bench(asked, console=Console(file=io.StringIO()), stdout=shown)
    lines = shown.getvalue().splitlines()
    assert [level["level_hw"] for level in record["rungs"]["model"]["facts"]["roofline"]["levels"]] == [
        [32, 48],
        [16, 24],
        [8, 12],
        None,
    ]
    assert [line.split()[0] for line in lines[-5:]] == ["level", "32x48", "16x24", "8x12", "weights"]
