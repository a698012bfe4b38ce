"""The start-up benchmark: what counts as a start, whose imports take long, and a small run of the program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import startup
from startup import Start

from unetfast.bench.harness import SideError, spread

PYTHON = (sys.executable, "-c")


def test_a_start_is_told_by_its_useful_line_and_its_end() -> None:
    wanted = Start(["print('note'); print('usage: x'); raise SystemExit(2)"], "usage", 2)
    took, lines = startup.start(wanted, interpreter=PYTHON)
    assert lines == ["note", "usage: x"]
    assert took.end_s is not None
    assert 0 < took.line_s <= took.end_s
    assert took.core_s > 0


def test_a_command_that_goes_on_is_stopped_at_its_line() -> None:
    wanted = Start(["import time; print('config', flush=True); time.sleep(600)"], "config", None)
    took, lines = startup.start(wanted, interpreter=PYTHON)
    assert took.end_s is None
    assert lines == ["config"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('hello')", r"exit code 0, 'usage' expected, said: hello"),
        ("print('usage'); raise SystemExit(3)", r"exit code 3, .* said: usage"),
        ("pass", "said: nothing"),
    ],
)
def test_what_does_not_do_its_work_cannot_look_quick(code: str, said: str) -> None:
    with pytest.raises(SideError, match=said):
        startup.start(Start([code], "usage"), interpreter=PYTHON)


def test_imports_are_summed_up_by_package() -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:      2000 |       2000 |   torch.nn",
        "import time:      1500 |       3500 | torch",
        "import time:       700 |        700 | numpy.core",
        "usage",
    ]
    assert startup.rank_imports(lines) == [{"package": "torch", "ms": 3.5}, {"package": "numpy", "ms": 0.7}]


def made_side(*ends_s: float) -> dict[str, Any]:
    imports = [{"package": "typer", "ms": 16.2}]
    return {"end_s": spread(ends_s), "core_s": spread([0.1]), "imports": imports}


def test_the_bar_is_of_whole_runs_of_help() -> None:
    (made,) = startup.build_bars({"help": made_side(0.2, 0.4, 0.25)})
    assert made["ratio"]["median"] == 250
    assert (made["verdict"], made["note"]) == ("pass", "100 core-ms; the longest imports, ms: typer 16")
    assert startup.build_bars({"help": made_side(0.31)})[0]["verdict"] == "short"
    (lost,) = startup.build_bars({"help": {"error": "exit code 1"}})
    assert (lost["verdict"], lost["note"], lost["unit"]) == ("failed", "exit code 1", "ms")
    assert startup.build_bars({}) == []


def test_a_small_run(toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    assert startup.main(["--quick", "--only", "help,mistyped-folder", "--data", str(toy_root), "--json", str(path)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(path.read_text())
    assert set(record["sides"]) == {"help", "mistyped-folder"}
    assert record["sides"]["help"]["arguments"] == ["--help"]
    for side in record["sides"].values():
        assert len(side["end_s"]["rounds"]) == 2
        assert side["line_s"]["median"] <= side["end_s"]["median"]
        assert "torch" not in {one["package"] for one in side["imports"]}
    assert [made["bar"] for made in record["bars"]] == ["S1"]


def test_a_start_that_is_not_there_is_named(toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert startup.main(["--quick", "--only", "nowhere", "--data", str(toy_root)]) == 2
    assert "--only nowhere: there are help, version" in capsys.readouterr().err
