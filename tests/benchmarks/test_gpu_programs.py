"""The programs behind gpu.sh, each tried on a CPU at a small scale: what they count, which bars they make, what they refuse."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import gpu_bars
import gpu_compile
import gpu_decode
import gpu_latency
import gpu_training
import loader_tax
import pytest
import torch
from decode_sides import DecodePlan, iter_orders
from torch import nn

from unetfast.bench.harness import spread
from unetfast.bench.toyshards import draw_toy
from unetfast.compilecache import keep_compiled
from unetfast.errors import UserError

NET = ["--set", "model.base_channels=2", "--set", "model.depth=1", "--set", "train.amp=off", "--set", "train.compile=off"]


def read_record(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def figures(**rounds: list[float]) -> dict[str, Any]:
    return {name.replace("_", "-"): {"images_per_s": spread(values)} for name, values in rounds.items()}


def test_a_bar_is_of_a_gpu_or_says_why_there_is_none() -> None:
    settings: dict[str, Any] = {"floor": 2.0, "goal": 3.0}
    assert gpu_bars.gpu_bar("G1", "what", [2.5, 2.0], device="cuda", **settings)["verdict"] == "pass"
    assert gpu_bars.gpu_bar("G1", "what", [1.5], device="cuda", **settings)["verdict"] == "short"
    assert gpu_bars.gpu_bar("G5", "what", [1.5], device="cuda", less_is_better=True, **settings)["verdict"] == "pass"
    absent = gpu_bars.gpu_bar("G1", "what", [9.0], device="cpu", **settings)
    assert (absent["verdict"], absent["ratio"], absent["note"]) == ("n/a", None, gpu_bars.NO_GPU)
    lost = gpu_bars.gpu_bar("G1", "what", [], device="cuda", **settings)
    assert (lost["verdict"], lost["note"]) == ("failed", "a side of it failed")
    assert gpu_bars.gpu_bar("G4", "what", None, device="cuda", **settings)["verdict"] == "failed"
    assert gpu_bars.gpu_bar("G4", "what", None, device="cuda", note="not compiled", **settings)["verdict"] == "n/a"
    assert gpu_bars.divide([6.0, 2.0], [3.0, 4.0]) == [2.0, 0.5]
    assert gpu_bars.divide([6.0], [3.0, 4.0]) == []


def test_training_bars_are_of_what_a_user_gets_without_a_setting() -> None:
    sides = figures(ours=[2000.0, 2200.0], graphs=[2300.0, 2400.0], eager=[1000.0, 2400.0], milesial=[1000.0, 1000.0])
    sides["float32-nchw"] = {"error": "out of memory"}
    bars = gpu_training.build_bars("cuda", (160, 240), sides)
    assert [bar["verdict"] for bar in bars] == ["pass", "pass", "pass", "failed"]
    assert bars[0]["what"] == "training step, 160x240"
    assert bars[0]["ratio"]["median"] == 2100
    assert bars[0]["note"] == "train.compile=graphs: 2350 images/s"
    assert bars[1]["ratio"]["rounds"] == [2.0, pytest.approx(0.9167, rel=1e-3)]
    lost = gpu_training.build_bars("cuda", (160, 240), sides | {"ours": {"error": "out of memory"}})
    assert [(bar["verdict"], bar["note"]) for bar in lost[:1]] == [("failed", "a side of it failed")]
    assert len(gpu_training.build_bars("cuda", (64, 96), sides)) == 3  # no floor for that size


def test_training_sides_train_the_same_batch(toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--device", "cpu", "--data", str(toy_root), "--size", "16x32", "--batch-size", "2"]
    command += ["--sides", "ours,graphs,milesial", *NET, "--rounds", "2", "--seconds", "0.01"]
    assert gpu_training.main(command) == 0
    record = read_record(capsys)
    sides = record["sizes"]["16x32"]["sides"]
    assert len(sides["ours"]["images_per_s"]["rounds"]) == len(sides["milesial"]["images_per_s"]["rounds"]) == 2
    assert sides["ours"]["facts"]["batch_size"] == sides["milesial"]["facts"]["batch_size"] == 2
    assert "CUDA graphs and needs a GPU" in sides["graphs"]["error"]  # no failure without one
    assert {bar["verdict"] for bar in record["bars"]} == {"n/a"}


def test_compiled_graphs_are_counted(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_plainly = nn.Module.compile
    # Dynamo alone: the counts are its own, and Inductor would take a minute
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: compile_plainly(self, **{**given, "backend": "eager"}))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shards = gpu_compile.pack_with_val(draw_toy("carvana", toy_root, small=True), "carvana")
    settings = [*NET[1:-2:2], "loader.size_hw=[16, 24]", "loader.batch_size=4", "loader.threads=1", "train.compile=on"]
    cold = gpu_compile.observe(gpu_compile.Start(shards, "cpu", tuple(settings), num_epochs=1))
    torch._dynamo.reset()
    assert [(stretch["stretch"], stretch["graphs"]) for stretch in cold["stretches"]] == [
        ("first step", 1),
        ("epoch 1, training", 1),
        ("epoch 1, validation", 2),
    ]
    assert gpu_compile.count_recompiles(cold["stretches"]) == 0
    bars = gpu_compile.build_bars("cuda", cold, [cold])
    assert [bar["verdict"] for bar in bars[:2]] == ["pass", "pass"]


def test_a_graph_too_many_is_a_recompile() -> None:
    stretches = [
        {"stretch": "first step", "graphs": 1, "graph_breaks": 0},
        {"stretch": "epoch 1, validation", "graphs": 2, "graph_breaks": 0},
        {"stretch": "epoch 2, training", "graphs": 3, "graph_breaks": 1},
    ]
    assert gpu_compile.count_recompiles(stretches) == 1
    cold = {"compiled": True, "stretches": stretches, "first_step_s": 30.0}
    bars = gpu_compile.build_bars("cuda", cold, [{"first_step_s": 9.0}])
    assert [bar["verdict"] for bar in bars] == ["short", "short", "pass"]
    cold["compiled"] = False
    assert {bar["note"] for bar in gpu_compile.build_bars("cuda", cold, [])} == {"the model is not compiled"}


def test_latency_is_told_of_each_call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_plainly = nn.Module.compile
    # Dynamo alone: Inductor would take a minute
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: compile_plainly(self, **{**given, "backend": "eager"}))
    torch._dynamo.reset()
    names = "ours,eager,folded,captured"
    command = ["--device", "cpu", "--size", "16x24", "--sides", names, *NET, "--rounds", "2", "--seconds", "0.01"]
    assert gpu_latency.main(command) == 0
    torch._dynamo.reset()
    told = capsys.readouterr().out
    record = json.loads(told.splitlines()[-1])
    for name in ("ours", "folded"):  # random weights: the logits of a pixel are often near to each other
        share = re.search(rf"^{name}: ([0-9.]+) % of class ids equal eager's$", told, re.MULTILINE)
        assert share
        assert float(share[1]) > 99
        assert len(record["sides"][name]["ms"]["rounds"]) == 2
    assert 0 < record["sides"]["eager"]["ms"]["median"] <= record["sides"]["eager"]["p95_ms"]["max"]
    assert record["sides"]["captured"] == {"error": "CUDA graphs need a GPU"}
    figures = {
        name: {"ms": spread(values)} for name, values in {"eager": [2.0, 2.2], "ours": [0.3, 0.5], "frozen": [0.1, 0.1]}.items()
    }
    bars = gpu_latency.build_bars("cuda", figures)
    assert [bar["ratio"]["median"] for bar in bars] == [0.4, pytest.approx(5.533, rel=1e-3)]
    assert {bar["verdict"] for bar in bars} == {"pass"}
    lost = gpu_latency.build_bars("cuda", {name: figures[name] for name in ("eager", "frozen")})
    assert {bar["verdict"] for bar in lost} == {"failed"}  # another side's figure is not ours


def test_starts_share_a_users_cache_that_is_empty_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/cache")
    before = os.environ.copy()
    with gpu_compile.empty_user_cache() as kept:
        assert keep_compiled() == kept
        assert gpu_compile.size_mib(kept) == 0
        (kept / "some").write_bytes(bytes(2**20))
        assert gpu_compile.size_mib(kept) == 1
    assert os.environ.copy() == before
    assert not kept.exists()


def test_dali_is_held_against_the_best_of_the_others() -> None:
    sides = figures(dali=[13_000.0, 12_500.0], cpu=[4000.0, 4000.0], workers_16=[5000.0, 10_000.0])
    sides["torchvision-cuda"] = {"error": "no CUDA"}
    ratio, speed = gpu_decode.build_bars("cuda", "ade20k", (256, 256), sides)
    assert ratio["what"].endswith("against workers-16")
    assert ratio["ratio"]["rounds"] == [2.6, 1.25]
    assert (ratio["verdict"], speed["verdict"]) == ("pass", "pass")


def test_decode_sides_are_known_by_name_and_order_is_without_a_seam() -> None:
    with pytest.raises(UserError, match="there are torchvision-cuda and workers-N"):
        _ = DecodePlan("workers-many", Path(), "cpu", (8, 8), 4).build
    orders = iter_orders(3, 2, seed=0)
    drawn = [*next(orders), *next(orders), *next(orders)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


def test_the_tax_of_each_side_is_a_bar() -> None:
    sides = {name: {"ratio": spread([0.99, 0.98, 0.99])} for name in ("dali", "cache-gpu", "cpu")}
    bars = loader_tax.build_bars("cuda", "clevr", 4, sides)
    assert [(bar["what"], bar["verdict"]) for bar in bars] == [
        ("loader tax, clevr, 4 cores, dali", "pass"),
        ("loader tax, clevr, 4 cores, cache-gpu", "pass"),
    ]
