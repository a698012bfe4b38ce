"""`torchrun -m unetfast train`, as a user types it: two processes on gloo, one run folder, one voice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import toy_run

from unetfast.checkpoint import load_checkpoint
from unetfast.train.log import read_rows

SETTINGS = [
    *("train.device=cpu", "train.max_steps=2", "train.amp=off", "loader.size_hw=[32, 48]", "loader.batch_size=4"),
    *("loader.threads=1", "model.base_channels=4", "model.depth=2", "model.norm=group"),
    *("log.tensorboard=false", "log.report=false", "log.gif=false"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


def torchrun_train(shards: Path, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    command += ["-m", "unetfast", "train", "--shards", str(shards), "--out", str(out)]
    command += [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)


def test_the_command_leaves_one_run_folder_and_tells_it_once(shards: Path, tmp_path: Path) -> None:
    done = torchrun_train(shards, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (checkpoint.step, len(checkpoint.rng)) == (2, 2)  # a random state of each process: both took part
    checkpoint.build_model()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    kinds = [row["kind"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("val") == 1
    # what is said is said by one of the two: each line once
    assert done.stdout.strip() == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    for opening in ("config  ", "run     ", "world   2 processes", "stopped at step 2", "val     step 2", "best    ", "next: "):
        assert sum(line.startswith(opening) for line in lines) == 1, done.stderr
    assert len(set(lines)) == len(lines), done.stderr


def test_a_bad_setting_is_one_line(shards: Path, tmp_path: Path) -> None:
    done = torchrun_train(shards, tmp_path / "run", "loader.batch_size=5")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: loader.batch_size = 5: the global batch cannot be shared equally by 2 processes")
    assert not (tmp_path / "run").exists()
