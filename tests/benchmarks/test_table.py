"""The README's table of bars: made from records alone, and held to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bar
import pytest
import table

AROUND = {
    "processor": "Some CPU",
    "cores": 2,
    "cpu_features": ["avx2", "avx512f"],
    "gpus": [],
    "packages": {"torch": "2.14.1"},
    "git_revision": "abc",
    "utc": "2026-11-21T10:00:00+00:00",
}
CPU: dict[str, Any] = {
    "environment": AROUND,
    "bars": [
        bar.make_bar("C3", "reader", [4.0], floor=5, goal=10, note="hashing"),
        bar.make_bar("C1", "writer", [4.0, 5.0], floor=3.5, goal=6, note="bytes are the same"),
    ],
}
GPU: dict[str, Any] = {
    "environment": AROUND | {"gpus": ["NVIDIA H200"]},
    "bars": [
        bar.absent_bar("G1", "training", floor=2100, goal=2550, unit="images/s", reason="no time"),
        bar.lost_bar("G5", "latency", floor=0.4, goal=0.18, unit="ms", less_is_better=True, reason="out of memory"),
    ],
}
PAGE = f"# Page\n\n{table.BEGIN}\nold\n{table.END}\n\nmore\n"


def test_the_table_holds_all_bars_where_they_come_from_and_what_is_open() -> None:
    made = table.make_table({"bench-cpu.json": CPU, "bench-gpu.json": GPU}, plot=Path("docs/images/bars.png"))
    assert made.splitlines()[2:] == [
        "| C1 | writer | 4.5 (4..5) | 3.5x | 6x | pass |",
        "| C3 | reader | 4 (4..4) | 5x | 10x | short |",
        "| G1 | training | - | 2100 images/s | 2550 images/s | n/a |",
        "| G5 | latency | - | <= 0.4 ms | <= 0.18 ms | failed |",
        "",
        "- 2 cores of Some CPU (avx512f); torch 2.14.1; revision abc; 2026-11-21; `benchmarks/results/bench-cpu.json`",
        "- NVIDIA H200; torch 2.14.1; revision abc; 2026-11-21; `benchmarks/results/bench-gpu.json`",
        "- C3 short, reader: hashing",
        "- G1 n/a, training: no time",
        "- G5 failed, latency: out of memory",
        "",
        "<details><summary>Bars past their floors, not at their goals: what their time goes to</summary>",
        "",
        "- C1 pass, writer: bytes are the same",
        "",
        "</details>",
        "",
        "![Each bar over its floor, with its goal](docs/images/bars.png)",
    ]


@pytest.mark.parametrize(("median", "less_is_better", "is_there"), [(6, False, True), (5, False, False), (5, True, True)])
def test_a_goal_is_reached_from_its_own_side(median: float, less_is_better: bool, is_there: bool) -> None:
    made = bar.make_bar("C1", "writer", [median], floor=4, goal=6, less_is_better=less_is_better)
    assert table.reaches_goal(made) is is_there


def test_records_of_both_sides_are_read_and_others_are_not(tmp_path: Path) -> None:
    for name in ("bench-gpu-train.json", "bench-cpu.json", "bench-model-cpu.json", "bench-gpu-load.json", "demo.json"):
        (tmp_path / name).write_text(json.dumps({"name": name}))
    found = table.read_records(tmp_path)
    assert list(found) == ["bench-cpu.json", "bench-gpu-load.json", "bench-gpu-train.json"]
    assert all(record == {"name": name} for name, record in found.items())


def test_a_busy_machine_stands_beside_its_figures() -> None:
    assert "; beside other work (load 3.2);" in table.describe_origin("a", CPU | {"load_before": 3.2})
    assert "other work" not in table.describe_origin("a", CPU | {"load_before": 0.3})


def test_without_a_record_the_page_says_so() -> None:
    assert table.make_table({}) == table.NOTHING_YET


def test_the_page_is_written_and_then_held_to_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (tmp_path / "bench-cpu.json").write_text(json.dumps(CPU))
    arguments = ["--page", str(page), "--results", str(tmp_path)]
    assert table.main([*arguments, "--check"]) == 1
    assert "run `python benchmarks/table.py`" in capsys.readouterr().err
    assert page.read_text() == PAGE
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("# Page\n\n<!--")
    assert text.endswith("-->\n\nmore\n")
    assert "| C1 | writer |" in text
    assert "old" not in text
    (tmp_path / "bench-cpu.json").write_text(json.dumps(CPU | {"bars": []}))
    assert table.main([*arguments, "--check"]) == 1


@pytest.mark.parametrize("page", ["no marks", table.BEGIN, f"{table.END}{table.BEGIN}", f"{PAGE}{PAGE}"])
def test_a_page_without_its_two_marks_is_refused(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    assert table.main(["--page", str(path), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: the page must hold")
    assert path.read_text() == page


def test_a_folder_that_is_not_there_leaves_the_page_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert table.main(["--page", str(page), "--results", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone'}: no such folder\n"
    (tmp_path / "bench-cpu.json").write_text("{")
    assert table.main(["--page", str(page), "--results", str(tmp_path)]) == 2
    assert f"{tmp_path / 'bench-cpu.json'}: no JSON" in capsys.readouterr().err
    assert page.read_text() == PAGE
    assert table.main(["--page", str(tmp_path / "gone.md"), "--results", str(tmp_path)]) == 2


def test_the_readme_says_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--check"]) == 0, capsys.readouterr().err
