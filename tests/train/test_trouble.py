"""Runs in which something goes wrong: bad steps are written down and stop the run in the end, memory runs out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unetfast.checkpoint import load_checkpoint
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.model.losses import SegmentationLoss
from unetfast.model.unet import UNet
from unetfast.train import epoch, loop
from unetfast.train.guard import LAG_STEPS
from unetfast.train.log import read_rows
from unetfast.train.loop import train
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run
from unetfast.train.step import train_step

MakeConfig = Callable[..., Any]
QUICK = {"gif": False, "report": False, "num_panels": 1, "num_saved_images": 0, "every_steps": 1}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, epoch):
        monkeypatch.setattr(module, "draw_history", lambda run, rows: None)


@pytest.fixture(name="make_config")
def make_quick_config(make_config: MakeConfig) -> MakeConfig:
    return lambda **sections: make_config(**sections, log=QUICK)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Let the loss of some training steps (numbers from 1, counted over the test) be nan; validation is left alone."""

    def do(steps: set[int]) -> None:
        original, count = SegmentationLoss.forward, [0]

        def forward(self: SegmentationLoss, logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
            loss = original(self, logits_NKHW, mask_NHW)
            if not torch.is_grad_enabled():
                return loss
            count[0] += 1
            return loss * float("nan") if count[0] in steps else loss

        monkeypatch.setattr(SegmentationLoss, "forward", forward)

    return do


def test_bad_step_is_written_down_and_counts_nowhere(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any, spoil: Callable[[set[int]], None]
) -> None:
    spoil({2})
    config = make_config(train={"epochs": 1}, ema={"decay": 0.9})
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    (line,) = read_lines(tmp_path / "run" / "bad_steps.jsonl")
    assert (line["step"], line["loss"], line["gradient_norm"]) == (2, "nan", "nan")
    with open_shards(toy_shards).split("train") as reader:
        paths = {reader.key(number): reader.read_json(number)["source_path"] for number in range(reader.num_samples)}
    assert len(line["keys"]) == 4
    assert line["source_paths"] == [paths[key] for key in line["keys"]]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    (bad,) = [row for row in rows if row["kind"] == "bad_step"]
    assert (bad["step"], bad["loss"], bad["keys"]) == (2, None, line["keys"])
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[1] is None
    (epoch,) = [row for row in rows if row["kind"] == "epoch"]
    assert epoch["loss"] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-6)
    assert "warning: step 2 was not applied: loss nan, gradient norm nan; its 4 samples stand in" in ear.heard
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert checkpoint.progress["guard"] == {"num_in_row": 0, "num_bad": 1}
    assert all(state["step"] == 2 for state in checkpoint.optimizer["state"].values())
    assert all(tensor.isfinite().all() for tensor in (*checkpoint.weights.values(), *checkpoint.ema.values()))


def test_bad_steps_in_a_row_stop_the_run_which_goes_on_from_its_last_good_state(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, spoil: Callable[[set[int]], None]
) -> None:
    """The run that is gone on with ends where one does in which those steps were bad too, but which did not stop."""
    spoil({2, 3, 4})
    config = make_config(train={"max_bad_steps": 3})
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, the last bad one step 4 ") as caught:
        train(toy_shards, config, tmp_path / "run")
    assert "last.pt holds the weights from before; their samples: bad_steps.jsonl" in str(caught.value)
    assert "the same command with --resume" in str(caught.value)
    stopped = load_checkpoint(tmp_path / "run" / "last.pt")
    assert stopped.step == 4
    assert all(tensor.isfinite().all() for tensor in stopped.weights.values())
    assert [line["step"] for line in read_lines(tmp_path / "run" / "bad_steps.jsonl")] == [2, 3, 4]
    spoil(set())
    result = train(toy_shards, config, tmp_path / "run", resume=True)
    assert result.steps == 6
    assert [line["step"] for line in read_lines(tmp_path / "run" / "bad_steps.jsonl")] == [2, 3, 4]

    spoil({2, 3, 4})
    train(toy_shards, make_config(train={"max_bad_steps": 9}), tmp_path / "other")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "other"))
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


def test_steps_that_are_done_again_are_not_told_twice(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, spoil: Callable[[set[int]], None]
) -> None:
    config = make_config(train={"epochs": 1}, checkpoint={"every_steps": 1})
    spoil({3})
    train(toy_shards, config, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    early = make_config(train={"epochs": 1, "max_steps": 2}, checkpoint={"every_steps": 1})
    train(toy_shards, early, tmp_path / "early")
    shutil.copy(tmp_path / "early" / "last.pt", tmp_path / "killed" / "last.pt")
    with (tmp_path / "killed" / "bad_steps.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by the kill
    spoil({1})
    train(toy_shards, config, tmp_path / "killed", resume=True)
    assert [line["step"] for line in read_lines(tmp_path / "killed" / "bad_steps.jsonl")] == [3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_no_part_of_a_step_waits_for_the_gpu(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, amp: str) -> None:
    device = {"device": "cuda", "amp": amp, "compile": "off", "accumulation": 2}
    config = make_config(train=device, ema={"decay": 0.9}, optimizer={"clip_norm": 1.0}, loader={"backend": "cpu"})
    with build_run(toy_shards, config, RunFolder(tmp_path / "run")) as run:
        batches = iter(run.loader)
        for number in range(LAG_STEPS + 4):
            batch = next(batches)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")  # the first ones pick their kernels
            try:
                train_step(run, batch)
                run.guard.read()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_real_full_memory_of_a_gpu_halves_the_micro_batch(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """All of the GPU's memory but some MiB is taken by others: the activations of few images fit beside them."""
    sections = {"model": {"base_channels": 32}, "loader": {"size_hw": [256, 384], "backend": "cpu", "batch_size": 8}}
    config = make_config(**sections, train={"device": "cuda", "amp": "off", "compile": "off", "max_steps": 2})
    with build_run(toy_shards, config, RunFolder(tmp_path / "run")) as run:
        batches = iter(run.loader)
        batch = next(batches)
        for image_NCHW in (batch.image_NCHW[:1], batch.image_NCHW[:2]):
            run.model(image_NCHW).sum().backward()  # libraries are loaded, kernels picked
        run.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(free - 500 * 2**20, dtype=torch.uint8, device="cuda")
        train_step(run, batch)
        assert run.accumulation > 1
        assert "out of memory on cuda" in run.notices[0]
        assert run.guard.read(all_steps=True) == []
        assert all(weight.isfinite().all() for weight in run.model.parameters())
        del taken


class FullMemory:
    """Lets training forward passes of more than `most` images fail behind the last layer; keeps the sizes of all passes."""

    def __init__(self) -> None:
        self.most = 1000
        self.from_pass = 1
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")
        self.seen: list[int] = []

    def take(self, num_images: int) -> None:
        self.seen.append(num_images)
        if num_images > self.most and len(self.seen) >= self.from_pass:
            raise self.error


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FullMemory:
    original, memory = UNet.forward, FullMemory()

    def forward(self: UNet, image_NCHW: Tensor) -> Any:
        outputs = original(self, image_NCHW)  # batch norm has seen the batch
        if self.training:
            memory.take(len(image_NCHW))
        return outputs

    monkeypatch.setattr(UNet, "forward", forward)
    return memory


def test_smaller_parts_compute_what_they_would_have_from_the_start(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any, memory: FullMemory
) -> None:
    config = make_config(ema={"decay": 0.9})
    memory.most = 2
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert memory.seen == [4, *[2] * 12]
    reference = make_config(ema={"decay": 0.9}, train={"accumulation": 2})
    train(toy_shards, reference, tmp_path / "reference")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "reference"))
    for part in ("weights", "ema"):
        theirs = getattr(other, part)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in getattr(one, part).items())
    assert (one.progress["accumulation"], one.config.train.accumulation) == (2, 1)
    said = "warning: out of memory on cpu in step 1 (CUDA out of memory. Tried to allocate 2.00 GiB): from here on 2 images"
    assert ear.heard.count(said) == 1
    assert "at a time instead of 4, the batch stays 4 (train.accumulation 2)" in ear.heard


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "cpu"])
def test_run_that_is_gone_on_with_keeps_its_smaller_parts(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, memory: FullMemory, error: Exception
) -> None:
    memory.most, memory.from_pass, memory.error = 1, 2, error
    train(toy_shards, make_config(train={"max_steps": 2}), tmp_path / "run")
    assert memory.seen == [4, 4, 2, *[1] * 4]
    memory.seen.clear()
    train(toy_shards, make_config(train={"max_steps": 3}), tmp_path / "run", resume=True)
    assert memory.seen == [1] * 4
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert all(row["loss"] is not None for row in rows if row["kind"] in ("train", "epoch"))


def test_other_setting_at_resume_is_obeyed(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any, memory: FullMemory
) -> None:
    memory.most = 1
    train(toy_shards, make_config(train={"max_steps": 1}), tmp_path / "run")
    memory.most = 4
    memory.seen.clear()
    again = make_config(train={"max_steps": 2, "accumulation": 2})
    train(toy_shards, again, tmp_path / "run", resume=True, console=ear.console)
    assert memory.seen == [2, 2]
    assert "train.accumulation: 1 in the run, 2 now" in ear.heard


def test_error_names_the_keys_where_smaller_parts_are_not_wanted(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, memory: FullMemory
) -> None:
    memory.most = 2
    with pytest.raises(UserError, match=r"4 images at a time do not fit: take --set train.accumulation=2 .* loader.batch_size"):
        train(toy_shards, make_config(train={"on_out_of_memory": "error"}), tmp_path / "run")


def test_one_image_that_does_not_fit_ends_the_run(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, memory: FullMemory
) -> None:
    memory.most = 0
    with pytest.raises(UserError, match=r"in step 1 .*\n  one image of 32x48 pixels at a time does not fit"):
        train(toy_shards, make_config(), tmp_path / "run")


def test_other_errors_of_a_step_are_not_taken_for_it(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: UNet, image_NCHW: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("shapes differ")
        return torch.zeros(len(image_NCHW), 2, *image_NCHW.shape[2:])

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(toy_shards, make_config(), tmp_path / "run")


def test_memory_that_runs_out_in_validation_is_told(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, passes = UNet.forward, [0]

    def forward(self: UNet, image_NCHW: Tensor) -> Any:
        passes[0] += not self.training
        if passes[0] > 1:  # the first ones are of predictions_initial.png
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, image_NCHW)

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.raises(UserError, match=r"out of memory on cpu in validation: take a smaller eval.batch_size \(now 4\)"):
        train(toy_shards, make_config(), tmp_path / "run")


REAL_LIMIT = """
import resource
import sys
from pathlib import Path

import torch

from unetfast.config import build_config
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run
from unetfast.train.step import train_step

torch.set_num_threads(1)
tree = {
    "model": {"base_channels": 16, "depth": 2},
    "loader": {"size_hw": [192, 256], "batch_size": 4, "threads": 1},
    "train": {"amp": "off", "device": "cpu"},
}
with build_run(Path(sys.argv[1]), build_config(tree), RunFolder(Path(sys.argv[2]))) as run:
    batch = next(iter(run.loader))
    image_NCHW = batch.image_NCHW[:1].clone()
    run.model(image_NCHW).sum().backward()  # kernels are made, arenas are there
    run.optimizer.zero_grad()
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 130 * 2**20, resource.RLIM_INFINITY))
    train_step(run, batch)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert all(weight.isfinite().all() for weight in run.model.parameters())
    print(run.accumulation, run.step, run.notices)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, as Linux alone does")
def test_memory_that_really_runs_out_on_the_host(toy_shards: Path, tmp_path: Path) -> None:
    """The allocation is refused by the system, to a process of its own."""
    command = [sys.executable, "-c", REAL_LIMIT, str(toy_shards), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    accumulation, step, notices = done.stdout.split(maxsplit=2)
    assert accumulation in ("2", "4")
    assert step == "1"
    assert "out of memory on cpu in step 1" in notices
