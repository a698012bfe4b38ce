"""Splits, order and cut follow from names, sizes and the seed alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_source import change, write_source

from unetfast.data.options import PackOptions
from unetfast.data.plan import MIB, assign_splits, build_plan, check_keys, cut_shards, hash_listing, order_samples
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.errors import BadSampleError, UserError


def ref(name: str, group: str = "", split: str = "", num_bytes: int = 1000) -> SampleRef:
    return SampleRef(name, name, FileSpan(name), FileSpan(name), group, split, num_bytes)


def names(refs: list[SampleRef]) -> list[str]:
    return [one.name for one in refs]


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.integers(0, 8), min_size=2, max_size=40),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 1 << 62),
)
def test_no_group_stands_on_both_sides(groups: list[int], fraction: float, seed: int) -> None:
    samples = [ref(f"s{place}", f"g{group}" if group else "") for place, group in enumerate(groups)]
    splits, _, _ = assign_splits(samples, PackOptions(val_fraction=fraction, seed=seed))
    found = {split: {one.group or one.name for one in refs} for split, refs in splits.items()}
    assert sorted(name for refs in splits.values() for name in names(refs)) == sorted(names(samples))
    assert not (found.get("train", set()) & found.get("val", set()))
    num_groups = len({one.group or one.name for one in samples})
    if 0 < fraction < 1 and num_groups > 1:
        assert set(splits) == {"train", "val"}


def test_val_fraction_counts_groups() -> None:
    samples = [ref(f"car{car}_{angle}", f"car{car}") for car in range(318) for angle in range(16)]
    splits, rule, warnings = assign_splits(samples, PackOptions())
    assert {split: len(refs) for split, refs in splits.items()} == {"train": 286 * 16, "val": 32 * 16}
    assert rule == "by group, seed 0, val fraction 0.1, 286 groups train, 32 val"
    assert warnings == []
    other, _, _ = assign_splits(samples, PackOptions(seed=1))
    assert names(other["val"]) != names(splits["val"])


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "train"), (1.0, "val")])
def test_zero_and_one_give_a_single_split(fraction: float, split: str) -> None:
    splits, _, _ = assign_splits([ref("a"), ref("b")], PackOptions(val_fraction=fraction))
    assert {name: len(refs) for name, refs in splits.items()} == {split: 2}


def test_one_group_alone_goes_to_train_with_a_warning() -> None:
    splits, _, warnings = assign_splits([ref("a", "g"), ref("b", "g")], PackOptions())
    assert list(splits) == ["train"]
    assert "no val split" in warnings[0]


def test_own_splits_are_kept_and_shared_groups_told() -> None:
    samples = [ref("a", "g", "train"), ref("b", "g", "val"), ref("c", "h", "test")]
    splits, rule, warnings = assign_splits(samples, PackOptions(val_fraction=0.5))
    assert ({name: names(refs) for name, refs in splits.items()}, rule) == (
        {"train": ["a"], "val": ["b"], "test": ["c"]},
        "source",
    )
    assert len(warnings) == 1
    assert "train and val share 1 groups (g)" in warnings[0]


def test_a_train_split_alone_is_split_too() -> None:
    samples = [ref(f"s{place}", split="train") for place in range(10)]
    splits, rule, _ = assign_splits(samples, PackOptions(val_fraction=0.2))
    assert {name: len(refs) for name, refs in splits.items()} == {"train": 8, "val": 2}
    assert rule.startswith("of the source's train split, by sample")
    splits, _, _ = assign_splits(samples, PackOptions(val_fraction=0))
    assert list(splits) == ["train"]


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(UserError, match="training"):
        assign_splits([ref("a", split="training")], PackOptions())


def test_order_is_shuffled_seeded_and_stable() -> None:
    samples = [ref(f"s{place:03d}") for place in range(200)]
    ordered = names(order_samples(samples, 0))
    assert ordered == names(order_samples(reversed(samples), 0))
    assert ordered != names(samples)
    assert ordered != names(order_samples(samples, 1))
    without = names(order_samples(samples[:100], 0))
    assert [name for name in ordered if name in set(without)] == without
    first_half = sum(name < "s100" for name in ordered[:100])
    assert 30 < first_half < 70


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 5 * MIB), min_size=1, max_size=200), shard_mib=st.floats(0.1, 64))
def test_cut_keeps_order_and_size(sizes: list[int], shard_mib: float) -> None:
    samples = [ref(f"s{place}", num_bytes=size) for place, size in enumerate(sizes)]
    shards = cut_shards(samples, shard_mib)
    assert [one for shard in shards for one in shard] == samples
    assert all(shards)
    for shard in shards:
        assert sum(one.num_bytes for one in shard) <= shard_mib * MIB + max(sizes)


def test_small_splits_are_cut_for_many_workers() -> None:
    carvana = [ref(f"s{place}", num_bytes=100_000) for place in range(5088)]
    assert len(cut_shards(carvana, 64)) == 16
    assert len(cut_shards(carvana[:100], 64)) == 9
    assert len(cut_shards(carvana[:5], 64)) == 1
    assert len(cut_shards(carvana, 8)) == 61


def test_clashing_keys_name_both_files() -> None:
    with pytest.raises(BadSampleError, match=r"a/b.* that c/d too|has the key") as caught:
        check_keys([ref("same"), SampleRef("same", "other.jpg", FileSpan(""), FileSpan(""))])
    assert "same" in str(caught.value)
    assert "other.jpg" in str(caught.value)


def test_listing_hash_knows_names_sizes_times_but_no_place(tmp_path: Path) -> None:
    scan = write_source(tmp_path / "a", 4)
    names_hash, times_hash = hash_listing(scan.samples, tmp_path / "a")
    assert hash_listing(scan.samples[::-1], tmp_path / "a") == (names_hash, times_hash)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = write_source(tmp_path / "b", 4)
    assert hash_listing(moved.samples, tmp_path / "b")[0] == names_hash
    Path(scan.samples[0].mask.path).write_bytes(b"longer than before" * 100)
    assert hash_listing(scan.samples, tmp_path / "a")[0] != names_hash
    Path(scan.samples[0].mask.path).unlink()
    gone = hash_listing(scan.samples, tmp_path / "a")  # told by name when it is to be packed
    assert gone[0] != names_hash
    assert hash_listing(scan.samples, tmp_path / "a") == gone


def test_plan_holds_every_sample_once(tmp_path: Path) -> None:
    scan = write_source(tmp_path, 12, splits=("train", "val"))
    plan = build_plan(scan, tmp_path, PackOptions(shard_mib=0.002))
    packed = Counter((shard.split, one.name) for shard in plan.shards for one in shard.samples)
    assert packed == Counter((one.split, one.name) for one in scan.samples)
    assert [shard.name for shard in plan.shards][:2] == ["train/000000", "train/000001"]
    assert (plan.num_samples, plan.count_samples()) == (12, {"train": 6, "val": 6})
    with pytest.raises(UserError, match="no pair of image and mask"):
        build_plan(change(scan, samples=[]), tmp_path, PackOptions())


@pytest.mark.parametrize(
    "fields",
    [
        {"val_fraction": 1.5},
        {"seed": -1},
        {"max_side": 0},
        {"size_hw": (0, 4)},
        {"size_hw": (4, 4), "max_side": 4},
        {"shard_mib": 0.0},
        {"shard_mib": float("nan")},
        {"max_bad": -1},
        {"image_codec": "webp"},
        {"mask_codec": "gif"},
        {"exif": "rotate"},
        {"on_bad": "ignore"},
    ],
)
def test_options_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--"):
        PackOptions(**fields)  # type: ignore[arg-type]
