"""Two records against each other: faster, slower, the same, or not to be told; what differs besides the code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from unetfast.bench.compare import (
    FASTER,
    SAME_SPEED,
    SLOWER,
    UNKNOWN,
    compare_records,
    format_comparison,
    judge_change,
    read_bench_record,
)
from unetfast.bench.harness import spread
from unetfast.errors import UserError

RECORD: dict[str, Any] = {
    "benchmark": "bench",
    "device": "cpu",
    "environment": {
        "processor": "Made 3000",
        "cores": 2,
        "cpu_features": ["avx2"],
        "gpus": [],
        "python": "3.12.1",
        "packages": {"torch": "2.11.0"},
        "git_revision": "abc",
        "utc": "2026-01-01T00:00:00+00:00",
    },
    "config": {"loader": {"threads": 0, "size_hw": [32, 48]}, "train": {"amp": "auto"}},
    "data": {"dataset": "carvana", "samples": 48},
    "rungs": {"loader": {"images_per_s": spread([100, 101, 102, 103, 104])}},
}


def record(**rungs: list[float]) -> dict[str, Any]:
    made = copy.deepcopy(RECORD)
    made["rungs"] = {name: {"images_per_s": spread(rounds)} for name, rounds in rungs.items()}
    return made


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([100, 101, 102, 103, 104], [130, 131, 132, 133, 134], FASTER),
        ([100, 101, 102, 103, 104], [80, 81, 82, 83, 84], SLOWER),
        ([100, 101, 102, 101, 100], [101, 102, 100, 101, 102], SAME_SPEED),
        ([100, 80, 120, 90, 110], [105, 125, 85, 95, 115], UNKNOWN),  # ranges overlap widely
        ([100, 100.1, 100.2, 100.1], [101, 101.1, 101.2, 101.1], SAME_SPEED),  # apart, but by a hair
        ([100, 101, 102], [200, 201, 202], UNKNOWN),  # three rounds lie apart by chance once in ten
        ([100, 101, 102, 103], [112, 114, 116, 118], FASTER),
        ([54, 65, 80, 90], [32, 40, 47, 50], UNKNOWN),  # apart, but each moves by as much among its own rounds
        ([54, 65, 80, 90], [210, 240, 260, 280], FASTER),  # far more than that
    ],
)
def test_a_verdict_respects_the_spread(old: list[float], new: list[float], verdict: str) -> None:
    change = judge_change(spread(old), spread(new))
    assert change["verdict"] == verdict
    assert change["low"] <= change["ratio"] <= change["high"]


def test_turning_a_comparison_round_turns_the_verdict_round() -> None:
    slow, fast = spread([100, 101, 102, 103]), spread([130, 131, 132, 133])
    assert judge_change(slow, fast)["verdict"] == FASTER
    assert judge_change(fast, slow)["verdict"] == SLOWER


def test_the_same_machine_data_and_config_are_comparable() -> None:
    comparison = compare_records(
        record(loader=[100] * 5, model=[10] * 5), record(loader=[150] * 5, model=[10] * 5, train=[9] * 5)
    )
    assert comparison["comparable"]
    assert comparison["differences"] == []
    assert comparison["missing"] == ["train"]
    assert {name: change["verdict"] for name, change in comparison["rungs"].items()} == {"loader": FASTER, "model": SAME_SPEED}


def test_a_record_made_beside_other_programs_is_said_to_be() -> None:
    old, new = record(loader=[100.0] * 5), record(loader=[200.0] * 5) | {"other_cores": 0.9}
    comparison = compare_records(old, new)
    assert comparison["busy"] == ["new record: other programs had 0.9 of 2 cores meanwhile"]
    told = format_comparison(comparison, old, new, "old.json")
    assert "note     new record: other programs had 0.9 of 2 cores" in told
    assert told.endswith(
        "verdict  faster: loader (other programs had cores meanwhile; run both on a quiet machine, with longer --seconds)"
    )
    assert compare_records(old, record(loader=[200.0] * 5) | {"other_cores": 0.1})["busy"] == []


def test_another_machine_or_data_is_not_comparable_and_another_config_is_said() -> None:
    old, new = record(loader=[100] * 5), record(loader=[150] * 5)
    new["config"]["loader"]["threads"] = 4
    new["environment"]["packages"]["torch"] = "2.12.0"
    comparison = compare_records(old, new)
    assert comparison["comparable"]
    assert comparison["differences"] == ["version, torch: 2.11.0 -> 2.12.0", "config, loader.threads: 0 -> 4"]
    new["environment"]["processor"] = "Made 4000"
    new["data"]["samples"] = 50
    comparison = compare_records(old, new)
    assert not comparison["comparable"]
    assert comparison["differences"][:2] == ["machine, processor: Made 3000 -> Made 4000", "data, samples: 48 -> 50"]
    assert "not comparable" in format_comparison(comparison, old, new, "old.json")


def test_what_a_cpu_loader_did_without_is_told() -> None:
    old, new = record(loader=[100, 101, 102, 103]), record(loader=[50, 51, 52, 53])
    new["rungs"]["loader"]["facts"] = {"backend": "cpu", "remarks": "without compiled steps"}
    assert compare_records(old, new)["differences"] == []  # a record of before does not say
    old["rungs"]["loader"]["facts"] = {"backend": "cpu", "remarks": ""}
    comparison = compare_records(old, new)
    assert comparison["differences"] == ["loader: none -> without compiled steps"]
    assert comparison["comparable"]
    old["rungs"]["loader"]["facts"]["remarks"] = "without compiled steps"
    assert compare_records(old, new)["differences"] == []


def test_the_table_shows_both_sides_and_a_conclusion() -> None:
    old, new = record(loader=[100] * 5, model=[10] * 5), record(loader=[150] * 5, model=[10, 20, 5, 10, 9])
    text = format_comparison(compare_records(old, new), old, new, "old.json")
    lines = text.splitlines()
    assert lines[0] == "against old.json (2026-01-01T00:00:00+00:00, revision abc)"
    assert "1.50 (1.50..1.50)  faster" in next(line for line in lines if line.startswith("loader"))
    assert (
        lines[-1] == "verdict  faster: loader; cannot tell: model (rounds differ too much among themselves; "
        "run both on a quiet machine, with longer --seconds)"
    )


def test_few_rounds_are_said() -> None:
    old, new = record(loader=[100, 101]), record(loader=[200, 202])
    assert "fewer than 4 rounds" in format_comparison(compare_records(old, new), old, new, "old.json")


def test_records_without_a_rung_in_common_say_so() -> None:
    old, new = record(loader=[100] * 5), record(model=[10] * 5)
    assert "no rung in common" in format_comparison(compare_records(old, new), old, new, "old.json")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(RECORD))
    assert read_bench_record(path) == RECORD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("not json", "no JSON"),
        ("[1]", "no record of"),
        ('{"benchmark": "loader"}', "no record of"),
        ('{"benchmark": "bench"}', "no record of"),
        (json.dumps({**RECORD, "benchmark": "loader"}), "no record of"),
        (json.dumps({**RECORD, "environment": {}}), "no record of"),
        (json.dumps({**RECORD, "config": None}), "no record of"),
        (json.dumps({**RECORD, "rungs": {"read": {"images_per_s": {**spread([1.0]), "min": 0}}}}), "no record of"),
        (json.dumps({**RECORD, "rungs": {"read": {"images_per_s": {**spread([1.0]), "rounds": 1}}}}), "no record of"),
    ],
)
def test_what_is_no_record_is_refused(text: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        read_bench_record(path)
    assert str(path) in str(error.value)
    assert "unetfast bench --json" in str(error.value)
