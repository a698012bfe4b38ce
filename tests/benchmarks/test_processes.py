"""Sides and functions in processes of their own: what they answer, and how their ends are told."""

from __future__ import annotations

import signal

import made_sides
import pytest
from apart import Apart
from side import SideProcess

from unetfast.bench.harness import SideError


def test_a_side_runs_rounds_of_its_own() -> None:
    process = SideProcess("counting", made_sides.build_counting, 4, "cpu")
    try:
        warmup = process.start(0.05)
        took = process.run_round(0.2)
    finally:
        process.close()
    assert process.facts["batch_size"] == 4
    assert process.facts["host_start_mib"] > 0
    assert process.error == ""
    for one in (warmup, took):
        # 4 images every 2 ms or a little more
        assert 0 < one["images_per_s"] < 2001
        assert one["cores_used"] == pytest.approx(one["cpu_s_per_image"] * one["images_per_s"])
        assert one["gpu_pct"] is None
        assert one["no_shares_because"] == "no GPU"
    assert 1 <= len(took["waits_s"]) <= 101
    assert sum(took["waits_s"]) >= 0.2


def test_a_side_that_cannot_be_built_says_why_in_one_line() -> None:
    process = SideProcess("refused", made_sides.build_refused, None, "cpu")
    try:
        with pytest.raises(SideError, match="refused: UserError: no such thing: take another"):
            process.start(0.1)
    finally:
        process.close()
    assert process.error == "UserError: no such thing: take another"


def test_a_side_that_crashes_ends_alone() -> None:
    process = SideProcess("dying", made_sides.build_dying, None, "cpu")
    try:
        with pytest.raises(SideError, match=r"exit code 7"):
            process.start(0.1)
    finally:
        process.close()


def test_a_function_apart_answers_fails_crashes_or_hangs() -> None:
    good, bad = Apart(made_sides.double, 21), Apart(made_sides.fail, "one\ntwo")
    dead, slow = Apart(made_sides.kill_itself, signal.SIGSEGV), Apart(made_sides.sleep, 600)
    assert good.result(600) == 42
    with pytest.raises(SideError, match=r"^ValueError: one two$"):
        bad.result(600)
    with pytest.raises(SideError, match="died of SIGSEGV"):
        dead.result(600)
    with pytest.raises(SideError, match="no answer within 0 s"):
        slow.result(0.1)
