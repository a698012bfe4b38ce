"""`loader.cache = "ram"`: the same batches, fewer reads, no more memory than was allowed."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_batches import ALL, Kept, keep

from unetfast.config import LoaderConfig, build_config
from unetfast.data.indexrow import IndexRow
from unetfast.data.reader import SplitReader, open_shards
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader import ramcache
from unetfast.loader.build import build_loader
from unetfast.loader.cpu import CpuLoader
from unetfast.loader.ramcache import RamCache, allow_bytes, count_need, describe_cache

CPU = torch.device("cpu")
GIB = 1 << 30
NUM_SAMPLES = 13
FLIPS = {"hflip": {"prob": 0.5}, "rotation": {"prob": 0.5}, "brightness": {"prob": 0.5}}
CHOSEN = {"resized_crop": {"prob": 1.0, "area": [0.1, 0.5]}, "max_class_share": 0.5}


@contextlib.contextmanager
def make(folder: Path, augment: dict[str, Any], *, training: bool = True, **settings: Any) -> Iterator[CpuLoader]:
    section = {"size_hw": [24, 32], "batch_size": 4, "threads": 2, "decode": "fast", "backend": "cpu", **settings}
    config = build_config({"loader": section, "augment": augment})
    reader = open_shards(folder).split("train" if training else "val", checksum=config.loader.checksum)
    with reader, build_loader(reader, config, training=training, device=CPU) as loader:
        assert isinstance(loader, CpuLoader)
        yield loader


def run(folder: Path, augment: dict[str, Any], count: int, **settings: Any) -> list[Kept]:
    with make(folder, augment, **settings) as loader:
        return keep(loader, count)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Count the members that are read."""
    found: Counter[tuple[str, int]] = Counter()
    original = SplitReader._read

    def count(self: SplitReader, sample: int, member: str) -> bytes:
        found[member, sample] += 1
        return original(self, sample, member)

    monkeypatch.setattr(SplitReader, "_read", count)
    return found


@pytest.mark.parametrize("max_bytes", [GIB, 20_000, 0])
@pytest.mark.parametrize("augment", [{}, FLIPS, ALL, CHOSEN], ids=["none", "flips", "all", "chosen-crop"])
def test_batches_are_the_same_whatever_fits(
    shards: Path, augment: dict[str, Any], max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(shards, augment, 12)
    monkeypatch.setattr("unetfast.loader.cpu.allow_bytes", lambda *args, **settings: max_bytes)
    with make(shards, augment, cache="ram") as loader:
        assert keep(loader, 12) == expected
        cache = loader._work.cache  # type: ignore[attr-defined]
    assert cache.num_bytes <= max_bytes
    assert (len(cache) > 0) == (max_bytes > 0)


def test_each_member_is_read_once_where_nothing_is_cropped(shards: Path, reads: Counter[tuple[str, int]]) -> None:
    # nearly four epochs; two threads that meet the same sample on both sides of an epoch's end may both read it
    run(shards, FLIPS, 12, cache="ram", threads=1)
    assert sum(reads.values()) == 2 * NUM_SAMPLES
    assert set(reads.values()) == {1}


def test_images_are_decoded_once_for_each_reduction_where_boxes_are_drawn(
    shards: Path, reads: Counter[tuple[str, int]]
) -> None:
    run(shards, {"resized_crop": {"prob": 1.0}}, 30, cache="ram", threads=1)
    assert max(count for (member, _), count in reads.items() if member == "mask") == 1
    assert max(count for (member, _), count in reads.items() if member == "image") <= 3  # in full, by half, by a quarter


def test_what_does_not_fit_is_read_each_time(
    shards: Path, reads: Counter[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetfast.loader.cpu.allow_bytes", lambda *args, **settings: 12_000)
    run(shards, {}, 12, cache="ram", threads=1)
    assert 1 in reads.values()
    assert max(reads.values()) >= 3


def test_a_resumed_run_goes_on_the_same(shards: Path) -> None:
    expected = run(shards, ALL, 14)
    with make(shards, ALL, cache="ram") as loader:
        assert keep(loader, 6) == expected[:6]
        state = loader.state_dict()
        assert keep(loader, 4) == expected[6:10]
        loader.load_state_dict(state)  # behind what is kept already
        assert keep(loader, 8) == expected[6:]
    with make(shards, ALL) as loader:  # and without the cache, which is no part of the state
        loader.load_state_dict(state)
        assert keep(loader, 8) == expected[6:]


@pytest.mark.parametrize("member", ["image", "mask"])
def test_bad_samples_are_never_kept(member: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = 5
    original = SplitReader._check

    def damage(self: SplitReader, sample: int, name: str, row: IndexRow, data: bytes) -> bytes:
        if (name, sample) == (member, bad):
            raise CorruptShardError("sample005", "the bytes are not those that were packed")
        return original(self, sample, name, row, data)

    monkeypatch.setattr(SplitReader, "_check", damage)
    without = run(shards, FLIPS, 9, on_bad="skip")
    with make(shards, FLIPS, cache="ram", on_bad="skip") as loader:
        assert keep(loader, 9) == without
        assert loader.num_skipped == 1
    with make(shards, FLIPS, cache="ram") as loader:
        for _ in range(2):  # asked for again, it is bad again
            with pytest.raises(CorruptShardError, match="sample005"):
                keep(loader, 9)


def test_a_pass_over_the_validation_split_keeps_nothing(shards: Path) -> None:
    with make(shards, {}, training=False, cache="ram") as loader:
        assert "cache" not in loader.facts
        assert loader._work.cache is None  # type: ignore[attr-defined]
        assert sum(len(batch.ids) for batch in keep(loader)) == NUM_SAMPLES


def test_the_loader_says_what_it_keeps(shards: Path) -> None:
    with make(shards, FLIPS, cache="ram") as loader:
        assert "cache ram, 0.00 GiB for all samples, images at batch size" in loader.facts
    with make(shards, ALL, cache="ram", cache_mib=512) as loader:
        assert "cache ram, up to 0.50 GiB of images as decoded and masks" in loader.facts
    with make(shards, ALL) as loader:
        assert "cache" not in loader.facts


def test_what_a_split_needs_is_counted_from_its_sizes() -> None:
    stored_hw = np.array([[1280, 1918], [16, 20]], dtype=np.uint32)
    resized = count_need(stored_hw, 1, (160, 240), are_resized=True)
    assert resized.num_bytes == 1280 * 240 + 64 + 2 * 3 * 160 * 240  # 48 bytes take a cache line
    assert resized.largest_bytes == 1280 * 240
    assert count_need(stored_hw, 16, (160, 240), are_resized=False).num_bytes == (3 + 2) * (1280 * 1918 + 16 * 20)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    return lambda num_bytes: monkeypatch.setattr(ramcache, "available_host_bytes", lambda: num_bytes)


def test_all_samples_fit_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramcache, "_SLAB_BYTES", 4096)
    stored_hw = np.random.default_rng(0).integers(8, 90, (200, 2))
    need = count_need(stored_hw, 8, (20, 30), are_resized=True)
    assert describe_cache(need.most_bytes, need) == "ram, 0.00 GiB for all samples, images at batch size"
    for max_bytes in (need.most_bytes, need.num_bytes // 2):
        cache = RamCache(max_bytes, slab_bytes=need.slab_bytes)
        for sample, (height, width) in enumerate(stored_hw.tolist()):
            cache.keep(("image", sample), np.zeros((20, 30, 3), dtype=np.uint8))
            cache.keep(("mask", sample), np.zeros((height, width), dtype=np.uint8))
        if max_bytes == need.most_bytes:
            assert len(cache) == 400
    # half of it all: what is said of the samples holds of their bytes
    assert describe_cache(max_bytes, need) == "ram, 0.00 GiB for about 47% of the samples, images at batch size"
    held = [array.nbytes for key in itertools.product(("image", "mask"), range(200)) if (array := cache.find(key)) is not None]
    assert 0.45 < sum(held) / need.num_bytes <= 0.5
    assert cache.num_bytes <= max_bytes


def test_a_copy_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, copyto = RamCache(10_000), np.copyto
    inside: list[tuple[np.ndarray | None, np.ndarray | None]] = []

    def copy(target: np.ndarray, source: np.ndarray) -> None:
        if not inside:
            inside.append((None, None))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(cache.keep, "other", np.arange(4)).result()
                pool.submit(cache.keep, "one", np.arange(5)).result()  # is being kept: this one goes
            inside.append((cache.find("one"), cache.find("other")))
        copyto(target, source)

    monkeypatch.setattr(ramcache.np, "copyto", copy)
    cache.keep("one", np.arange(3))
    half_done, other = inside[1]
    assert half_done is None  # nobody finds what is not whole
    assert other is not None
    kept = cache.find("one")
    assert kept is not None
    assert kept.tolist() == [0, 1, 2]


def test_memory_is_taken_by_the_setting_or_half_of_what_is_free(free: Callable[[int | None], None]) -> None:
    all_of_it = count_need(np.full((100_000, 2), 500), 8, (160, 240), are_resized=False)
    little = count_need(np.full((10, 2), 100), 8, (160, 240), are_resized=True)
    free(16 * GIB)
    assert allow_bytes(LoaderConfig(), all_of_it) == 8 * GIB
    assert allow_bytes(LoaderConfig(), all_of_it, local_size=4) == 2 * GIB
    assert allow_bytes(LoaderConfig(cache_mib=1024), all_of_it) == GIB
    assert allow_bytes(LoaderConfig(cache_mib=1024), all_of_it, local_size=4) == GIB // 4
    assert allow_bytes(LoaderConfig(), little, local_size=4) == allow_bytes(LoaderConfig(), little) == little.most_bytes
    assert little.num_bytes < allow_bytes(LoaderConfig(), little) < GIB
    free(2 * GIB)
    assert allow_bytes(LoaderConfig(cache_mib=999_999), little) < GIB  # far more than it needs
    with pytest.raises(UserError, match=r"loader\.cache_mib = 4096 is 4\.00 GiB, and 2\.00 GiB are free"):
        allow_bytes(LoaderConfig(cache_mib=4096), all_of_it)
    with pytest.raises(UserError, match=r"loader\.cache_mib = 4096"):  # shared, it is no less
        allow_bytes(LoaderConfig(cache_mib=4096), all_of_it, local_size=8)
    free(None)
    assert allow_bytes(LoaderConfig(cache_mib=64), all_of_it) == 64 << 20
    with pytest.raises(UserError, match=r"does not say how much memory is free; set loader\.cache_mib"):
        allow_bytes(LoaderConfig(), all_of_it)


def test_arrays_come_back_as_they_were_until_memory_is_used_up() -> None:
    cache = RamCache(10_000, slab_bytes=4_000)
    rng = np.random.default_rng(0)
    arrays = {key: rng.integers(0, 60_000, (5, 70)).astype(np.uint16) for key in range(30)}
    for key, array in arrays.items():
        cache.keep(key, array)
        array_before = array.copy()
        array[...] = 0  # a copy is kept
        arrays[key] = array_before
    kept = [key for key in arrays if cache.find(key) is not None]
    assert len(kept) == len(cache) == 12  # five of 704 bytes in each slab of 4,000, two in the last one of 2,000
    assert cache.num_bytes == 10_000
    for key in kept:
        found = cache.find(key)
        assert found is not None
        assert found.dtype == np.uint16
        assert np.array_equal(found, arrays[key])
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1
    cache.keep(0, np.zeros(3))
    assert np.array_equal(cache.find(0), arrays[0])
    cache = RamCache(10_000, slab_bytes=100)
    cache.keep("large", np.arange(5_000, dtype=np.uint8))  # larger than a slab
    assert np.array_equal(cache.find("large"), np.arange(5_000, dtype=np.uint8))


def test_threads_that_keep_at_once_never_share_memory() -> None:
    cache = RamCache(1 << 20, slab_bytes=1 << 16)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.keep(number % 200, np.full(1_000, number % 200, dtype=np.uint8)), range(800)))
    assert len(cache) == 200
    for number, found in ((number, cache.find(number)) for number in range(200)):
        assert found is not None
        assert (found == number).all()
    starts = sorted(found.ctypes.data for number in range(200) if (found := cache.find(number)) is not None)
    assert all(later - earlier >= 1_000 for earlier, later in itertools.pairwise(starts))
