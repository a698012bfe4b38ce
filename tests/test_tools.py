"""The programs in tools/: every gate runs, and toy data is written."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"


def load_tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_gates_run_after_one_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check = load_tool("check", monkeypatch)
    bad = check.Gate("bad", [sys.executable, "-c", "raise SystemExit(3)"])
    missing = check.Gate("missing", [str(tmp_path / "no-such-program")])
    good = check.Gate("good", [sys.executable, "-c", "print('here:' + __import__('os').getcwd())"])
    assert not check.run_gates([bad, missing, good], root=tmp_path)
    text = capfd.readouterr().out
    assert f"here:{tmp_path}" in text
    assert "bad" in text.split("== all gates")[1]
    assert "FAILED (exit code 3)" in text
    assert "make venv" in text
    assert check.run_gates([good], root=tmp_path)


def test_the_gates_are_all_there_and_pytest_takes_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    check = load_tool("check", monkeypatch)
    gates = check.list_gates(["-k", "this"])
    assert [gate.name for gate in gates] == ["format", "lint", "types", "imports", "tests"]
    assert gates[-1].command[-2:] == ["-k", "this"]


def test_the_exit_code_tells_whether_all_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = load_tool("check", monkeypatch)
    monkeypatch.setattr(check, "run_gates", lambda gates, root: False)
    assert check.main([]) == 1
    monkeypatch.setattr(check, "run_gates", lambda gates, root: True)
    assert check.main([]) == 0


def test_toy_data_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_toy = load_tool("make_toy", monkeypatch)
    out = tmp_path / "Data"
    assert make_toy.main(["carvana", str(out), "--groups", "2", "--images", "1", "--size", "32", "48"]) == 0
    assert len(list((out / "train").iterdir())) == 2
    assert "4 files" in capsys.readouterr().out


def test_wrong_toy_arguments_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy = load_tool("make_toy", monkeypatch)
    assert make_toy.main(["carvana", str(tmp_path), "--layout", "flat"]) == 2
    assert capsys.readouterr().err.startswith("error: toy carvana has no layout")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_help_names_every_target_and_make_bench_runs_the_bars() -> None:
    text = (ROOT / "Makefile").read_text()
    told = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert told is not None
    # the gates themselves are run by make, whose flags and level a make within would take over
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}

    def make(*words: str) -> str:
        done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True, env=alone)
        return done.stdout

    assert {line.split()[1] for line in make("help").splitlines()} == {*told[1].split()} - {"help"}
    planned = make("-n", "bench", "ARGS=--only C1")
    assert planned.rstrip().endswith("benchmarks/bars.py --only C1")


def test_every_module_of_the_tests_has_a_name_of_its_own() -> None:
    """Tests are no packages: of two modules with one name in two folders, pytest imports one and refuses the other."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
