"""The start-up benchmark: what counts as a start, whose imports take long, and a small run of the program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import startup
from startup import Start, Took

from unetfast.bench.harness import SideError

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


def test_the_bar_is_of_whole_runs_of_help() -> None:
    (made,) = startup.build_bars({"help": [Took(0.1, 0.2, 0.1), Took(0.1, 0.4, 0.1), Took(0.1, 0.25, 0.1)]})
    assert made["ratio"]["median"] == 250
    assert made["verdict"] == "pass"
    assert startup.build_bars({"help": [Took(0.1, 0.31, 0.1)]})[0]["verdict"] == "short"
    assert startup.build_bars({}) == []


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    assert startup.main(["--quick", "--only", "help,mistyped-folder", "--json", str(path)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(path.read_text())
    assert set(record["sides"]) == {"help", "mistyped-folder"}
    assert record["sides"]["help"]["arguments"] == ["--help"]
    for side in record["sides"].values():
        assert len(side["end_s"]["rounds"]) == 2
        assert side["line_s"]["median"] <= side["end_s"]["median"]
        assert "torch" not in {one["package"] for one in side["imports"]}
    assert [made["bar"] for made in record["bars"]] == ["S1"]


def test_a_start_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        startup.main(["--quick", "--only", "nowhere"])
    assert "--only nowhere: there are help, version" in capsys.readouterr().err
