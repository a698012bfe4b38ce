"""The training-step benchmark: what counts as a ratio of equals, the peers' networks, and the sides at a small size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import inference
import pytest
import stepside
import torch
import training_step
from peers import nets

from unetfast.bench.harness import spread
from unetfast.model.unet import UNet

SPEC = stepside.NetSpec("ours", Path("s"), base_channels=16, batch_size=16, size_hw=(160, 240), seed=0)

MACHINE = {"matrix_gflop_per_s": {"bfloat16": 1050.0, "float32": 104.0}}


def figures(ours: list[float], **facts: Any) -> dict[str, Any]:
    mine = {"gflop_per_image": 10.5, "amp": "bf16", "losses": [0.7, 0.69, 0.68]} | facts
    theirs = {"gflop_per_image": 10.4, "losses": [0.7, 0.69, 0.68]}
    return {
        "ours": {"images_per_s": spread(ours), "facts": mine},
        "r1": {"images_per_s": spread([1.0, 2.0, 1.0]), "facts": theirs},
    }


def judge(ours: list[float], *, has_amx: bool = True, **facts: Any) -> dict[str, Any]:
    bar = training_step.judge(SPEC, figures(ours, **facts), "ours", MACHINE, has_amx=has_amx)
    assert bar is not None
    return bar


def test_ratios_are_of_the_same_round() -> None:
    bar = judge([4.0, 6.0, 5.0])
    assert bar["ratio"]["rounds"] == [4.0, 3.0, 5.0]
    assert bar["verdict"] == "pass"
    assert bar["note"].startswith(
        "ours reaches 52.5 of 1050 GFLOP/s that products of bfloat16 do (5 %); R1's reaches 10.4 of 104"
    )
    assert judge([2.0, 4.0, 3.0])["verdict"] == "short"


def test_less_work_or_a_loss_that_does_not_fall_is_no_ratio_of_equals() -> None:
    lighter = judge([9.0, 9.0, 9.0], gflop_per_image=9.0)
    assert (lighter["verdict"], lighter["note"]) == ("short", "our step has 9.0 GFLOP an image, R1's 10.4")
    for losses in ([0.7, 0.71], [0.7, float("nan")]):
        assert "the loss does not fall" in judge([9.0, 9.0, 9.0], losses=losses)["note"]


def test_a_processor_without_matrix_instructions_has_no_bar() -> None:
    bar = judge([9.0, 9.0, 9.0], has_amx=False)
    assert (bar["verdict"], bar["ratio"]) == ("n/a", None)
    assert "amx_bf16" in bar["note"]


def test_a_side_that_failed_leaves_a_line_and_one_that_nobody_asked_for_none() -> None:
    bar = training_step.judge(SPEC, {"r1": {}, "ours": {"error": "died of SIGKILL"}}, "ours", {}, has_amx=True)
    assert bar is not None
    assert (bar["verdict"], bar["ratio"], bar["note"]) == ("failed", None, "ours: died of SIGKILL")
    assert "16 base channels" in bar["what"]
    assert training_step.judge(SPEC, {"r1": {}}, "ours", {}, has_amx=True) is None
    with pytest.raises(SystemExit, match="2"):
        training_step.main(["--sides", "r1,theirs"])


def test_the_classic_net_is_ours_weight_by_weight() -> None:
    theirs, ours = nets.ClassicUNet(8, 2), UNet(2, base_channels=8)
    assert sorted(p.shape for p in theirs.parameters()) == sorted(p.shape for p in ours.parameters())
    assert nets.ClassicUNet(8, 1)(torch.zeros(1, 3, 32, 48)).shape == (1, 1, 32, 48)


@pytest.mark.parametrize("side", ["r1", "milesial", "ours"])
def test_a_side_trains_the_batch_that_all_get(side: str, toy_root: Path) -> None:
    shards = toy_shards(toy_root)
    built = stepside.build_net_side(stepside.NetSpec(side, shards, 2, 2, (32, 48), seed=0, threads=1))
    try:
        losses = built.facts["losses"]
        assert losses[-1] < losses[0]
        assert built.facts["gflop_per_image"] == pytest.approx(0.0071, rel=0.1)
        assert len(next(built.batches)[0]) == 2
    finally:
        built.close()


def test_prediction_is_scored_by_the_loaded_checkpoint(toy_root: Path) -> None:
    spec = stepside.NetSpec("ours", toy_shards(toy_root), 2, 2, (32, 48), seed=0, threads=1, trains=False)
    built = stepside.build_net_side(spec)
    try:
        assert "batch norm folded" in built.facts["what"]
        assert "losses" not in built.facts
        assert built.facts["gflop_per_image"] == pytest.approx(0.0071 / 3, rel=0.15)
    finally:
        built.close()


def test_inference_ratios_are_of_the_same_round() -> None:
    ratios = inference.compare(figures([4.0, 6.0, 5.0]))
    assert ratios["ours"]["rounds"] == [4.0, 3.0, 5.0]
    assert inference.compare({"ours": {"images_per_s": spread([1.0])}, "r1": {"error": "gone"}}) == {}


def test_without_a_rate_there_is_no_share() -> None:
    made = figures([4.0])
    assert training_step.tell_share(made["ours"], made["r1"], {"error": "no answer within 1 s"}) == ""
    made["ours"]["facts"]["gflop_per_image"] = None  # a compiled step, which torch cannot count
    assert training_step.tell_share(made["ours"], made["r1"], MACHINE).startswith("R1's reaches 10.4")


@pytest.mark.slow
@pytest.mark.parametrize("program", [training_step, inference])
def test_a_small_run(program: ModuleType, toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--quick", "--rounds", "1", "--data", str(toy_root)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(record["sides"]) == ["16: r1", "16: ours"]
    assert record["sides"]["16: ours"]["facts"]["config"]["model"]["base_channels"] == 2
    assert record["arguments"]["sides"] == "r1,ours"
    assert record["data"]["batch_size"] == {"16": 2}
    assert len(record["bars"]) == (program is training_step)


def toy_shards(root: Path) -> Path:
    from unetfast.bench.toyshards import draw_toy, pack_toy

    return pack_toy(draw_toy("carvana", root, small=True), "carvana")
