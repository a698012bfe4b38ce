"""gpu.sh: tried without a GPU, and its summary of parts that ended in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_summary
import pytest
from bar import make_bar

ROOT = Path(__file__).parents[2]


def write_work(work: Path, lines: list[str]) -> None:
    work.mkdir()
    (work / "parts.tsv").write_text("".join(f"{line}\n" for line in lines))


def test_the_summary_tells_how_each_part_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    write_work(work, ["a\t0\t3\t60", "b\t1\t2\t60", "c\t124\t60\t60", "d\t139\t1\t60", "e\tno time\t0\t60", "tests\t1\t9\t99"])
    (work / "b.log").write_text("one\nboom: it broke\n")
    (work / "c.log").write_text("")
    (work / "a.json").write_text('{"benchmark": "loader", "sides": {"x": {"error": "why"}}}')
    (work / "d.json").write_text('{"benchmark": "lo')
    cases = "<testcase classname='m' name='ok'/><testcase classname='m' name='bad'><failure/></testcase>"
    cases += "<testcase classname='' name='tests.n'><error/></testcase><testcase name='s'><skipped/></testcase>"
    (out / "pytest.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert gpu_summary.main([str(work), str(out)]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    parts = summary["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "a": "ok",
        "b": "failed",
        "c": "timeout",
        "d": "crashed (signal 11)",
        "e": "no time",
        "tests": "failed",
    }
    assert not summary["ok"]
    assert parts["a"]["found"] == {"x": {"error": "why"}}
    assert parts["b"]["last_line"] == "boom: it broke"
    assert parts["c"]["limit_s"] == 60
    counts = {"passed": 1, "failed": 1, "error": 1, "skipped": 1}
    assert parts["tests"]["found"] == counts | {"names": ["failed: m::bad", "error: ::tests.n"]}
    assert list(json.loads((out / "records.json").read_text())) == ["a"]


def test_tests_that_had_no_time_for_their_report_are_counted_from_the_log(tmp_path: Path) -> None:
    write_work(tmp_path / "work", ["tests\t124\t150\t150"])
    (tmp_path / "work" / "tests.log").write_text("[gw0] PASSED a::b\n[gw1] FAILED a::c\nPASSED a::d\n")
    summary, _ = gpu_summary.build_summary(tmp_path / "work", tmp_path)
    counts = {"passed": 2, "failed": 1, "error": 0, "skipped": 0}
    assert summary["parts"]["tests"]["found"] == {"from": "the log", **counts}


def test_one_part_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_work(tmp_path / "work", ["b\t1\t2\t60"])
    (tmp_path / "work" / "b.log").write_text("boom\n")
    assert gpu_summary.main([str(tmp_path / "work"), str(tmp_path), "--tell", "b"]) == 0
    assert capsys.readouterr().out == "b: failed, 2 s boom\n"


@pytest.mark.slow
@pytest.mark.dali
def test_the_script_runs_without_a_gpu_and_goes_on_behind_a_part_that_fails(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    parts = ["environment", "probe", "data", "tests", "parity-clevr", "latency", "loader-clevr-64x96"]
    settings = {
        "PYTHON": sys.executable,
        "UNETFAST_BENCH_DEVICE": "cpu",
        "UNETFAST_BENCH_SCALE": "small",
        "UNETFAST_BENCH_SECONDS": "1000",
        "UNETFAST_BENCH_PARTS": ",".join(parts),
        "UNETFAST_BENCH_BREAK": "probe",
    }
    out = tmp_path / "out"
    command = [str(ROOT / "benchmarks" / "gpu.sh"), str(out)]
    told = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False, cwd=tmp_path)
    summary = json.loads(told.stdout.splitlines()[-1])
    assert summary["not_ok"] == {"probe": "failed"}, told.stdout + told.stderr
    assert told.returncode == 1
    assert set(summary["parts"]) == set(parts)
    assert summary["parts"]["probe"]["last_line"] == "broken on purpose"
    assert summary["parts"]["tests"]["found"]["failed"] == summary["parts"]["tests"]["found"]["error"] == 0
    # parts behind the one that failed
    assert summary["parts"]["parity-clevr"]["found"]["default"][2]  # the bounds hold
    assert summary["parts"]["loader-clevr-64x96"]["found"]["dali"]["images_per_s"][0] > 0
    assert [bar["verdict"] for bar in summary["bars"]] == ["n/a", "n/a"]  # latency's
    assert sum(line.startswith("| G5 | latency") for line in told.stdout.splitlines()) == 2
    files = list(out.iterdir())
    assert {file.name for file in files} == {"summary.json", "records.json", "log.txt", "environment.txt", "pytest.xml"}
    assert all(0 < file.stat().st_size < 16 << 20 for file in files)
    assert "broken on purpose" in (out / "log.txt").read_text()


def test_no_part_begins_behind_the_deadline(tmp_path: Path) -> None:
    settings = {"PYTHON": sys.executable, "UNETFAST_BENCH_SECONDS": "0", "UNETFAST_BENCH_PARTS": "probe,tax-clevr"}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    told = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert json.loads(told.stdout.splitlines()[-1])["not_ok"] == {"probe": "no time", "tax-clevr": "no time"}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("load", {"environment", "data", "tax-carvana", "tax-clevr", "tax-ade20k", "decode-carvana", "decode-ade20k"}),
        ("train,tax-clevr", {"environment", "training-160x240", "training-640x960", "compile", "latency", "tax-clevr"}),
        ("nothing", {"nothing"}),
    ],
)
def test_a_group_is_asked_for_by_its_name(tmp_path: Path, asked: str, names: set[str]) -> None:
    settings = {"PYTHON": sys.executable, "UNETFAST_BENCH_SECONDS": "0", "UNETFAST_BENCH_PARTS": asked}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    told = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    found = json.loads(told.stdout.splitlines()[-1])["not_ok"]
    assert names <= found.keys()
    assert not any(name.startswith(("parity", "unit", "probe", "tests")) for name in found)
    assert ("latency" in found) == ("train" in asked)


def test_bars_are_told_as_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_work(tmp_path / "work", ["b\t0\t1\t60", "a\t0\t1\t60"])
    for name, rounds in (("a", [2.0, 1.0]), ("b", [0.25])):
        bar = make_bar("G1" if name == "a" else "G2", f"what {name}", rounds, floor=1.25, goal=2)
        (tmp_path / "work" / f"{name}.json").write_text(json.dumps({"benchmark": "gpu_x", "bars": [bar]}))
    assert gpu_summary.main([str(tmp_path / "work"), str(tmp_path)]) == 0  # short is no failure of the script
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "| G1 | what a | 1.5 (1..2) | 1.25x | 2x | pass |"
    assert lines[1].strip() == "| G2 | what b | 0.25 (0.25..0.25) | 1.25x | 2x | short |"
    assert len(json.loads(lines[2])["bars"]) == 2


def test_the_script_wants_a_folder() -> None:
    told = subprocess.run([str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (2, "usage: benchmarks/gpu.sh OUT\n")


def test_a_training_step_needs_neither_matplotlib_nor_tensorboard() -> None:
    code = """
import sys
for name in ("matplotlib", "tensorboard", "hypothesis", "torchmetrics", "sklearn", "webdataset"):
    sys.modules[name] = None
import unetfast.data.pack, unetfast.data.toy, unetfast.loader.build, unetfast.train.loop, unetfast.train.setup
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert told.returncode == 0, told.stderr
