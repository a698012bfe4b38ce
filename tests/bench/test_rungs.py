"""The rungs on six toy cars: they do the work that they count, through what training uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from unetfast.bench.loader import LoaderRung, measure_decode, num_made_ahead
from unetfast.bench.read import ReadRung, measure_hash
from unetfast.bench.shard import ShardRung, watch_children
from unetfast.bench.train import COMPILING_STEPS, StepRung
from unetfast.config import build_config
from unetfast.data.options import PackOptions
from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError
from unetfast.loader.batch import Batch
from unetfast.train.run import Run

BuildRun = Callable[..., Run]


class Counted:
    """Hands batches on and counts them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.num = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.num += 1
        return next(self._batches)


def test_reading_counts_the_bytes_of_images_and_masks(car_shards: Path) -> None:
    with open_shards(car_shards).split("train") as reader:
        rung = ReadRung(reader, checksum=True)
        rung.warm_up(0.01)
        done = rung.run_round()
        facts = rung.describe()
        rows = reader.rows
        sizes = (rows["image_length"].astype(int) + rows["mask_length"].astype(int)).tolist()
    assert done.num_images == facts["images_per_round"] > 0
    num_bytes = sum(sizes[number % len(sizes)] for number in range(done.num_images))
    assert done.figures["mib_per_s"] * done.wall_s * 2**20 == pytest.approx(num_bytes)
    assert facts["bytes_per_image"] == round(sum(sizes) / len(sizes))
    assert facts["hash_gb_per_s"] > 0


def test_reading_holds_bytes_against_their_hash(car_shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for path in car_shards.rglob("*"):
        if path.is_file():
            copied = broken / path.relative_to(car_shards)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    tar = next(broken.rglob("*.tar"))
    with open_shards(broken).split("train") as reader:
        offset = int(reader.rows[0]["image_offset"])
    data = bytearray(tar.read_bytes())
    data[offset + 5] ^= 1
    tar.write_bytes(data)
    with open_shards(broken).split("train") as reader, pytest.raises(CorruptShardError):
        ReadRung(reader, checksum=True).warm_up(0.01)
    with open_shards(broken).split("train", checksum=False) as reader:
        unchecked = ReadRung(reader, checksum=False)
        unchecked.warm_up(0.01)
        assert unchecked.describe()["hash_gb_per_s"] is None


@pytest.mark.parametrize("num_bytes", [1, 70_000, 80 << 20])
def test_the_hash_is_measured_on_pieces_of_any_size(num_bytes: int) -> None:
    assert measure_hash(num_bytes, 100) > 0


def test_the_loader_rung_takes_the_batches_that_it_counts(build_small_run: BuildRun) -> None:
    run = build_small_run()
    batches = Counted(iter(run.loader))
    rung = LoaderRung(run.loader, batches, run.config, reader=run.train_reader, device=run.device)
    rung.warm_up(0.01)
    before = batches.num
    done = rung.run_round()
    facts = rung.describe()
    assert batches.num - before == num_made_ahead(run.config) + facts["batches_per_round"]
    assert done.num_images == facts["batches_per_round"] * run.config.loader.batch_size
    assert (facts["backend"], facts["size_hw"], facts["threads"]) == ("cpu", [32, 48], 1)
    assert facts["stored_over_target"] == 2.0
    assert facts["decode_images_per_core_s"] > 0


def test_a_cache_is_filled_before_rounds_are_counted(build_small_run: BuildRun) -> None:
    run = build_small_run(loader={"prefetch_batches": 1})
    config = run.config.model_copy(update={"loader": run.config.loader.model_copy(update={"cache": "ram"})})
    batches = Counted(iter(run.loader))
    rung = LoaderRung(run.loader, batches, config, reader=run.train_reader, device=run.device)
    rung.warm_up(1e-9)
    assert batches.num == run.loader.num_batches + num_made_ahead(config) + 1
    assert rung.describe()["decode_images_per_core_s"] is None  # decoding is no limit of what is not decoded again


def test_decoding_alone_is_at_the_reduction_that_the_loader_takes(car_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.bench import loader as module

    reductions: set[int] = set()
    decode = module.decode_reduced

    def noted(data: bytes, codec: str, hw: tuple[int, int], reduction: int) -> object:
        reductions.add(reduction)
        return decode(data, codec, hw, reduction)

    monkeypatch.setattr(module, "decode_reduced", noted)
    monkeypatch.setattr(module, "_DECODE_S", 0.01)
    with open_shards(car_shards).split("train") as reader:
        for size_hw, mode, reduction in (
            ([32, 48], "exact", 1),
            ([32, 48], "fast", 2),
            ([8, 12], "exact", 2),
            ([8, 12], "fast", 8),
        ):
            reductions.clear()
            config = build_config({"loader": {"size_hw": size_hw, "decode": mode}})
            assert measure_decode(reader, config) > 0
            assert reductions == {reduction}


def test_steps_are_those_of_training_and_ready_batches_are_dropped(build_small_run: BuildRun) -> None:
    run = build_small_run()
    batches = Counted(iter(run.loader))
    rung = StepRung("train", run, batches, num_made_ahead=3)
    weights = [weight.detach().clone() for weight in run.model.parameters()]
    rung.warm_up(1e-9)
    assert run.step == batches.num == COMPILING_STEPS + 1
    before_steps, before_batches = run.step, batches.num
    done = rung.run_round()
    num_steps = rung.describe()["steps_per_round"]
    assert run.step - before_steps == num_steps + 1  # the first is not counted
    assert batches.num - before_batches == num_steps + 1 + 3
    assert done.num_images == num_steps * 4
    assert 0 <= done.figures["data_wait_pct"] <= 100
    assert any(not torch.equal(old, new) for old, new in zip(weights, run.model.parameters(), strict=True))
    assert rung.describe()["amp"] == "off"


def test_packing_rounds_leave_nothing_behind(car_source: Path, tmp_path: Path) -> None:
    rung = ShardRung(car_source, "carvana", tmp_path, options=PackOptions(val_fraction=0.0), workers=1)
    rung.warm_up(0.1)
    done = rung.run_round()
    facts = rung.describe()
    assert done.num_images == facts["images_per_round"] == 6
    sources = [path for path in car_source.rglob("*") if path.suffix in (".jpg", ".gif")]
    assert facts["source_bytes"] == sum(path.stat().st_size for path in sources)
    assert done.figures["source_mib_per_s"] * done.wall_s * 2**20 == pytest.approx(facts["source_bytes"])
    assert done.figures["workers_peak_mib"] >= 0  # what else this process may start meanwhile is seen too
    assert list(tmp_path.iterdir()) == []


def start_python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_memory_of_children_is_seen_but_not_of_those_that_stood_before() -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").is_file():
        pytest.skip("this system does not tell a process's children")
    hold = "held = b'1' * (64 << 20); print('held', flush=True); input()"
    with start_python(hold) as older:
        assert older.stdout is not None
        assert older.stdout.readline() == b"held\n"
        with watch_children() as peaks_mib, start_python(hold) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            end = time.monotonic() + 60
            while peaks_mib.get(child.pid, 0) < 64:  # until the watcher has looked
                assert child.poll() is None
                assert time.monotonic() < end, "the child was not seen"
                time.sleep(0.01)
            child.communicate(b"\n")
        older.communicate(b"\n")
    assert 64 <= peaks_mib[child.pid] < 200
    assert older.pid not in peaks_mib
