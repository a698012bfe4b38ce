"""`unetfast bench` from the command line to the record."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unetfast import cli
from unetfast.bench import model
from unetfast.bench.command import BenchRequest, run_bench
from unetfast.bench.machine import Machine
from unetfast.bench.opening import RUNGS
from unetfast.config import Config
from unetfast.errors import UserError

SMALL = ("model.base_channels=4", "model.depth=2", "loader.size_hw=[32,48]", "loader.batch_size=4", "train.device=cpu")


def measure(root: Path, **asked: Any) -> tuple[dict[str, Any], str, str]:
    """Run a small bench; returns record, stdout, stderr."""
    notes, results = io.StringIO(), io.StringIO()
    request = BenchRequest(
        **{
            **{"rung": "all", "shards": None, "toy": None, "data": root, "rounds": 2, "seconds": 0.02},
            **{"quick": True, "overrides": SMALL},
            **asked,
        }
    )
    record = run_bench(request, console=Console(file=notes, width=200), stdout=results)
    return record, results.getvalue(), notes.getvalue()


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def whole(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str, Path]:
    """All rungs on a toy set, once for all tests."""
    known = Machine({torch.float32: 1e12, torch.bfloat16: 2e12}, {torch.float32: 64, torch.bfloat16: 64}, 1e10)
    path, threads = tmp_path_factory.mktemp("records") / "new" / "bench.json", torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "measure_machine", lambda device, dtypes: known)
        record, results, notes = measure(toy_folder, toy="clevr", json=path, words=("bench", "--json", str(path)))
    torch.set_num_threads(threads)
    return record, results, notes, path


def test_all_rungs_are_measured_and_told(whole: tuple[dict[str, Any], str, str, Path]) -> None:
    record, results, notes, _ = whole
    assert list(record["rungs"]) == list(RUNGS)
    for rung in record["rungs"].values():
        assert len(rung["images_per_s"]["rounds"]) == 2
        assert rung["images_per_s"]["min"] > 0
        assert rung["core_s_per_image"]["median"] >= 0
        assert rung["host_peak_mib"] >= 0
    lines = results.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["rung", *RUNGS, "verdict"]
    assert record["verdict"]["limit"] in ("model", "cores", "loader")
    for word in ("toy     clevr, small images, seed 0", "config  preset clevr-cpu", "loader  cpu", "record  "):
        assert word in notes


def test_the_record_says_what_the_figures_depend_on(whole: tuple[dict[str, Any], str, str, Path]) -> None:
    record, _, _, path = whole
    assert json.loads(path.read_text()) == record
    assert record["benchmark"] == "bench"
    assert record["command"] == ["bench", "--json", "bench.json"]  # the folder is this machine's
    assert str(path.parent) not in path.read_text()
    assert record["toy"] == {"name": "clevr", "seed": 0, "small": True}
    assert (record["data"]["dataset"], record["data"]["samples"]) == ("clevr", 16)
    assert record["config"]["model"]["base_channels"] == 4
    assert {"processor", "cores", "packages", "git_revision", "utc"} <= set(record["environment"])
    assert record["rungs"]["model"]["facts"]["batch_size"] == 4
    assert record["rungs"]["model"]["facts"]["gflop_step_per_image"] > 0
    assert record["verdict"]["next"]
    assert record["other_cores"] is None or record["other_cores"] >= 0


def test_a_record_is_held_against_a_later_one(whole: tuple[dict[str, Any], str, str, Path], toy_folder: Path) -> None:
    _, _, _, path = whole
    record, results, _ = measure(toy_folder, toy="clevr", rung="read", compare=path)
    assert set(record["comparison"]["rungs"]) == {"read"}
    assert record["comparison"]["comparable"]
    assert record["comparison"]["missing"] == ["loader", "model", "shard", "train"]
    assert f"against {path}" in results
    assert "fewer than 4 rounds" in results


def test_one_rung_on_given_shards(car_shards: Path, tmp_path: Path) -> None:
    record, results, notes = measure(tmp_path, shards=car_shards, rung="loader", json=Path("-"))
    assert list(record["rungs"]) == ["loader"]
    assert record["toy"] is None
    assert json.loads(results.splitlines()[-1]) == record
    assert "toy " not in notes
    assert f"data    {car_shards} (carvana, " in notes
    assert "loader  cpu (no GPU is used), 32x48 (stored " in notes
    assert list(tmp_path.iterdir()) == []  # nothing was drawn, and what was packed is gone


@pytest.mark.parametrize("option", ["data", "json"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    option: str, car_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below" / "bench.json"
    with pytest.raises(UserError, match=f"--{option} .*cannot be made"):
        measure(**{"root": tmp_path, "shards": car_shards, "rung": "read", option: place})


def test_a_profile_lies_beside_the_record(car_shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    record, results, notes = measure(tmp_path, shards=car_shards, rung="read", profile=True, json=path)
    assert (tmp_path / "bench-trace.json.gz").is_file()
    assert record["profile"]["trace"] == "bench-trace.json.gz"
    assert len(record["profile"]["kernels"]) == 10
    assert record["profile"]["kernels"][0]["name"].split(" ")[0] in results
    assert "bench-trace.json.gz" in notes


def test_an_ablation_gets_shards_config_and_a_source(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.bench import ablate

    asked: dict[str, Any] = {}

    def note(shards: Path, config: Config, **settings: Any) -> dict[str, Any]:
        asked.update(shards=shards, config=config, **settings)
        return {"switched": {}}

    monkeypatch.setattr(ablate, "run_ablation", note)
    monkeypatch.setattr(ablate, "format_ablation", lambda told: f"ablation of {len(told)}")
    record, results, _ = measure(toy_folder, toy="clevr", rung="read", ablate=True)
    assert record["ablation"] == {"switched": {}}
    assert "ablation of 1" in results
    assert (asked["shards"] / "manifest.json").is_file()
    assert asked["source"].is_dir()
    assert asked["config"].model.base_channels == 4
    assert (asked["rounds"], asked["seconds"]) == (2, 0.02)


def test_a_run_that_only_repeats_steps_never_ends_or_freezes(car_shards: Path, tmp_path: Path) -> None:
    # this schedule ends after one step at a rate of 0, and needs a val split that the shards do not have
    overrides = (*SMALL, "train.max_steps=1", "schedule.name=plateau", "early_stop.patience=2")
    record, _, _ = measure(tmp_path, shards=car_shards, rung="train", overrides=overrides)
    assert record["config"]["schedule"]["name"] == "constant"
    assert record["rungs"]["train"]["images_per_s"]["min"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--shards FOLDER", "--toy carvana"]),
        (["--shards", "a", "--toy", "clevr"], ["--shards a", "--toy clevr", "one of them"]),
        (["--shards", "NOWHERE"], ["nowhere"]),
        (["--toy", "clevr", "--rounds", "0"], ["--rounds 0"]),
        (["--toy", "clevr", "--seconds", "0"], ["--seconds 0"]),
        (["--toy", "clevr", "--seconds", "nan"], ["--seconds nan"]),
        (["--toy", "clevr", "--seed", "-1"], ["--seed -1"]),
        (["--toy", "clevr", "--compare", "NOWHERE"], ["nowhere", "unetfast bench --json"]),
        (["--toy", "clevr", "--json", "FOLDER"], ["--json", "give a file"]),
        (["--toy", "clevr", "--set", "nonsense"], ["nonsense"]),
        (["--toy", "clevr", "--preset", "nonsense"], ["nonsense"]),
        (["flying"], ["flying", "unetfast bench --help"]),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"NOWHERE": str(tmp_path / "nowhere"), "FOLDER": str(tmp_path)}
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *(paths.get(word, word) for word in arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for word in words:
        assert word in captured.err


def test_shards_that_lie_here_are_named(
    car_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").symlink_to(car_shards)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["bench"])
    assert "--shards shards" in capsys.readouterr().err


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    for arguments in (["bench"], ["bench", "--toy", "clevr", "--compare", str(tmp_path / "nowhere.json")]):
        code = f"import sys\nfrom unetfast import cli\ntry: cli.main({arguments!r})\nexcept SystemExit as stop: "
        code += "sys.exit(99 if 'torch' in sys.modules else stop.code)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2, done.stderr


def test_the_command_line_reaches_the_measurement(car_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for override in SMALL for word in ("--set", override)]
    path = tmp_path / "bench.json"
    arguments = ["bench", "read", "--shards", str(car_shards), "--data", str(tmp_path), "--rounds", "1", "--seconds", "0.01"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json", str(path), *settings])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.startswith("rung")
    record = json.loads(path.read_text())
    assert (record["rounds"], record["seconds"], record["toy"]) == (1, 0.01, None)
