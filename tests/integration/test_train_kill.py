"""A run that dies at any instant goes on to the same final weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_run
from toy_run import assert_same_state, make_tree, run_here, run_process, start_process

from unetfast.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    run_here(shards, out, make_tree())
    return out


class PowerCutError(BaseException):
    """Ends the process's work at once: nothing of ours catches it for good."""


def cut_at(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], int]:
    """Let the `count`-th touch of the disk (fsync, rename) be the last thing that happens; 0 only counts them.

    Returns:
        A function that gives the number of touches so far.
    """
    touches: list[str] = []

    def guard(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*args: Any, **kwargs: Any) -> Any:
            touches.append(name)
            if count and len(touches) >= count:
                raise PowerCutError
            return original(*args, **kwargs)

        return touch

    monkeypatch.setattr(os, "fsync", guard("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", guard("replace", Path.replace))
    if count:  # a dead process tidies nothing up
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    return lambda: len(touches)


@pytest.fixture(scope="module")
def num_touches(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    with pytest.MonkeyPatch.context() as patch:
        count = cut_at(patch, 0)
        run_here(shards, tmp_path_factory.mktemp("counted") / "run", make_tree())
        return count()


@pytest.mark.parametrize("trial", range(6))
def test_death_at_any_touch_of_the_disk(shards: Path, straight: Path, num_touches: int, tmp_path: Path, trial: int) -> None:
    instant = random.Random(trial).randint(1, num_touches)
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, instant)
        with pytest.raises(PowerCutError):
            run_here(shards, tmp_path / "run", make_tree())
    for name in ("last.pt", "best.pt"):
        if (tmp_path / "run" / name).exists():
            load_checkpoint(tmp_path / "run" / name)  # whole, at every instant
    run_here(shards, tmp_path / "run", make_tree(), resume=True)
    assert_same_state(tmp_path / "run", straight)
    assert not list((tmp_path / "run").rglob(".*.tmp-*"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(2))
def test_kill_9_and_resume_in_new_processes(shards: Path, straight: Path, tmp_path: Path, trial: int) -> None:
    """The instant is drawn over the time that the steps take, wherever on the way the process is then."""
    process = start_process(shards, tmp_path / "run", make_tree())
    wait_for((tmp_path / "run" / "config.toml").exists, process)
    time.sleep(random.Random(100 + trial).uniform(0, 3))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run_process(shards, tmp_path / "run", make_tree(), "resume") == 0
    assert_same_state(tmp_path / "run", straight)
