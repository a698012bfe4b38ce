"""Losses against torch's own, numpy and the laws they must keep: ignored pixels, empty batches, formats, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unetfast.model.losses import SegmentationLoss, median_frequency_weights

IGNORE = 255
NUM_CLASSES = 4
WEIGHTS = [0.5, 2.0, 0.0, 1.25]
PARTS = ("cross_entropy", "bce", "dice", "focal", "tversky", "lovasz")
ALL_LOSSES = [
    {"cross_entropy": 1.0},
    {"bce": 1.0},
    {"dice": 1.0},
    {"focal": 1.0},
    {"focal": 1.0, "focal_gamma": 0.5},
    {"tversky": 1.0},
    {"lovasz": 1.0},
    {"cross_entropy": 1.0, "label_smoothing": 0.1},
    {"cross_entropy": 0.5, "dice": 2.0, "focal": 0.75, "tversky": 1.5},
    {"cross_entropy": 0.5, "bce": 0.25, "dice": 2.0, "focal": 0.75, "tversky": 1.5, "lovasz": 1.25},
]


def _loss(num_classes: int = NUM_CLASSES, ignore_index: int = IGNORE, **options: object) -> SegmentationLoss:
    return SegmentationLoss(
        num_classes=num_classes,
        ignore_index=ignore_index,
        **{"cross_entropy": 0.0, **options},  # type: ignore[arg-type]
    )


def _batch(seed: int = 0, *, classes: int = NUM_CLASSES, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 5, 7, generator=generator, dtype=dtype)
    mask = torch.randint(0, classes, (2, 5, 7), generator=generator)
    mask[torch.rand(2, 5, 7, generator=generator) < 0.3] = IGNORE
    return logits, mask.to(torch.uint8)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs_weighted_mean(class_weights: list[float] | None) -> None:
    logits, mask = _batch()
    table = None if class_weights is None else torch.tensor(class_weights)
    expected = F.cross_entropy(logits, mask.long(), weight=table, ignore_index=IGNORE)
    torch.testing.assert_close(_loss(cross_entropy=1.0, class_weights=class_weights)(logits, mask), expected)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_bce_is_torchs_over_one_hot_labels(class_weights: list[float] | None) -> None:
    logits, mask = _batch()
    valid = mask != IGNORE
    pixels_PK = logits.permute(0, 2, 3, 1)[valid]
    true_P = mask[valid].long()
    one_hot_PK = F.one_hot(true_P, NUM_CLASSES).float()
    weight_P = torch.ones(len(true_P)) if class_weights is None else torch.tensor(class_weights)[true_P]
    loss_P = F.binary_cross_entropy_with_logits(pixels_PK, one_hot_PK, reduction="none").mean(1)
    expected = (loss_P * weight_P).sum() / weight_P.sum()
    torch.testing.assert_close(_loss(bce=1.0, class_weights=class_weights)(logits, mask), expected)


def test_dice_is_ten_lines_of_numpy() -> None:
    logits, mask = _batch()
    mask[mask == 2] = 1  # class 2 is absent from the labels, and left out
    scores = np.exp(logits.numpy().astype(np.float64))
    probs = scores / scores.sum(axis=1, keepdims=True)
    labelled = mask.numpy() != IGNORE
    losses = []
    for k in (0, 1, 3):
        is_k = mask.numpy() == k
        overlap = probs[:, k][is_k].sum()
        losses.append(1 - 2 * overlap / (probs[:, k][labelled].sum() + is_k.sum()))
    assert _loss(dice=1.0)(logits, mask).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_dice_of_a_perfect_prediction_is_zero_and_of_a_wrong_one_is_one() -> None:
    _, mask = _batch()
    one_hot = F.one_hot(torch.where(mask == IGNORE, 0, mask).long(), NUM_CLASSES).permute(0, 3, 1, 2).float()
    assert _loss(dice=1.0)(200 * one_hot, mask).item() == pytest.approx(0, abs=1e-6)
    assert _loss(dice=1.0)(200 * one_hot.roll(1, dims=1), mask).item() == pytest.approx(1, abs=1e-6)


def test_the_sum_has_the_given_weights() -> None:
    logits, mask = _batch()
    weights = ALL_LOSSES[-1]
    parts = [weight * _loss(**{name: 1.0})(logits, mask) for name, weight in weights.items()]
    assert weights.keys() == set(PARTS)
    torch.testing.assert_close(_loss(**weights)(logits, mask), torch.stack(parts).sum())


@pytest.mark.parametrize("options", ALL_LOSSES)
def test_a_batch_without_a_label_has_no_loss_and_no_gradient(options: dict[str, float]) -> None:
    logits, mask = _batch()
    logits.requires_grad_()
    loss = _loss(**options)(logits, torch.full_like(mask, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("options", ALL_LOSSES)
def test_ignored_pixels_have_no_part(options: dict[str, float]) -> None:
    logits, mask = _batch()
    changed = torch.where((mask == IGNORE)[:, None], 50 * torch.ones_like(logits), logits).requires_grad_()
    loss = _loss(**options)(changed, mask)
    torch.testing.assert_close(loss.detach(), _loss(**options)(logits, mask))
    loss.backward()
    assert changed.grad is not None
    assert not changed.grad.permute(0, 2, 3, 1)[mask == IGNORE].any()


@pytest.mark.parametrize("options", ALL_LOSSES)
@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_masks_of_any_integer_dtype_give_the_same(options: dict[str, float], mask_dtype: torch.dtype) -> None:
    logits, mask = _batch()
    assert torch.equal(_loss(**options)(logits, mask.to(mask_dtype)), _loss(**options)(logits, mask))


def test_the_ignore_index_of_wide_masks() -> None:
    logits, mask = _batch()
    wide = torch.where(mask == IGNORE, 65535, mask.long()).to(torch.uint16)
    for options in ALL_LOSSES:
        assert torch.equal(_loss(ignore_index=65535, **options)(logits, wide), _loss(**options)(logits, mask))


@pytest.mark.parametrize("options", ALL_LOSSES)
def test_low_precision_logits_are_computed_in_float32(options: dict[str, float]) -> None:
    logits, mask = _batch()
    for dtype in (torch.bfloat16, torch.float16):
        rounded = logits.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(**options)(rounded, mask)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, _loss(**options)(rounded.float(), mask))


@pytest.mark.parametrize("options", ALL_LOSSES)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_stay_finite(options: dict[str, float], scale: float) -> None:
    logits, mask = _batch()
    logits = (logits * scale).requires_grad_()
    loss = _loss(**options)(logits, mask)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("options", ALL_LOSSES)
def test_gradients_are_those_of_finite_differences(options: dict[str, float], class_weights: list[float] | None) -> None:
    if not options.keys() & {"cross_entropy", "bce", "focal"}:
        class_weights = None  # refused: weights would act on nothing
    logits, mask = _batch(dtype=torch.float64)
    loss = _loss(class_weights=class_weights, **options)
    assert torch.autograd.gradcheck(lambda values: loss(values, mask[:1, :2, :3]), logits[:1, :, :2, :3].requires_grad_())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.01, 100))
def test_a_common_factor_of_class_weights_does_not_matter(seed: int, factor: float) -> None:
    logits, mask = _batch(seed)
    weights = [0.5, 2.0, 3.0, 1.25]
    scaled = [factor * weight for weight in weights]
    options = {"cross_entropy": 1.0, "bce": 1.0, "focal": 1.0, "label_smoothing": 0.2}
    first = _loss(**options, class_weights=weights)(logits, mask)
    torch.testing.assert_close(_loss(**options, class_weights=scaled)(logits, mask), first)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_losses_do_not_depend_on_the_order_of_pixels_or_images(seed: int) -> None:
    logits, mask = _batch(seed)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(seed))
    mixed_logits = logits.flatten(2)[:, :, order].unflatten(2, (5, 7)).flip(0)
    mixed_mask = mask.flatten(1)[:, order].unflatten(1, (5, 7)).flip(0)
    for options in ALL_LOSSES:
        loss = _loss(**options)
        torch.testing.assert_close(loss(mixed_logits, mixed_mask), loss(logits, mask))
        assert loss(logits, mask) >= 0


@pytest.mark.parametrize("options", [options for options in ALL_LOSSES if "lovasz" not in options])
@pytest.mark.parametrize("empty", [False, True])
def test_two_halves_of_a_batch_know_the_loss_of_the_whole(options: dict[str, float], empty: bool) -> None:
    """With `total` summing over processes, each of them computes the loss of the whole batch, even one without a label."""
    logits, mask = _batch(20)
    if empty:
        mask[1] = IGNORE
    sums: list[list[Tensor]] = [[], []]
    for part in (0, 1):

        def note(values: Tensor, place: int = part) -> Tensor:
            sums[place].append(values)
            return values

        _loss(**options, total=note)(logits[part : part + 1], mask[part : part + 1])
    assert len(sums[0]) == len(sums[1]) == len([name for name in options if name in PARTS])
    wholes = iter([first + second for first, second in zip(*sums, strict=True)])
    got = _loss(**options, total=lambda _values: next(wholes))(logits[:1], mask[:1])
    torch.testing.assert_close(got, _loss(**options)(logits, mask))


def test_many_classes() -> None:
    logits, mask = _batch(classes=150)
    expected = F.cross_entropy(logits, mask.long(), ignore_index=IGNORE)
    torch.testing.assert_close(_loss(num_classes=150, cross_entropy=1.0)(logits, mask), expected)
    assert 0 < _loss(num_classes=150, dice=1.0)(logits, mask) < 1


def test_class_weights_of_zero_everywhere_in_a_batch() -> None:
    logits, _ = _batch()
    options = {"cross_entropy": 1.0, "bce": 1.0, "focal": 1.0, "label_smoothing": 0.2}
    loss = _loss(**options, class_weights=WEIGHTS)(logits, torch.full((2, 5, 7), 2))
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "every loss has weight 0: give cross_entropy, bce, dice, focal, tversky or lovasz a weight"),
        ({"dice": -1.0}, "dice = -1.0"),
        ({"bce": float("nan")}, "bce = nan"),
        ({"cross_entropy": 1.0, "ignore_index": 3}, "ignore_index = 3 names one of the 4 classes"),
        ({"cross_entropy": 1.0, "num_classes": 0}, "num_classes = 0"),
        ({"cross_entropy": 1.0, "class_weights": [1.0]}, "1 numbers, there are 4 classes"),
        ({"cross_entropy": 1.0, "class_weights": [1.0, -1.0, 1.0, 1.0]}, "must be at least 0"),
        ({"cross_entropy": 1.0, "class_weights": [0.0] * 4}, "one of them above"),
        ({"dice": 1.0, "class_weights": WEIGHTS}, "class_weights act on cross_entropy, bce and focal"),
        ({"tversky": 1.0, "lovasz": 1.0, "class_weights": WEIGHTS}, "dice, tversky and lovasz count each class once"),
        ({"lovasz": float("inf")}, "lovasz = inf"),
        ({"cross_entropy": 1.0, "label_smoothing": 1.0}, "label_smoothing = 1.0: must be at least 0 and below 1"),
        ({"dice": 1.0, "label_smoothing": 0.1}, "label_smoothing = 0.1 acts on cross_entropy alone"),
        ({"focal": 1.0, "focal_gamma": -1.0}, "focal_gamma = -1.0"),
        ({"tversky": 1.0, "tversky_alpha": -0.5}, "tversky_alpha = -0.5"),
        ({"tversky": 1.0, "tversky_alpha": 0.0, "tversky_beta": 0.0}, "one of them above"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _loss(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logits", "mask", "message"),
    [
        (torch.zeros(2, 3, 5, 7), torch.zeros(2, 5, 7, dtype=torch.uint8), r"must be \(N, 4, H, W\)"),
        (torch.zeros(2, 4, 5, 7), torch.zeros(2, 7, 5, dtype=torch.uint8), r"must be \(2, 5, 7\)"),
        (torch.zeros(2, 4, 5, 7), torch.zeros(2, 5, 7), "mask is torch.float32"),
        (torch.zeros(2, 4, 5, 7), torch.zeros(2, 5, 7, dtype=torch.bool), "mask is torch.bool"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(logits: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _loss(cross_entropy=1.0)(logits, mask)


@pytest.mark.parametrize("options", ALL_LOSSES)
def test_an_unknown_class_id_is_never_passed_over(options: dict[str, float]) -> None:
    logits, mask = _batch()
    mask[0, 0, 0] = NUM_CLASSES
    with pytest.raises((IndexError, RuntimeError)):
        _loss(**options)(logits, mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("options", ALL_LOSSES)
def test_a_gpu_computes_the_same_without_a_wait(options: dict[str, float], mask_dtype: torch.dtype) -> None:
    logits, mask = _batch()
    loss = _loss(**options)
    expected = loss(logits, mask)
    on_gpu, device_mask, loss = logits.cuda().requires_grad_(), mask.cuda().to(mask_dtype), loss.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = loss(on_gpu, device_mask)
        got.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), expected)


def test_median_frequency_weights() -> None:
    assert median_frequency_weights([100, 50, 25]) == [0.5, 1.0, 2.0]
    assert median_frequency_weights([100, 0, 25, 50]) == [0.5, 1.0, 2.0, 1.0]  # absent: 1, and not in the median
    assert median_frequency_weights([30, 10]) == pytest.approx([2 / 3, 2])
    assert median_frequency_weights([7]) == [1.0]


@pytest.mark.parametrize(("pixels", "message"), [([0, 0], "no class has a pixel"), ([5, -1], "at least 0"), ([], "no class")])
def test_median_frequency_weights_need_pixels(pixels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        median_frequency_weights(pixels)
