"""Foreground-aware crops: which box a mask takes, and that every backend, thread, rank and resumed run takes the same one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import loader_reference as reference
import numpy as np
import pytest
import torch
import xxhash
from backend_parity import compare_backends, make_lossless, plan_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_backends import dali_only
from loader_batches import Kept, keep
from loader_shards import MadeSample, make_labels, make_sample, write_shards

from unetfast.config import AugmentConfig, build_config
from unetfast.data.labels import LabelTable
from unetfast.errors import UserError
from unetfast.loader.augment import NUM_CANDIDATES, Augmentation, draw_augmentation
from unetfast.loader.batch import Loader
from unetfast.loader.foreground import GRID_PX, choose_crop, find_class_share
from unetfast.loader.order import Places

MakeLoader = Callable[..., Loader]

TARGET_HW = (24, 32)
CROP = {"crop": {"prob": 1.0}}
RESIZED = {"resized_crop": {"prob": 0.8, "area": [0.1, 0.5]}}
CHANGED = {"hflip": {"prob": 0.5}, "rotation": {"prob": 0.5}, "scale": {"prob": 0.5, "range": [0.7, 1.5]}}
SHARE = 0.75
# labels that make masks of 8 bits, of 1 bit packed, and of 16 bits
LABELS = {"8 bits": make_labels(4), "1 bit": make_labels(2, has_ignore=False), "16 bits": make_labels(300)}


def make_blob(number: int, labels: LabelTable, hw: tuple[int, int] = (101, 139)) -> MadeSample:
    """Make a sample that is almost all background: one object of other classes, ignored pixels; the image tells the place."""
    rng = np.random.default_rng(number)
    mask_HW = np.zeros(hw, labels.mask_dtype)
    top, left = rng.integers(0, hw[0] - 25), rng.integers(0, hw[1] - 25)
    mask_HW[top : top + 25, left : left + 25] = labels.num_classes - 1
    mask_HW[top + 8 : top + 12, left : left + 15] = 1
    if labels.has_ignore:
        mask_HW[: 10 + number, : 12 + 2 * number] = labels.ignore_index
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    image_HWC = np.stack([columns, rows, np.full(hw, number)], axis=2).astype(np.uint8)
    return make_lossless(number, image_HWC, mask_HW, labels)


def reference_share(mask_HW: np.ndarray, box: np.ndarray, ignore_index: int) -> float:
    """As in mmsegmentation's RandomCrop, over all pixels of the box."""
    top, left, bottom, right = box
    ids, counts = np.unique(mask_HW[top:bottom, left:right], return_counts=True)
    counts = counts[ids != ignore_index]
    return float(counts.max() / counts.sum()) if counts.size else float("inf")


def reference_choice(mask_HW: np.ndarray, boxes: np.ndarray, share: float, ignore_index: int) -> int:
    shares = [reference_share(mask_HW, box, ignore_index) for box in boxes]
    passing = [place for place, found in enumerate(shares) if found <= share]
    return passing[0] if passing else int(np.argmin(shares))


def make_places(count: int, epoch: int = 3, repeat: int = 1) -> Places:
    ids = np.arange(count)
    return Places(epoch * count + ids, np.full(count, epoch), ids, np.full(count, repeat))


def draw(augment: dict[str, object] | AugmentConfig, count: int = 500, hw: tuple[int, int] = (333, 501)) -> Augmentation:
    config = augment if isinstance(augment, AugmentConfig) else build_config({"augment": augment}).augment
    return draw_augmentation(config, make_places(count), np.tile(hw, (count, 1)), seed=12345, target_hw=(32, 48))


# ---- the share and the choice ----


@given(
    seed=st.integers(0, 2**32 - 1),
    hw=st.tuples(st.integers(1, GRID_PX), st.integers(1, GRID_PX)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(max_examples=60, deadline=None)
def test_the_share_of_small_boxes_is_exact(seed: int, hw: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(seed)
    ignore_index = int(np.iinfo(dtype).max)
    mask_HW = np.full((hw[0] + 7, hw[1] + 5), 3, dtype)
    ids = np.array([0, 1, 200, ignore_index], dtype)
    mask_HW[4 : 4 + hw[0], 2 : 2 + hw[1]] = rng.choice(ids, hw, p=[0.5, 0.2, 0.1, 0.2])
    box = np.array([4, 2, 4 + hw[0], 2 + hw[1]])
    assert find_class_share(mask_HW, box, ignore_index) == reference_share(mask_HW, box, ignore_index)


def test_the_share_of_large_boxes_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        size = rng.integers(129, 1500, 2)
        rows, columns = np.mgrid[: size[0], : size[1]]
        radius = rng.uniform(0.1, 0.6) * size.min()
        inside = np.hypot(rows - rng.uniform(0, size[0]), columns - rng.uniform(0, size[1])) < radius
        mask_HW = inside.astype(np.uint8)
        mask_HW[: size[0] // 5] = 255
        box = np.array([0, 0, *size])
        assert find_class_share(mask_HW, box, 255) == pytest.approx(reference_share(mask_HW, box, 255), abs=0.006)


def test_the_first_box_that_passes_is_taken_else_the_best() -> None:
    mask_HW = np.zeros((40, 40), np.uint8)
    mask_HW[:, 20:] = 1
    mask_HW[:10] = 255

    def box(left: int, top: int = 10) -> list[int]:
        return [top, left, top + 20, left + 20]

    boxes = np.array([box(0), box(4), box(8), box(10), box(9)])  # shares of class 0: 1, 0.8, 0.6, 0.5, 0.55
    assert choose_crop(mask_HW, boxes, 0.75, 255) == 2
    assert choose_crop(mask_HW, boxes, 0.6, 255) == 2  # the share itself still passes
    assert choose_crop(mask_HW, boxes, 0.59, 255) == 3
    assert choose_crop(mask_HW, boxes, 0.2, 255) == 3  # none passes: the best
    assert choose_crop(mask_HW, boxes[[0, 1, 1]], 0.5, 255) == 1  # of equally good ones, the first
    mask_HW[30:] = 255
    empty = np.array([[30, 0, 40, 20], [0, 0, 10, 10]])
    assert choose_crop(mask_HW, empty, 0.75, 255) == 0  # no labelled pixel anywhere
    assert choose_crop(mask_HW, np.array([empty[0], box(0)]), 0.75, 255) == 1  # one class is still better than none


# ---- the draws ----


def test_without_the_option_the_numbers_are_those_they_always_were() -> None:
    numbers = draw(CROP | CHANGED | {"vflip": {"prob": 0.5}, "crop": {"prob": 0.5}, "brightness": {"prob": 0.5}})
    digest = xxhash.xxh3_64()
    for name in ("crop_yxyx", "hflip", "vflip", "degrees", "zoom", "brightness"):
        digest.update(np.ascontiguousarray(getattr(numbers, name)).tobytes())
    assert digest.hexdigest() == "2844e47a3c1fcf47"
    assert numbers.candidates_yxyx.shape == (500, 0, 4)
    assert not numbers.has_candidates


def test_with_the_option_the_first_box_and_all_other_numbers_stay() -> None:
    for crops in (CROP, RESIZED):
        off, on = draw(crops | CHANGED), draw(crops | CHANGED | {"max_class_share": SHARE})
        for name in off.__slots__:
            if name != "candidates_yxyx":
                assert np.array_equal(getattr(off, name), getattr(on, name)), name
        assert np.array_equal(on.candidates_yxyx[:, 0], off.crop_yxyx)


def test_further_boxes_are_drawn_alike_and_are_the_same_for_ever() -> None:
    numbers = draw({"crop": {"prob": 0.5}, "max_class_share": SHARE}, count=4000)
    assert xxhash.xxh3_64_hexdigest(np.ascontiguousarray(numbers.candidates_yxyx[:500]).tobytes()) == "ec4be2799dbfff90"
    assert numbers.candidates_yxyx.shape == (4000, NUM_CANDIDATES, 4)
    is_cropped = (numbers.crop_yxyx != [0, 0, 333, 501]).any(axis=1)
    assert abs(is_cropped.mean() - 0.5) < 0.04
    # what is not cropped stays whole
    assert (numbers.candidates_yxyx[~is_cropped] == [0, 0, 333, 501]).all()
    boxes = numbers.candidates_yxyx[is_cropped].astype(np.float64)
    assert (boxes[:, :, 2:] - boxes[:, :, :2] == [32, 48]).all()
    starts = boxes[:, :, :2] / [333 - 32, 501 - 48]
    assert starts.min() >= 0
    assert starts.max() <= 1
    # each place and each axis uniform, none like another
    assert np.abs(starts.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(starts.std(axis=0) - 12**-0.5).max() < 0.015
    together = np.corrcoef(starts.reshape(len(starts), -1).T)
    assert np.abs(together - np.eye(len(together))).max() < 0.12


def test_a_replaced_box_has_the_matrix_that_it_would_have_been_drawn_with() -> None:
    numbers = draw(RESIZED | CHANGED | {"max_class_share": SHARE}, count=60)
    before = draw(RESIZED | CHANGED | {"max_class_share": SHARE}, count=60)
    for row in range(0, 60, 2):
        numbers.replace_crop(row, numbers.candidates_yxyx[row, 3], (32, 48))
    assert (numbers.crop_yxyx[::2] == before.candidates_yxyx[::2, 3]).all()
    # a target pixel of the upright image lies in the new box where it lay in the old one
    centres = np.array([0.5 * 48, 0.5 * 32, 1.0])
    for row in range(60):
        box, was = numbers.crop_yxyx[row], before.crop_yxyx[row]
        found, old = numbers.mask_matrix[row] @ centres, before.mask_matrix[row] @ centres
        sizes, was_sizes = (box[2:] - box[:2])[::-1], (was[2:] - was[:2])[::-1]
        quarter = 0.25 / np.array([48, 32])
        assert np.allclose((found - quarter - box[1::-1]) / sizes, (old - quarter - was[1::-1]) / was_sizes, atol=1e-9)
        if row % 2:
            assert np.array_equal(numbers.mask_matrix[row], before.mask_matrix[row])
    for name in before.__slots__:
        if name not in ("crop_yxyx", "mask_matrix"):
            assert np.array_equal(getattr(numbers, name), getattr(before, name)), name


# ---- the loaders ----


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[MadeSample]]]:
    folders = {}
    for name, labels in LABELS.items():
        made = [make_blob(number, labels) for number in range(9)]
        folder = write_shards(tmp_path_factory.mktemp("blobs") / "shards", made, labels=labels)
        folders[name] = folder, made
    return folders


@pytest.mark.parametrize("mask_kind", LABELS)
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_batches_are_those_of_a_plain_reference(
    make_loader: MakeLoader, blobs: dict[str, tuple[Path, list[MadeSample]]], mask_kind: str, share: float
) -> None:
    """Boxes of the batch's own size: nothing is resized, so every pixel of image and mask is known."""
    folder, made = blobs[mask_kind]
    ignore_index = LABELS[mask_kind].ignore_index
    augment = CROP | {"hflip": {"prob": 0.5}, "max_class_share": share}
    batches = keep(make_loader(folder=folder, augment=augment, batch_size=5), 12)
    config = build_config({"loader": {"size_hw": TARGET_HW, "batch_size": 5}, "augment": augment})
    ids, numbers = plan_numbers(folder, config, 60)
    assert ids == list(itertools.chain.from_iterable(batch.ids for batch in batches))
    images, masks = (torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in ("image", "mask"))
    chosen = []
    for row, sample_id in enumerate(ids):
        one, boxes = made[sample_id], numbers.candidates_yxyx[row]
        chosen.append(reference_choice(one.mask, boxes, share, ignore_index))
        top, left, bottom, right = boxes[chosen[-1]]
        turned = (slice(None), slice(None, None, -1 if numbers.hflip[row] else 1))
        assert np.array_equal(masks[row], one.mask[top:bottom, left:right][turned]), f"sample {sample_id}, row {row}"
        assert np.array_equal(images[row].transpose(1, 2, 0), one.image[top:bottom, left:right][turned])
    assert 0 in chosen
    assert len(set(chosen)) > 4  # the choice was a real one


@pytest.mark.parametrize("mask_kind", LABELS)
def test_resized_turned_boxes_are_those_of_a_plain_reference(
    make_loader: MakeLoader, blobs: dict[str, tuple[Path, list[MadeSample]]], mask_kind: str
) -> None:
    folder, made = blobs[mask_kind]
    labels, augment = LABELS[mask_kind], RESIZED | CHANGED | {"max_class_share": SHARE}
    batches = keep(make_loader(folder=folder, augment=augment, batch_size=6), 3)
    config = build_config({"loader": {"size_hw": TARGET_HW, "batch_size": 6}, "augment": augment})
    ids, numbers = plan_numbers(folder, config, 18)
    masks = torch.cat([batch.mask for batch in batches]).numpy()
    for row, sample_id in enumerate(ids):
        mask_HW, boxes = made[sample_id].mask, numbers.candidates_yxyx[row]
        numbers.replace_crop(row, boxes[reference_choice(mask_HW, boxes, SHARE, labels.ignore_index)], TARGET_HW)
        expected = reference.render_mask(mask_HW, numbers, row, TARGET_HW, labels.ignore_index)
        assert np.mean(masks[row] != expected) <= 0.002, f"sample {sample_id}, row {row}"


@dali_only
@pytest.mark.parametrize("mask_codec", ["lz4", "png"])
def test_both_backends_take_the_same_box_of_large_masks(
    tmp_path: Path, device: torch.device, backend: str, mask_codec: str
) -> None:
    """Boxes past the size up to which the share is exact, images of every codec, and masks that are read as pixels."""
    assert backend == "dali"
    kinds = ["jpeg", "jpeg420", "gray", "progressive", "lz4", "png"]
    made = [make_sample(i, (300 + 10 * i, 410), kind=kind, mask_codec=mask_codec) for i, kind in enumerate(kinds)]
    folder = write_shards(tmp_path / "shards", made)
    augment = {"resized_crop": {"prob": 1.0, "area": [0.05, 0.6]}, "max_class_share": 0.21} | CHANGED
    files = compare_backends(folder, (48, 64), augment, device=device, batch_size=6, num_batches=4)
    assert len(files) == 24
    for file in files:
        assert file.psnr >= 45
        assert file.mask_share <= 0.001


def test_threads_ranks_and_resume_change_nothing(
    make_loader: MakeLoader, blobs: dict[str, tuple[Path, list[MadeSample]]]
) -> None:
    folder, _ = blobs["1 bit"]
    augment = RESIZED | CHANGED | {"max_class_share": SHARE}

    def make(**changes: object) -> Loader:
        return make_loader(folder=folder, augment=augment, **changes)

    whole = keep(make(threads=1, prefetch_batches=1), 8)
    assert keep(make(threads=5, prefetch_batches=4), 8) == whole
    ranks = [keep(make(rank=rank, world_size=2), 8) for rank in range(2)]
    for batch, one, other in zip(whole, *ranks, strict=True):
        parts = [torch.cat([getattr(one, name), getattr(other, name)]) for name in ("image", "mask")]
        assert Kept(one.ids + other.ids, *parts) == batch
    resumed: list[Kept] = []
    state = make().state_dict()
    for count, threads in ((3, 1), (0, 2), (4, 3), (1, 2)):
        loader = make(threads=threads)
        loader.load_state_dict(json.loads(json.dumps(state)))
        resumed += keep(loader, count)
        state = loader.state_dict()
    assert resumed == whole
    # a loader that has prefetched, and is sent back, plans the same crops again
    loader = make(prefetch_batches=4)
    keep(loader, 2)
    loader.load_state_dict(make().state_dict())
    assert keep(loader, 8) == whole


def test_crops_show_more_of_what_is_rare(make_loader: MakeLoader, blobs: dict[str, tuple[Path, list[MadeSample]]]) -> None:
    folder, _ = blobs["8 bits"]

    def measure(share: float) -> tuple[float, float]:
        """Return how many masks hold at most 75 % of one class, and the rare classes' share of all labelled pixels."""
        augment = {"crop": {"prob": 1.0}, "max_class_share": share}
        masks = [mask.numpy() for batch in keep(make_loader(folder=folder, augment=augment), 60) for mask in batch.mask]
        whole = np.array([0, 0, *TARGET_HW])
        passing = np.mean([reference_share(mask, whole, 255) <= 0.75 for mask in masks])
        labelled = np.concatenate([mask[mask != 255] for mask in masks])
        return float(passing), float(np.mean(labelled > 0))

    (passing_off, rare_off), (passing_on, rare_on) = measure(1.0), measure(0.75)
    assert passing_off < 0.25
    assert passing_on > 0.6
    assert rare_on > 2 * rare_off


def test_a_share_that_every_box_keeps_changes_no_bit(make_loader: MakeLoader) -> None:
    """The first box of all then, which is the one that is drawn without the option."""
    off = keep(make_loader(augment=RESIZED | CHANGED), 5)
    assert keep(make_loader(augment=RESIZED | CHANGED | {"max_class_share": 0.999}), 5) == off


def test_validation_is_not_cropped(make_loader: MakeLoader) -> None:
    augment = RESIZED | {"max_class_share": 0.3}
    assert keep(make_loader(training=False, augment=augment)) == keep(make_loader(training=False))


def test_bad_samples_are_left_out_as_ever(make_loader: MakeLoader, bad_shards: Callable[[str, int], Path]) -> None:
    augment = RESIZED | {"max_class_share": SHARE}
    folder = bad_shards("zeroed bytes", 6)
    batches = keep(make_loader(folder=folder, augment=augment, on_bad="skip"), 7)
    assert 6 not in {sample_id for batch in batches for sample_id in batch.ids}
    alone = {}
    for batch in keep(make_loader(folder=folder, augment=augment, on_bad="skip", batch_size=1, prefetch_batches=1), 24):
        alone.setdefault(batch.ids[0], batch.mask[0])
    first_epoch = {i: mask for batch in batches[::-1] for i, mask in zip(batch.ids[::-1], batch.mask.flip(0), strict=True)}
    assert all(torch.equal(alone[i], mask) for i, mask in first_epoch.items())


# ---- what is refused ----


def test_the_option_without_a_crop_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"augment\.max_class_share = 0\.75 chooses among crops, and none is drawn: set the prob"
    ):
        build_config({"augment": {"max_class_share": 0.75}})
    for share in (0.0, 1.5, -1):
        with pytest.raises(UserError, match="max_class_share"):
            build_config({"augment": CROP | {"max_class_share": share}})


def test_masks_that_a_gpu_inflates_cannot_choose(
    blobs: dict[str, tuple[Path, list[MadeSample]]], make_loader: MakeLoader
) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    folder, _ = blobs["8 bits"]
    with pytest.raises(
        UserError, match=r'max_class_share = 0\.75 with dali\.inflate = "gpu".*--set dali\.inflate=host'
    ) as found:
        make_loader(folder=folder, backend="dali", augment=CROP | {"max_class_share": 0.75}, dali={"inflate": "gpu"})
    assert "\n" not in str(found.value)


def test_a_state_with_another_share_is_refused_and_one_from_before_is_not(make_loader: MakeLoader) -> None:
    state = make_loader(augment=CROP).state_dict()
    old = {key: value for key, value in state.items() if key != "augment.max_class_share"}
    make_loader(augment=CROP).load_state_dict(old)
    for saved in (state, old):
        with pytest.raises(UserError, match=r"augment\.max_class_share: 1\.0 in the saved state, 0\.75 here"):
            make_loader(augment=CROP | {"max_class_share": 0.75}).load_state_dict(saved)
    make_loader(training=False).load_state_dict(make_loader(training=False).state_dict())
