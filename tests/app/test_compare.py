"""`unetfast compare` and `unetfast report` as commands, on run folders made by hand from rows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console

from unetfast.app.compare import compare_runs
from unetfast.cli import main
from unetfast.config import Config
from unetfast.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "viz"))
from toy_record import make_facts, make_rows

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str, *, rate: float = 1e-4, classes: int = 4, shift: float = 0.0, digest: str = "0123456789abcdef") -> Path:
        run = tmp_path / name
        run.mkdir()
        config = Config().model_dump(mode="json")
        config["optimizer"]["learning_rate"] = rate
        (run / "config.toml").write_text(tomli_w.dumps(config))
        rows = make_rows(classes)
        for row in rows:
            if "mean_dice" in row:
                row["mean_dice"] += shift
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "facts.json").write_text(json.dumps(make_facts(classes, digest=digest)))
        return run

    return make


def compare(*runs: Path, **options: Any) -> str:
    file = io.StringIO()
    compare_runs(runs, results=Console(file=file, width=80), **options)
    return file.getvalue()


def test_scores_deltas_config_and_speed_are_told(make_run: MakeRun) -> None:
    text = compare(make_run("a"), make_run("b", rate=0.25, shift=-0.5))
    lines = [line.split() for line in text.splitlines()]
    assert ["best", "validation", "a", "b"] in lines
    assert ["mean", "Dice", "0.7600", "0.2600", "(-0.5000)"] in lines
    assert ["mean", "IoU", "0.5100", "0.5100", "(±0)"] in lines
    assert ["at", "step", "50", "(EMA)", "50", "(EMA)"] in lines
    assert ["optimizer.learning_rate", "0.0001", "0.25"] in lines
    assert ["images/s,", "median", "103.0", "103.0"] in lines
    assert ["data-wait,", "median,", "%", "2.0", "2.0"] in lines
    assert "not comparable" not in text


def test_three_runs_on_other_data_are_told_apart(make_run: MakeRun) -> None:
    text = compare(make_run("a"), make_run("b"), make_run("c", digest="ff"))
    assert text.startswith("not comparable: the data differs: a: folder, 160 train / 40 val, digest 0123456789abcdef; b:")
    assert "c: folder, 160 train / 40 val, digest ff" in text


def test_json_is_one_object_with_everything(make_run: MakeRun) -> None:
    tree = json.loads(compare(make_run("a"), make_run("b", rate=0.25, classes=20), json=True))
    assert tree["comparable"] is False
    assert tree["config"] == {"optimizer.learning_rate": [1e-4, 0.25]}
    assert [run["best"]["weights"] for run in tree["runs"]] == ["ema", "ema"]
    assert tree["runs"][0]["gpu_memory_gib"] == 2.0
    assert tree["classes"] == []


def test_many_classes_are_cut_on_a_terminal_and_whole_in_json(make_run: MakeRun) -> None:
    runs = (make_run("a", classes=30), make_run("b", classes=30))
    assert "and 18 classes with smaller differences; --json lists all" in compare(*runs)
    assert len(json.loads(compare(*runs, json=True))["classes"]) == 30


def test_a_page_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    notes = io.StringIO()
    out = tmp_path / "compare.html"
    compare(make_run("a"), make_run("b"), out=out, console=Console(file=notes, width=300))
    assert "</html>" in out.read_text(encoding="utf-8")
    assert f"page    {out}; open it in a browser" in notes.getvalue()


def test_what_cannot_be_compared_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    with pytest.raises(UserError, match=r"give two run folders or more"):
        compare(run)
    with pytest.raises(UserError, match=r"a: given twice; a run cannot be compared with itself"):
        compare(run, tmp_path / "." / "a")
    with pytest.raises(UserError, match=r"nowhere: no such run folder"):
        compare(run, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a folder; give --out a file"):
        compare(run, make_run("b"), out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compare", "{a}", "{b}"], 0, ""),
        (["compare", "{a}", "{b}", "--json"], 0, ""),
        (["compare", "{a}"], 2, "error: compare: give two run folders or more"),
        (["compare", "{a}", "{a}/missing"], 2, "no such run folder"),
        (["report", "{a}"], 0, "report.html"),
        (["report", "{a}/missing"], 2, "error: "),
    ],
)
def test_commands(
    arguments: list[str], code: int, words: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = {name: str(make_run(name)) for name in ("a", "b")}
    with pytest.raises(SystemExit) as stop:
        main([argument.format(**runs) for argument in arguments])
    said = capsys.readouterr()
    assert (stop.value.code or 0) == code
    assert words in said.err
    if code == 2:
        assert said.out == ""
        assert "Traceback" not in said.err
    if "--json" in arguments:
        json.loads(said.out)


def test_reading_runs_imports_no_torch(make_run: MakeRun) -> None:
    code = "import sys\nfrom unetfast.cli import main\ntry: main()\nexcept SystemExit as stop: print(stop.code"
    code += ", 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "compare", str(make_run("a")), str(make_run("b"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-1] in ("0 False", "None False")
