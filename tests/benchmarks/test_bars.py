"""All bars in one run: made programs that end well, fail, hang or say nothing; which are chosen; what the table says."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bar
import bars
import pytest
from bars import Outcome, Program

BEGIN = "import argparse, json, os, sys\np = argparse.ArgumentParser()\np.add_argument('--seed', type=int)\n"
BEGIN += "p.add_argument('--quick', action='store_true')\np.add_argument('--json')\ngiven = p.parse_args()\n"
GOOD = bar.make_bar("C1", "writer", [4.0, 5.0, 6.0], floor=3.5, goal=6)
SHORT = bar.make_bar("C3", "reader", [4.0], floor=5, goal=10, note="hashing")
ABSENT = bar.absent_bar("C8", "step", floor=2.8, goal=5, reason="no AMX")
LOST = bar.lost_bar("C8", "step", floor=2.8, goal=5, reason="r1: died of SIGKILL")

_LIMIT_S = 120.0  # what takes longer than that does not come


def write_program(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(BEGIN + body)


def record_with(*made: dict[str, Any]) -> str:
    return f"json.dump({{'bars': {list(made)!r}, 'seed': given.seed}}, open(given.json, 'w'))\n"


def wait_for_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        handle = os.pidfd_open(pid)
        ended, _, _ = select.select([handle], [], [], _LIMIT_S)
        os.close(handle)
        assert ended


def test_programs_run_in_turn_and_each_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_program(tmp_path, "good", record_with(GOOD))
    write_program(tmp_path, "bad", "print('error: no such\\n{1}')\nsys.exit(3)")
    write_program(tmp_path, "dead", "os.kill(os.getpid(), 11)")
    write_program(tmp_path, "silent", "pass")
    write_program(tmp_path, "sound", record_with(SHORT) + "print('failed: one side')\nsys.exit(1)")
    programs = [Program(name, (), 0, 60) for name in ("good", "bad", "dead", "silent", "sound")]
    outcomes = bars.run_programs(programs, ["--seed", "7"], seconds=600, logs=tmp_path, folder=tmp_path)
    assert {name: one.error for name, one in outcomes.items()} == {
        "good": "",
        "bad": "exit code 3: error: no such",
        "dead": "died of SIGSEGV",
        "silent": "ended well, but wrote no record",
        "sound": "exit code 1: failed: one side",
    }
    assert outcomes["good"].record == {"bars": [GOOD], "seed": 7}
    assert outcomes["sound"].record is not None
    assert outcomes["bad"].record is None
    assert "bad" in capsys.readouterr().err


def test_a_program_that_hangs_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    write_program(tmp_path, "slow", child + "print(child.pid, flush=True)\nchild.wait()")
    log = tmp_path / "slow.log"
    for limit_s in (2, 16, 128):  # the first one suffices unless the machine is very busy
        outcome = bars.run_program(Program("slow", (), 0, 1), [], limit_s=limit_s, log=log, folder=tmp_path)
        assert outcome.error == f"stopped after {limit_s} s"
        if log.read_text():
            break
    wait_for_end(int(log.read_text()))


def test_a_stop_from_outside_ends_the_program_too(tmp_path: Path) -> None:
    write_program(tmp_path, "slow", "import time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    driver = f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(bars.BENCHMARKS)!r})\nimport bars\n"
    driver += f"bars.end_in_order()\nhere = Path({str(tmp_path)!r})\n"
    driver += "bars.run_program(bars.Program('slow', (), 0, 1), [], limit_s=600, log=here / 'slow.log', folder=here)"
    process = subprocess.Popen([sys.executable, "-c", driver])
    log = tmp_path / "slow.log"
    try:
        end = time.monotonic() + _LIMIT_S
        while not (log.is_file() and log.read_text().endswith("\n")):
            assert time.monotonic() < end, "the program did not start"
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself: {process.wait(timeout=0.05)}")
        process.terminate()
        assert process.wait(_LIMIT_S) == 143
    finally:
        process.kill()
        process.wait()
    wait_for_end(int(log.read_text()))


def test_what_has_no_time_left_is_named(tmp_path: Path) -> None:
    write_program(tmp_path, "good", record_with(GOOD))
    outcomes = bars.run_programs([Program("good", ("C1",), 1, 60)], [], seconds=0, logs=tmp_path, folder=tmp_path)
    assert outcomes["good"].error == "had no time left within 0 minutes"


def test_what_has_no_bar_is_left_out_where_time_is_too_short_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("long", "short"):
        write_program(tmp_path, name, record_with())
    programs = [Program("long", (), 5000, 60), Program("short", (), 0, 60)]
    outcomes = bars.run_programs(programs, [], seconds=600, logs=tmp_path, folder=tmp_path)
    assert (outcomes["long"].error, outcomes["long"].record) == ("", None)
    assert "and it takes about 5000; it can be run by hand" in outcomes["long"].left_out
    assert (outcomes["short"].left_out, outcomes["short"].record) == ("", {"bars": [], "seed": None})
    assert "left out: " in capsys.readouterr().err


def test_what_has_no_bar_and_meets_the_end_of_all_time_has_not_failed(tmp_path: Path) -> None:
    write_program(tmp_path, "slow", "import time\ntime.sleep(600)")

    def run(*bars_of_it: str, seconds: float, limit_s: float) -> Outcome:
        programs = [Program("slow", bars_of_it, 0, limit_s)]
        return bars.run_programs(programs, [], seconds=seconds, logs=tmp_path, folder=tmp_path)["slow"]

    at_the_end = run(seconds=0.5, limit_s=60)
    assert at_the_end.error == ""
    assert "were left, and it takes about 0" in at_the_end.left_out
    assert run(seconds=600, limit_s=0.25).error.startswith("stopped after")  # its own limit
    assert run("C1", seconds=0.5, limit_s=60).error


def test_limits_are_of_expected_times_and_these_fit_into_the_time_of_all() -> None:
    assert sum(program.seconds for program in bars.PROGRAMS) <= 60 * bars.MINUTES
    assert sum(program.limit_s for program in bars.PROGRAMS if program.bars) <= 60 * bars.MINUTES
    assert all(program.seconds < program.limit_s for program in bars.PROGRAMS)
    # what has no bar comes last, so that it is what is left out
    assert [bool(program.bars) for program in bars.PROGRAMS] == sorted((bool(one.bars) for one in bars.PROGRAMS), reverse=True)


def test_bars_in_order_with_those_that_were_lost() -> None:
    programs = [Program("late", ("C3", "C8"), 1, 2), Program("packing", ("C1", "C2"), 1, 2), Program("gone", ("C6",), 1, 2)]
    outcomes = {
        "late": Outcome(1, "", {"bars": [SHORT, ABSENT]}),
        "packing": Outcome(1, "", {"bars": [GOOD]}),
        "gone": Outcome(1, "exit code 2: error: no data", None),
    }
    made = bars.collect_bars(programs, outcomes)
    assert [(one["bar"], one["verdict"], one["program"]) for one in made] == [
        ("C1", "pass", "packing"),
        ("C2", "failed", "packing"),
        ("C3", "short", "late"),
        ("C6", "failed", "gone"),
        ("C8", "n/a", "late"),
    ]
    assert bars.format_bars(made).splitlines()[2:] == [
        "| C1 | writer | 5 (4..6) | 3.5x | 6x | pass |",
        "| C2 | not measured: packing.py | - | - | - | failed |",
        "| C3 | reader | 4 (4..4) | 5x | 10x | short |",
        "| C6 | not measured: gone.py | - | - | - | failed |",
        "| C8 | step | - | 2.8x | 5x | n/a |",
        "C2 failed, not measured: packing.py: its record has no such bar",
        "C3 short, reader: hashing",
        "C6 failed, not measured: gone.py: exit code 2: error: no data",
        "C8 n/a, step: no AMX",
    ]
    assert [one["bar"] for one in bars.collect_bars(programs, outcomes, frozenset({"C6"}))] == ["C6"]


def test_only_takes_bars_and_programs() -> None:
    programs, shown = bars.choose_programs("C5,growth")
    assert [program.name for program in programs] == ["cpu_loader", "growth"]
    assert shown == {"C5"}
    assert bars.choose_programs("packing")[1] == {"C1", "C2"}
    assert bars.choose_programs(None) == (list(bars.PROGRAMS), frozenset())
    with pytest.raises(ValueError, match=r"--only C9: there are C1, .*packing"):
        bars.choose_programs("C9")


def test_every_bar_of_the_cpu_side_has_a_program_that_is_there() -> None:
    assert {name for program in bars.PROGRAMS for name in program.bars} == {f"C{number}" for number in range(1, 9)} | {"S1"}
    for program in (bars.TOY_DATA, *bars.PROGRAMS):
        assert (bars.BENCHMARKS / f"{program.name}.py").is_file(), program.name


@pytest.mark.parametrize(("made", "code"), [([GOOD, ABSENT], 0), ([GOOD, SHORT], 1), ([GOOD, LOST], 1)])
def test_the_exit_code_and_the_last_line_tell_how_it_went(
    made: list[dict[str, Any]],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_program(tmp_path, "one", record_with(*made))
    write_program(tmp_path, "toydata", record_with())
    monkeypatch.setattr(bars, "PROGRAMS", (Program("one", (), 0, 60),))
    run = bars.run_programs
    monkeypatch.setattr(bars, "run_programs", lambda *words, **named: run(*words, **named, folder=tmp_path))
    path = tmp_path / "whole.json"
    assert bars.main(["--only", "one", "--seed", "3", "--json", str(path)]) == code
    text = capsys.readouterr().out
    record = json.loads(text.splitlines()[-1])
    assert record == json.loads(path.read_text())
    assert record["seed"] == 3
    assert record["load_before"] >= 0
    assert record["records"]["one"]["seed"] == 3
    assert "| C1 | writer |" in text


def test_verdicts_of_two_runs_are_held_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = GOOD | {"verdict": "short"}
    assert bars.compare_verdicts([GOOD, SHORT], [GOOD, SHORT]) == ["2 of 2 bars have the same verdict"]
    assert bars.compare_verdicts([GOOD, SHORT], [worse, ABSENT]) == [
        "C1 writer: pass (5) before, short (5) now",
        "C3 reader: in one of the two runs alone",
        "C8 step: in one of the two runs alone",
        "0 of 1 bars have the same verdict",
    ]
    lost = bar.lost_bar("C3", "reader", floor=5, goal=10, reason="ours: crashed")
    assert bars.compare_verdicts([GOOD, lost], [GOOD, lost]) == [
        "C3 reader: failed before, failed now",
        "1 of 2 bars have the same verdict",
    ]
    with pytest.raises(SystemExit, match="2"):
        bars.main(["--against", str(tmp_path / "gone.json")])
    assert "gone.json: no record of this program" in capsys.readouterr().err


def test_arguments_that_make_no_sense_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "run_programs", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "below")
    for words, told in (
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--only", "C99"], "--only C99: there are C1, "),
        (["--json", f"{below}/record.json"], f"the folder {below} cannot be made"),
        (["--logs", below], f"--logs: the folder {below} cannot be made"),
    ):
        with pytest.raises(SystemExit, match="2"):
            bars.main(words)
        assert told in capsys.readouterr().err


def test_what_has_no_bar_shows_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(tmp_path, "toydata", record_with())
    write_program(tmp_path, "one", "print('hidden')\n" + record_with(GOOD))
    write_program(tmp_path, "two", "print('samples  seconds')\nprint('{}')\n" + record_with())
    monkeypatch.setattr(bars, "PROGRAMS", (Program("one", ("C1",), 1, 60), Program("two", (), 0, 60)))
    run = bars.run_programs
    monkeypatch.setattr(bars, "run_programs", lambda *words, **named: run(*words, **named, folder=tmp_path))
    assert bars.main(["--quick"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("== two.py\nsamples  seconds\n\n| bar |")
    assert "hidden" not in text


def test_a_part_of_the_bars_replaces_no_record_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "bench-cpu.json"
    monkeypatch.setattr(bars, "RECORD", bars.BENCHMARKS / "results" / kept.name)
    written: list[Path | None] = []
    monkeypatch.setattr(bars, "finish", lambda record, path: written.append(path))
    monkeypatch.setattr(bars, "PROGRAMS", ())
    monkeypatch.setattr(bars, "run_programs", lambda *_, **__: {})
    for arguments in ([], ["--seed", "1"], ["--quick"], ["--json", str(kept)], ["--minutes", "1"]):
        bars.main(arguments)
    assert written == [bars.RECORD, None, None, kept, None]
    told = capsys.readouterr().err.splitlines()
    told = [line for line in told if "record" in line]
    name = "benchmarks/results/bench-cpu.json"
    assert told[0].startswith(f"the record is {name}; next: python benchmarks/plots.py, then python benchmarks/table.py")
    printed = "the record is the last line printed (--json FILE keeps it)"
    assert told[1] == f"{printed}; {name} was left alone: it is written without --seed"
    assert told[3] == f"the record is {kept}; {name} was left alone: it is written without --json"
    assert told[4].endswith("it is written without --minutes")


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_run_in_which_a_program_failed_replaces_no_record(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "results" / "bench-cpu.json"
    kept.parent.mkdir()
    kept.write_text("good")
    monkeypatch.setattr(bars, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(bars, "RECORD", kept)
    write_program(tmp_path, "toydata", record_with())
    write_program(tmp_path, "one", record_with(GOOD) + end)
    monkeypatch.setattr(bars, "PROGRAMS", (Program("one", ("C1",), 1, 60),))
    run = bars.run_programs
    monkeypatch.setattr(bars, "run_programs", lambda *words, **named: run(*words, **named, folder=tmp_path))
    assert bars.main([]) == 1
    assert bars.main(["--json", str(kept)]) == 1
    assert kept.read_text() == "good"
    captured = capsys.readouterr()
    assert captured.err.endswith("results/bench-cpu.json was left alone: one failed\n")
    assert json.loads(captured.out.splitlines()[-1])["programs"]["one"]["error"]
    assert bars.main(["--json", str(tmp_path / "other.json")]) == 1
    assert (kept.read_text(), (tmp_path / "other.json").is_file()) == ("good", True)
