"""Spreads, turns, tables and the description of a machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from unetfast.bench import harness


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_percentile_is_that_of_numpy(share: float) -> None:
    values = [5.0, 1.0, 4.0, 2.0]
    assert harness.percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5)])
def test_percentile_of_nothing_is_an_error(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        harness.percentile(values, share)


def test_a_spread_keeps_all_rounds() -> None:
    figure = harness.spread([3.00001, 1.0, 2.0])
    assert figure == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}
    assert harness.format_spread(figure) == "2 (1..3)"
    assert harness.format_spread(None) == "-"
    assert harness.format_spread(harness.spread([0.01234, 38900.4, 217.3]), 3) == "217 (0.0123..38,900)"
    assert harness.format_spread(harness.spread([999.6, 1000.2, 180]), 2) == "1,000 (180..1,000)"


def test_sides_take_turns_and_each_begins_once() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    results = harness.take_turns({name: lambda name=name: side(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert results["a"] == [1, 6, 8]


def test_a_side_that_fails_is_left_out_and_the_others_go_on() -> None:
    def bad() -> int:
        raise harness.SideError("gone")

    results = harness.take_turns({"bad": bad, "good": lambda: 1}, 3)
    assert results == {"bad": [], "good": [1, 1, 1]}


def test_a_bug_in_a_side_is_not_swallowed() -> None:
    def broken() -> int:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        harness.take_turns({"broken": broken}, 1)


def test_a_table_is_aligned() -> None:
    assert harness.format_table([["side", "n"], ["a", "100"]]).splitlines() == ["side    n", "a     100"]


def test_the_environment_names_what_a_figure_depends_on() -> None:
    found = harness.describe_environment()
    assert set(found) == {"processor", "cores", "cpu_features", "gpus", "python", "packages", "git_revision", "utc"}
    assert found["packages"]["torch"] != "not installed"
    assert found["cores"] >= 1


def test_the_revision_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("UNETFAST_REVISION", "abc123")
    assert harness.read_revision() == "abc123"
    monkeypatch.delenv("UNETFAST_REVISION")
    assert harness.read_revision() == "unknown"


def test_a_record_is_the_last_line_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harness.finish({"a": [1, 2]}, tmp_path / "deep" / "record.json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"a": [1, 2]}
    assert json.loads((tmp_path / "deep" / "record.json").read_text()) == {"a": [1, 2]}


def test_a_record_that_cannot_be_written_is_refused_when_arguments_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    harness.add_record_argument(parser)
    assert parser.parse_args([]).json is None
    assert parser.parse_args(["--json", str(tmp_path / "new" / "a.json")]).json == tmp_path / "new" / "a.json"
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    for place, told in ((tmp_path, "is a folder; give a file"), (tmp_path / "file" / "a.json", "is a file, and no folder")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--json", str(place)])
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("/home/someone/shards/carvana", "carvana"),
        ("--out=/home/x/a.json", "--out=a.json"),
        ("cannot open '/mnt/data/b.tar', nor /mnt/c.tar: no such file", "cannot open 'b.tar', nor c.tar: no such file"),
        ("images/s, ours / theirs, 1/2", "images/s, ours / theirs, 1/2"),
        ("https://example.org/a/b and shards/toy/a.tar", "https://example.org/a/b and shards/toy/a.tar"),
    ],
)
def test_places_of_this_machine_leave_a_text(told: str, left: str) -> None:
    assert harness.without_places(told) == left


def test_places_leave_a_record_at_any_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harness.finish({"a": [{"b": ("/home/x/y", 1, None)}], "/home/key/": True}, tmp_path / "record.json")
    told = {"a": [{"b": ["y", 1, None]}], "/home/key/": True}
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "record.json").read_text()) == told
