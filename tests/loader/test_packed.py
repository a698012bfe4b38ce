"""Samples of LZ4 frames in one call: the batches, and what is said of damage, are those of the way by steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loader_batches import ALL, Kept, keep
from loader_shards import MadeSample, make_labels, make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.labels import LabelTable
from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError
from unetfast.loader import cpu
from unetfast.loader.build import build_loader
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.packed import Done, load_packed

HW = (24, 32)
AUGMENT: dict[str, dict[str, Any]] = {
    "none": {},
    "flips": {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}},
    "rotation": {"rotation": {"prob": 1.0}, "hflip": {"prob": 0.5}},
    "colours": {"rotation": {"prob": 0.5}, "brightness": {"prob": 1.0}},
    "all": ALL,
}
LABELS = {1: make_labels(2, has_ignore=False), 8: make_labels(), 16: make_labels(300)}


@pytest.fixture(autouse=True)
def need_kernel() -> None:
    pytest.importorskip("numba")
    if problem := find_kernel("warp").problem:
        pytest.skip(problem)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[MadeSample], LabelTable], Path]:
    def write(made: list[MadeSample], labels: LabelTable) -> Path:
        return write_shards(tmp_path_factory.mktemp("packed") / "shards", made, labels=labels)

    return write


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[Done]:
    """What the one call has done, each time it was asked."""
    counts: Counter[Done] = Counter()

    def count(*arguments: Any) -> Done:
        done = load_packed(*arguments)
        counts[done] += 1
        return done

    monkeypatch.setattr(cpu, "load_packed", count)
    return counts


def load(folder: Path, augment: dict[str, Any], hw: tuple[int, int] = HW) -> list[Kept]:
    config = build_config(
        {"loader": {"size_hw": list(hw), "batch_size": 4, "backend": "cpu", "threads": 1}, "augment": augment}
    )
    with build_loader(open_shards(folder).split("train"), config, training=True, device=torch.device("cpu")) as loader:
        return keep(loader, 6)


def load_by_steps(folder: Path, augment: dict[str, Any], hw: tuple[int, int] = HW) -> list[Kept]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "load_packed", lambda *_: Done.NOTHING)
        return load(folder, augment, hw)


@pytest.mark.parametrize("mask_bits", LABELS)
@pytest.mark.parametrize("kind", AUGMENT)
def test_batches_are_those_of_the_way_by_steps(
    write: Callable[..., Path], counted: Counter[Done], kind: str, mask_bits: int
) -> None:
    labels = LABELS[mask_bits]
    sizes = [HW, HW, HW, (40, 56), (30, 33)]
    folder = write([make_sample(i, sizes[i % 5], kind="lz4", labels=labels) for i in range(10)], labels)
    assert load(folder, AUGMENT[kind]) == load_by_steps(folder, AUGMENT[kind])
    assert set(counted) == {Done.ALL}


def test_widths_that_the_warp_leaves_to_opencv(write: Callable[..., Path], counted: Counter[Done]) -> None:
    folder = write([make_sample(i, (20, 30), kind="lz4") for i in range(4)], make_labels())
    augment = {"rotation": {"prob": 1.0}, "vflip": {"prob": 0.5}, "contrast": {"prob": 0.5}}
    assert load(folder, augment, (20, 30)) == load_by_steps(folder, augment, (20, 30))
    assert set(counted) == {Done.MASK_AND_DECODE}


def test_other_codecs_and_masks_that_choose_their_crops_are_not_asked_for(
    write: Callable[..., Path], counted: Counter[Done]
) -> None:
    made = [make_sample(0, HW, kind="png"), make_sample(1, HW, kind="lz4", mask_codec="png"), make_sample(2, HW)]
    load(write(made, make_labels()), {})
    packed = write([make_sample(i, HW, kind="lz4") for i in range(4)], make_labels())
    choosing = {"resized_crop": {"prob": 1.0}, "max_class_share": 0.5}
    assert load(packed, choosing) == load_by_steps(packed, choosing)
    assert not counted


@pytest.mark.parametrize("fault", ["zeroed mask", "truncated raw image"])
def test_damage_is_told_as_by_steps(bad_shards: Callable[[str, int], Path], fault: str) -> None:
    config = build_config(
        {"loader": {"size_hw": [24, 32], "batch_size": 4, "backend": "cpu", "checksum": False, "on_bad": "error"}}
    )

    def catch() -> str:
        reader = open_shards(bad_shards(fault, 6)).split("val", checksum=False)
        loader = build_loader(reader, config, training=False, device=torch.device("cpu"))
        with loader, pytest.raises(CorruptShardError) as caught:
            keep(loader)
        return str(caught.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "load_packed", lambda *_: Done.NOTHING)
        expected = catch()
    assert catch() == expected
    assert "cannot be decoded (" in expected
