"""Two real processes on gloo: the batches, weights and scores of one; how they stop, resume and die together."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from rich.console import Console

from unetfast.checkpoint import Checkpoint, load_checkpoint
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint
from unetfast.train.log import read_rows

WORKER = Path(__file__).with_name("distributed_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]

pytestmark = pytest.mark.slow


def make_tree(**sections: dict[str, Any]) -> dict[str, Any]:
    """Augmented batches (rotation leaves ignored pixels, another number in each image), SGD, no dropout."""
    tree = copy.deepcopy(toy_run.TREE)
    base = {
        "model": {"dropout": 0.0, "norm": "group"},
        "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9},
        "train": {"epochs": 2, "accumulation": 1},
        "log": {"gif": False, "report": False},
    }
    for source in (base, sections):
        for name, values in source.items():
            tree[name] = tree.get(name, {}) | values
    tree["schedule"] = {"name": "constant"}
    return tree


GROUP = make_tree(
    loss={"cross_entropy": 1.0, "dice": 1.0, "class_weights": [1.0, 3.0]}, train={"accumulation": 2}, ema={"decay": 0.5}
)
SYNC = make_tree(
    model={"norm": "batch"},
    loss={"cross_entropy": 1.0, "focal": 0.5, "tversky": 0.5, "label_smoothing": 0.1},
    optimizer={"learning_rate": 0.005},
    train={"sync_batch_norm": True, "epochs": 1},
)
OWN = make_tree(model={"norm": "batch", "dropout": 0.3})
CASES: list[dict[str, Any]] = [
    {"name": "group", "tree": GROUP},
    {"name": "sync", "tree": SYNC},
    {"name": "compiled", "tree": SYNC | {"train": SYNC["train"] | {"compile": "on"}}, "eager": True},
    {"name": "refused", "tree": make_tree(loader={"batch_size": 5})},
    {"name": "stopped", "tree": OWN, "signal": [1, 2, "SIGTERM"]},
    {"name": "resumed", "tree": OWN | {"train": OWN["train"] | {"max_steps": 4}}, "into": "stopped", "resume": True},
]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def environment(**variables: str) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONWARNINGS": "error", **variables}


def write_cases(folder: Path, cases: list[dict[str, Any]]) -> list[str]:
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    return [str(folder), str(path)]


def torchrun(shards: Path, folder: Path, cases: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Run cases in two processes under torchrun."""
    command = [*TORCHRUN, str(free_port()), str(WORKER), str(shards), *write_cases(folder, cases)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 samples to train on; 5 to validate on: at 4 a batch the last one has a sample for one process alone."""
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def two(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, run by two processes one after another."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(shards, folder, CASES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def one(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run a case in this process, once."""
    folder = tmp_path_factory.mktemp("one")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            tree = next(case["tree"] for case in CASES if case["name"] == name)
            toy_run.run_here(shards, folder / name, tree, ids=folder / f"{name}.ids")
        return folder / name

    return run


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]


def read_ids(path: Path) -> list[list[int]]:
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]


def largest_difference(one: Checkpoint, other: Checkpoint) -> float:
    assert one.weights.keys() == other.weights.keys()
    pairs = [
        *zip(one.weights.values(), other.weights.values(), strict=True),
        *zip(one.ema.values(), other.ema.values(), strict=True),
    ]
    return max((mine.double() - theirs.double()).abs().max().item() for mine, theirs in pairs)


@pytest.mark.parametrize(("name", "reference"), [("group", "group"), ("sync", "sync"), ("compiled", "sync")])
def test_weights_of_one_process(two: Path, one: Callable[[str], Path], name: str, reference: str) -> None:
    """Losses over unevenly ignored pixels, class weights, accumulation, clipping, averages of the weights; batch norm."""
    here, there = load_checkpoint(one(reference) / "last.pt"), load_checkpoint(two / name / "last.pt")
    assert here.step == there.step > 2
    assert largest_difference(here, there) < 1e-6


def test_global_batches_of_one_process(two: Path, one: Callable[[str], Path]) -> None:
    whole = read_ids(one("group").with_suffix(".ids"))
    parts = [read_ids(two / f"group.{rank}.ids") for rank in range(2)]
    # of 4 samples in 2 micro-batches each process has the first or the second of either
    assert [[first[0], second[0], first[1], second[1]] for first, second in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("name", ["group", "sync"])
def test_rows_of_one_process(two: Path, one: Callable[[str], Path], name: str) -> None:
    """Losses and scores of steps, epochs and validation passes; each validation sample is counted once."""
    here, there = (toy_run.numbers_of(folder) for folder in (one(name), two / name))
    assert [(row["kind"], row["step"]) for row in here] == [(row["kind"], row["step"]) for row in there]
    for mine, theirs in zip(here, there, strict=True):
        for key in ("loss", "mean_iou", "mean_dice", "pixel_accuracy", "num_pixels", "num_images"):
            assert theirs.get(key) == pytest.approx(mine.get(key), abs=2e-6), (mine["kind"], key)
    assert {row["num_images"] for row in there if row["kind"] == "val"} == {5}


def test_each_image_is_scored_once_and_in_order(two: Path, one: Callable[[str], Path]) -> None:
    here, there = (json.loads((folder / "validation.json").read_text()) for folder in (one("group"), two / "group"))
    assert there["images"]["sample"] == [0, 1, 2, 3, 4]
    assert there["confusion"] == here["confusion"]
    assert there["images"]["iou"] == pytest.approx(here["images"]["iou"])


def test_all_processes_have_the_scores(two: Path) -> None:
    first, second = told(two, "group")
    assert first["last"]["num_images"] == 5
    assert first == second


def test_batch_that_cannot_be_shared_names_the_next_that_can(two: Path) -> None:
    for said in told(two, "refused"):
        assert "loader.batch_size = 5: the global batch cannot be shared equally by 2 processes" in said["error"]
        assert "--set loader.batch_size=6" in said["error"]
    assert not (two / "refused").exists()


def test_signal_to_one_process_stops_both_at_the_same_step(two: Path) -> None:
    first, second = told(two, "stopped")
    assert (first["stopped"], first["exit_code"]) == ("signal", 143)
    assert first == second
    assert 2 <= first["steps"] <= 4
    assert [len(read_ids(two / f"stopped.{rank}.ids")) for rank in range(2)] == [first["steps"]] * 2


def test_two_processes_go_on_where_two_stopped(two: Path, one: Callable[[str], Path]) -> None:
    assert [said["steps"] for said in told(two, "resumed")] == [4, 4]
    whole = read_ids(one("stopped").with_suffix(".ids"))
    parts = [[*read_ids(two / f"stopped.{rank}.ids"), *read_ids(two / f"resumed.{rank}.ids")] for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole[:4]


def test_every_process_has_its_own_random_state(two: Path) -> None:
    states = load_checkpoint(two / "stopped" / "last.pt").rng
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_validation_took_the_running_statistics_of_both(two: Path, shards: Path) -> None:
    """Each process has its own batch norm; what they scored together is what the checkpoint scores alone."""
    checkpoint = load_checkpoint(two / "stopped" / "last.pt")
    best = evaluate_checkpoint(shards, two / "stopped" / "best.pt", device="cpu", threads=1, stdout=io.StringIO())
    assert best.metrics.mean_dice == checkpoint.best["value"]


def test_one_process_goes_on_where_two_stopped(two: Path, one: Callable[[str], Path], shards: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    before = load_checkpoint(two / "stopped" / "last.pt").step
    result = toy_run.run_here(
        shards, two / "stopped", OWN, resume=True, ids=tmp_path / "ids", console=Console(file=said, width=300)
    )
    assert result.steps == 5
    assert "processes: 2 in the run, 1 now" in said.getvalue()
    assert read_ids(tmp_path / "ids") == read_ids(one("stopped").with_suffix(".ids"))[before:]
    rows = [row["step"] for row in read_rows(two / "stopped" / "metrics.jsonl") if row["kind"] == "epoch"]
    assert rows == [3, 5]


def test_a_process_that_dies_ends_the_others_with_a_message(shards: Path, tmp_path: Path) -> None:
    tree = make_tree(checkpoint={"every_steps": 1}, train={"epochs": 200})
    done = torchrun(shards, tmp_path, [{"name": "dies", "tree": tree, "dies": [1, 3]}])  # which has a limit of time
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert re.search(r"rank 1 of 2 \(.+, process \d+\) no longer answers", lines[0])
    assert "--resume" in lines[0]
    assert load_checkpoint(tmp_path / "dies" / "last.pt").step in (2, 3)


def test_a_process_that_hangs_is_given_up_without_torchrun(shards: Path, tmp_path: Path) -> None:
    """Two processes started by hand; one is stopped by SIGSTOP, and only the time limit can tell."""
    tree = make_tree(train={"epochs": 200})
    arguments = [sys.executable, str(WORKER), str(shards)]
    arguments += write_cases(tmp_path, [{"name": "hangs", "tree": tree, "hangs": [1, 3]}])
    port = str(free_port())
    processes = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "UNETFAST_TIMEOUT_S": "20"}
        processes.append(subprocess.Popen(arguments, env=environment(**variables), stderr=subprocess.PIPE, text=True))
    try:
        _, said = processes[0].communicate(timeout=300)
    finally:
        processes[1].kill()
        processes[1].communicate()
        processes[0].kill()
    assert processes[0].returncode == 2
    assert f"error: rank 1 of 2 ({socket.gethostname()}, process {processes[1].pid}) no longer answers" in said


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_weights_of_one_gpu_on_two(shards: Path, tmp_path: Path, compiled: str) -> None:
    """NCCL; to the precision of a GPU's convolutions."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    tree = SYNC | {"train": SYNC["train"] | {"device": "cuda", "compile": compiled}}
    done = torchrun(shards, tmp_path, [{"name": "sync", "tree": tree}])
    assert done.returncode == 0, done.stderr
    toy_run.run_here(shards, tmp_path / "one", tree)
    here, there = load_checkpoint(tmp_path / "one" / "last.pt"), load_checkpoint(tmp_path / "sync" / "last.pt")
    assert largest_difference(here, there) < 1e-3
    assert [row["loss"] for row in toy_run.numbers_of(tmp_path / "sync")] == pytest.approx(
        [row["loss"] for row in toy_run.numbers_of(tmp_path / "one")], abs=1e-3
    )


@pytest.mark.gpu
def test_more_processes_than_gpus_is_one_line(shards: Path, tmp_path: Path) -> None:
    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        pytest.skip("needs an NVIDIA GPU")
    command = [*TORCHRUN, str(free_port()), "-m", "unetfast", "train", "--shards", str(shards), "--out", str(tmp_path / "run")]
    command[command.index("2")] = str(num_gpus + 1)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert f"{num_gpus + 1} processes on " in lines[0]
    assert f"--nproc-per-node {num_gpus}" in lines[0]
