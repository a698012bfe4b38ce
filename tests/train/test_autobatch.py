"""The probing run: what it finds on made-up machines, and on this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unetfast.checkpoint import load_checkpoint
from unetfast.config import build_config, config_to_toml, read_config_tree
from unetfast.errors import UserError
from unetfast.train import autobatch, epoch, loop
from unetfast.train.autobatch import ENOUGH_IMAGES, Finding, Probe, Trial, find_micro_batch
from unetfast.train.loop import train
from unetfast.train.runfolder import RunFolder
from unetfast.train.step import compute_gradients

MakeConfig = Callable[..., Any]
QUICK = {"gif": False, "report": False, "num_panels": 1, "num_saved_images": 0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobatch, "NUM_TIMED_STEPS", 1)
    for module in (loop, epoch):
        monkeypatch.setattr(module, "draw_history", lambda run, rows: None)


def make_machine(*, most_in_memory: int, knee: int, tried: list[int]) -> Callable[[int], Trial | None]:
    """Speed in proportion up to `knee` images, constant from there."""

    def try_size(num_images: int) -> Trial | None:
        tried.append(num_images)
        if num_images > most_in_memory:
            return None
        return Trial(num_images, 100.0 * min(num_images, knee), num_images)

    return try_size


def find(*, most_in_memory: int = 10**6, knee: int = 10**6, most: int = 10**6, smallest: int = 1) -> tuple[Finding, list[int]]:
    tried: list[int] = []
    finding = find_micro_batch(
        make_machine(most_in_memory=most_in_memory, knee=knee, tried=tried), smallest=smallest, most=most
    )
    assert finding is not None
    return finding, tried


def test_speed_that_grows_no_more_ends_it() -> None:
    finding, tried = find(knee=32)
    assert (finding.num_images, tried) == (32, [1, 2, 4, 8, 16, 32, 64])
    assert finding.reason == "64 give no more than 3,200 images/s"


def test_few_images_are_not_taken_for_their_speed() -> None:
    finding, tried = find(knee=1)
    assert (finding.num_images, tried) == (ENOUGH_IMAGES, [1, 2, 4, 8, 16])


def test_memory_ends_it_and_is_bisected() -> None:
    finding, tried = find(most_in_memory=90)
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 80, 88]
    assert (finding.num_images, finding.reason) == (88, "96 do not fit into memory")


def test_split_is_never_exceeded() -> None:
    finding, tried = find(most=12)
    assert (finding.num_images, finding.reason, tried) == (12, "the train split has no more", [1, 2, 4, 8, 12])
    assert find(most=1)[0].num_images == 1


def test_nothing_fits() -> None:
    assert find_micro_batch(lambda num_images: None, smallest=1, most=9) is None


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_what_is_found_fits_and_wastes_little(most_in_memory: int, knee: int, most: int) -> None:
    finding, tried = find(most_in_memory=most_in_memory, knee=knee, most=most)
    assert finding.num_images <= min(most_in_memory, most)
    could_be = min(most_in_memory, most, max(knee, ENOUGH_IMAGES))
    assert finding.num_images >= could_be / 2 or finding.num_images >= knee / (1 + autobatch.MIN_GAIN)
    if "memory" in finding.reason:
        assert finding.num_images * 1.13 + 1 >= most_in_memory
    assert len(tried) <= 30


@pytest.fixture
def probe(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> tuple[Probe, list[str]]:
    said: list[str] = []
    config = make_config(model={"base_channels": 16}, loader={"batch_size": "auto", "size_hw": [64, 96]}, log=QUICK)
    return Probe(toy_shards, config, RunFolder(tmp_path / "run"), torch.device("cpu"), said.append), said


MEASURE = """
import sys
from pathlib import Path
import torch
from unetfast.config import build_config, config_to_toml, read_config_tree
from unetfast.train.autobatch import Probe
from unetfast.train.runfolder import RunFolder
torch.set_num_threads(1)
shards, config, run = map(Path, sys.argv[1:])
said = []
measure = Probe(shards, build_config(read_config_tree(config)), RunFolder(run), torch.device("cpu"), said.append)
small, large = measure(2), measure(8)
print(small.used_bytes, large.used_bytes, large.images_per_s > 0)
print(said[0])
"""


def test_real_steps_need_more_memory_with_more_images(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """In a process of its own: what this one has freed would be taken again, and not be seen as memory used."""
    config = make_config(model={"base_channels": 16}, loader={"batch_size": "auto", "size_hw": [64, 96]}, log=QUICK)
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    command = [sys.executable, "-c", MEASURE, str(toy_shards), str(tmp_path / "config.toml"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers, said = done.stdout.splitlines()[-2:]
    small_bytes, large_bytes = map(int, numbers.split()[:2])
    # one activation of the top level is 16 x 64 x 96 float32 an image; a block keeps six, the decoder's has two times that
    assert large_bytes - small_bytes > 6 * 12 * 16 * 64 * 96 * 4
    assert numbers.endswith("True")
    assert said.startswith("batch   auto:   2 images at a time: ")
    assert said.endswith(" GiB")


def test_size_that_is_foretold_not_to_fit_is_not_tried(probe: tuple[Probe, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    measure, _ = probe
    measure.budget_bytes = 1000
    monkeypatch.setattr(measure, "_measure", lambda num_images: Trial(num_images, 1.0, 100 + 100 * num_images))
    assert [measure(number) is not None for number in (1, 2)] == [True, True]
    assert measure._foretell(9) == 1000
    assert measure(9) is not None

    def fail(num_images: int) -> Trial:
        raise AssertionError("tried")

    monkeypatch.setattr(measure, "_measure", fail)
    assert measure(10) is None


def test_run_gets_the_number_and_computes_what_a_run_with_it_does(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "_measure", lambda self, number: Trial(number, 100.0 * min(number, 2), 2**20))
    monkeypatch.setattr(autobatch, "ENOUGH_IMAGES", 2)
    sections = {"train": {"accumulation": 2, "max_steps": 2}, "log": QUICK, "model": {"dropout": 0.3}}
    config = make_config(**sections, loader={"batch_size": "auto"})
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert "batch   auto: loader.batch_size = 4 (2 images at a time, for each of 2 micro-batches; 4 give no more" in ear.heard
    assert build_config(read_config_tree(tmp_path / "run" / "config.toml")).loader.batch_size == 4
    train(toy_shards, make_config(**sections), tmp_path / "reference")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "reference"))
    assert one.config == other.config
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())

    monkeypatch.setattr(Probe, "_measure", lambda self, number: Trial(number, 1.0, 2**60))  # nothing fits any more
    longer = make_config(**sections | {"train": {"accumulation": 2, "max_steps": 3}}, loader={"batch_size": "auto"})
    assert train(toy_shards, longer, tmp_path / "run", resume=True).steps == 3
    (tmp_path / "run" / "last.pt").unlink()
    assert train(toy_shards, longer, tmp_path / "run", resume=True).steps == 3


def test_real_probing_run(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    config = make_config(train={"max_steps": 1}, loader={"batch_size": "auto"}, log=QUICK)
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    found = build_config(read_config_tree(tmp_path / "run" / "config.toml")).loader.batch_size
    assert found in (8, 12)
    assert f"batch   auto: loader.batch_size = {found} (" in ear.heard
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.toml", "last.pt"}


def test_one_image_that_does_not_fit_is_told(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(autobatch, "compute_gradients", fail)
    with pytest.raises(UserError, match=r"not even one image of 32x48 pixels fits into the memory of cpu \(.* GiB free\)"):
        train(toy_shards, make_config(loader={"batch_size": "auto"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_errors_of_the_probing_run_are_not_taken_for_it(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(autobatch, "compute_gradients", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(toy_shards, make_config(loader={"batch_size": "auto"}), tmp_path / "run")


def test_size_that_runs_out_on_the_way_does_not_fit(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(run: Any, batch: Any) -> Any:
        if len(batch.sample_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute_gradients(run, batch)

    monkeypatch.setattr(autobatch, "compute_gradients", compute)
    monkeypatch.setattr(Probe, "_foretell", lambda self, num_images: 0.0)
    config = make_config(loader={"batch_size": "auto"}, train={"max_steps": 1}, log=QUICK)
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert "batch   auto: loader.batch_size = 5 (5 images at a time; 6 do not fit into memory)" in ear.heard


def test_one_image_too_small_for_batch_norm_is_passed_over(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    config = make_config(loader={"batch_size": "auto", "size_hw": [4, 4]}, train={"max_steps": 1}, log=QUICK)
    train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert "auto:   1 images" not in ear.heard
    assert "auto:   2 images" in ear.heard
