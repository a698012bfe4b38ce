"""The loader benchmark and the loader's tax: small runs of the programs, and what they make of names and failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loader as benchmark
import loader_tax
import pytest
import sides

from unetfast.bench import toyshards
from unetfast.config import read_preset_tree
from unetfast.errors import UserError


def last_record(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    text = capsys.readouterr().out
    record: dict[str, Any] = json.loads(text.splitlines()[-1])
    return record, text


def plan(names: list[str], *, png: Path | None = None) -> list[sides.SidePlan]:
    return sides.plan_sides(names, read_preset_tree("carvana"), [], shards=Path("s"), png_shards=png, device="cpu")


def test_names_of_sides_carry_settings() -> None:
    fast, dali, threads, yardstick = plan(
        ["cpu-fast", "dali:hw_decoder_load=0.25:region_decode=never", "cpu:loader.threads=3", "yardstick"], png=Path("p")
    )
    assert (fast.config.loader.backend, fast.config.loader.decode) == ("cpu", "fast")
    assert (dali.config.loader.backend, dali.config.dali.hw_decoder_load, dali.config.dali.region_decode) == (
        "dali",
        0.25,
        "never",
    )
    assert threads.config.loader.threads == 3
    assert (yardstick.shards, fast.shards) == (Path("p"), Path("s"))
    assert fast.config.augment.rotation.prob == 0.5  # the preset's


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "no side 'gpu'; there are cpu"), ("dali:colour=1", "unknown key dali.colour"), ("yardstick", "--png-shards")],
)
def test_a_side_that_does_not_exist_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan([name])


def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--shards", str(tmp_path), "--sides", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--toy", "carvana", "--size", "160"])


def test_sides_are_measured_beside_one_that_fails(toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    # inflating on a GPU is refused where there is none
    names = "cpu,dali:inflate=gpu"
    arguments = [
        "--toy",
        "carvana",
        "--small",
        "--data",
        str(toy_root),
        "--size",
        "32x48",
        "--batch-size",
        "4",
        "--threads",
        "1",
    ]
    code = benchmark.main([*arguments, "--sides", names, "--rounds", "3", "--seconds", "0.1", "--json", str(out)])
    record, text = last_record(capsys)
    assert code == 1
    assert json.loads(out.read_text()) == record
    assert record["config"]["loader"]["size_hw"] == [32, 48]
    (data,) = record["data"].values()
    assert data["samples"] == 16
    cpu = record["sides"]["cpu"]
    assert cpu["batch"] == ["uint8 4x3x32x48 on cpu, channels_last", "uint8 4x32x48 on cpu"]
    assert len(cpu["images_per_s"]["rounds"]) == 3
    assert cpu["images_per_s"]["min"] > 0
    assert cpu["core_ms_per_image"]["median"] > 0
    assert cpu["ratio"] == {"to": "cpu", "median": 1.0, "min": 1.0, "max": 1.0, "rounds": [1.0] * 3}
    assert "UserError" in record["sides"]["dali:inflate=gpu"]["error"]
    assert "median (min..max) over rounds; ratio: images/s over that of cpu" in text


@pytest.mark.dali
@pytest.mark.parametrize("name", toyshards.TOY_SETS)
def test_the_yardstick_gives_batches_like_ours(name: str, toy_root: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    made = toyshards.make_toy_shards(name, toy_root, small=True)
    overrides = ["loader.size_hw=[48, 72]", "loader.batch_size=4", "loader.threads=1"]
    where = {"shards": made.shards, "png_shards": made.png_shards, "device": "cpu"}
    plans = sides.plan_sides(["cpu", "yardstick"], read_preset_tree(name), overrides, **where)
    ours, theirs = (plan.build(plan) for plan in plans)
    assert ours.facts["batch"] == theirs.facts["batch"]
    classes: list[set[int]] = []
    for side in (ours, theirs):
        classes.append({value for _ in range(8) for value in next(side.batches)[1].unique().tolist()})
        side.close()
    # a rotation leaves corners that are 0 there and to be ignored here
    assert classes[0] - {255} <= classes[1] | {0}
    assert classes[1] - {0} <= classes[0]


def test_the_yardstick_refuses_what_it_does_not_do(toy_root: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    made = toyshards.make_toy_shards("carvana", toy_root, small=True)
    where = {"shards": made.shards, "png_shards": made.png_shards, "device": "cpu"}
    [plan] = sides.plan_sides(["yardstick"], read_preset_tree("carvana"), ["augment.hue.prob=0.5"], **where)
    with pytest.raises(ValueError, match="knows no hue"):
        plan.build(plan)


TINY = ["--set", "model.base_channels=4", "--set", "model.depth=2", "--set", "loader.size_hw=[32, 48]"]


def test_the_tax_is_a_ratio_to_one_resident_batch(toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--toy", "carvana", "--small", "--data", str(toy_root), "--threads", "1", *TINY]
    code = loader_tax.main([*arguments, "--backends", "cpu", "--rounds", "2", "--seconds", "0.05"])
    record, text = last_record(capsys)
    assert code == 0
    assert (record["compiled"], record["preset"]) == (False, "carvana-cpu")
    assert record["errors"] == {}
    assert set(record["sides"]) == {"resident", "cpu"}
    assert record["sides"]["resident"]["ratio"]["rounds"] == [1.0, 1.0]
    for side in record["sides"].values():
        assert side["images_per_s"]["min"] > 0
        assert 0 <= side["data_wait_pct"]["median"] <= 100
    assert "ratio to resident" in text


def test_a_backend_that_fails_is_told_beside_the_others(
    toy_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = loader_tax.build_loader

    def refuse(reader: Any, config: Any, **options: Any) -> Any:
        if config.loader.backend == "dali":
            raise UserError("not here")
        return build(reader, config, **options)

    monkeypatch.setattr(loader_tax, "build_loader", refuse)
    arguments = ["--toy", "carvana", "--small", "--data", str(toy_root), "--threads", "1", *TINY]
    code = loader_tax.main([*arguments, "--backends", "dali,cpu", "--rounds", "1", "--seconds", "0.05"])
    record, _ = last_record(capsys)
    assert code == 1
    assert record["errors"] == {"dali": "not here"}
    assert set(record["sides"]) == {"resident", "cpu"}


def test_more_cores_than_there_are_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        loader_tax.main(["--toy", "carvana", "--cores", "4096"])
    assert caught.value.code == 2
    assert "--cores 4096: there are" in capsys.readouterr().err
