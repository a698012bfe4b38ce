"""Two real processes on gloo, one of which has a bad loss or a full memory: they agree on what becomes of the step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run

from unetfast.checkpoint import load_checkpoint
from unetfast.data.reader import open_shards
from unetfast.train.log import read_rows

WORKER = Path(__file__).with_name("trouble_worker.py")

pytestmark = pytest.mark.slow

TREE = toy_run.make_tree(
    model={"norm": "group", "dropout": 0.0},
    train={"epochs": 1, "accumulation": 1, "max_steps": 2},
    log={"gif": False, "report": False},
    schedule={"name": "constant"},
    checkpoint={"every_steps": 1},
)


def torchrun(shards: Path, out: Path, cases: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    (out / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    command += [str(WORKER), str(shards), str(out), str(out / "cases.json")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("two")
    auto = TREE | {"loader": TREE["loader"] | {"batch_size": "auto"}, "train": TREE["train"] | {"accumulation": 2}}
    cases: list[dict[str, Any]] = [
        {"name": "bad", "tree": TREE, "spoils": [1, 2]},
        {"name": "auto", "tree": auto},
        {"name": "full", "tree": TREE, "full": [1, 2]},
    ]
    return out, torchrun(shards, out, cases)


def test_bad_loss_of_one_process_undoes_the_step_of_both(
    done: tuple[Path, subprocess.CompletedProcess[str]], shards: Path, tmp_path: Path
) -> None:
    out, process = done
    told = [json.loads((out / f"bad.{rank}.json").read_text()) for rank in range(2)]
    assert [entry.get("steps") for entry in told] == [2, 2], process.stderr
    (line,) = [json.loads(line) for line in (out / "bad" / "bad_steps.jsonl").read_text().splitlines()]
    ids = [json.loads((out / f"bad.{rank}.ids").read_text().splitlines()[1].partition(" ")[2]) for rank in range(2)]
    with open_shards(shards).split("train") as reader:
        assert line["keys"] == [reader.key(number) for part in ids for number in part]
    assert (line["step"], line["loss"], len(line["keys"])) == (2, "nan", 4)
    assert [row["step"] for row in read_rows(out / "bad" / "metrics.jsonl") if row["kind"] == "bad_step"] == [2]
    # what is left is one step's work: that of a run of one process and one step
    toy_run.run_here(shards, tmp_path / "one", TREE | {"train": TREE["train"] | {"max_steps": 1}})
    mine, theirs = (load_checkpoint(folder / "last.pt").weights for folder in (out / "bad", tmp_path / "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-6)


def test_batch_size_auto_is_that_of_the_process_with_the_least_memory(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, process = done
    assert (out / "auto" / "last.pt").exists(), process.stderr
    assert load_checkpoint(out / "auto" / "last.pt").config.loader.batch_size == 2 * 2 * 2


def test_full_memory_of_one_process_ends_both_with_a_line(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, process = done
    told = out / "full.1.json"
    error = json.loads(told.read_text())["error"] if told.exists() else process.stderr
    assert "out of memory on cpu in step 2 (CUDA out of memory.)" in error
    assert "2 images at a time do not fit: take --set train.accumulation=2" in error
    assert "by --resume" in error
    assert process.returncode != 0
    assert load_checkpoint(out / "full" / "last.pt").step == 1
