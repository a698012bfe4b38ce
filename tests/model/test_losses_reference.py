"""Focal, Tversky, Lovasz-softmax and label smoothing against torch, segmentation_models_pytorch and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import FocalLoss, LovaszLoss, TverskyLoss
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch import Tensor

from unetfast.model.losses import SegmentationLoss, regions

IGNORE = 255
NUM_CLASSES = 5
WEIGHTS = [0.5, 2.0, 0.75, 1.25, 3.0]


def _loss(**options: object) -> SegmentationLoss:
    options = {"cross_entropy": 0.0, **options}
    return SegmentationLoss(num_classes=NUM_CLASSES, ignore_index=IGNORE, **options)  # type: ignore[arg-type]


def _batch(seed: int, *, dtype: torch.dtype = torch.float32, absent: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits of two images and their masks: a third of the pixels ignored, `absent` classes in no mask."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, NUM_CLASSES, 9, 11, generator=generator, dtype=dtype)
    mask = torch.randint(0, NUM_CLASSES, (2, 9, 11), generator=generator)
    for k in absent:
        mask[mask == k] = 0
    mask[torch.rand(2, 9, 11, generator=generator) < 0.3] = IGNORE
    return logits, mask


def _value_and_gradient(loss: object, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, mask)  # type: ignore[operator]
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def _assert_equal(mine: object, reference: object, logits: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(
        _value_and_gradient(mine, logits, mask), _value_and_gradient(reference, logits, mask), rtol=2e-5, atol=2e-7
    )


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.05, 0.4])
def test_label_smoothing_is_torchs(smoothing: float, class_weights: list[float] | None) -> None:
    table = None if class_weights is None else torch.tensor(class_weights)

    def reference(logits: Tensor, mask: Tensor) -> Tensor:
        return F.cross_entropy(logits, mask, weight=table, ignore_index=IGNORE, label_smoothing=smoothing)

    mine = _loss(cross_entropy=1.0, label_smoothing=smoothing, class_weights=class_weights)
    _assert_equal(mine, reference, *_batch(1))


def test_label_smoothing_leaves_pixels_of_weight_0_out() -> None:
    """Torch would let them pull towards the other classes; here they are as if ignored."""
    logits, mask = _batch(2)
    weights = [0.5, 2.0, 0.0, 1.25, 3.0]
    mine = _loss(cross_entropy=1.0, label_smoothing=0.1, class_weights=weights)(logits, mask)
    without = torch.where(mask == 2, IGNORE, mask)
    table = torch.tensor(weights)
    expected = F.cross_entropy(logits, without, weight=table, ignore_index=IGNORE, label_smoothing=0.1)
    torch.testing.assert_close(mine, expected)
    assert not torch.isclose(expected, F.cross_entropy(logits, mask, table, ignore_index=IGNORE, label_smoothing=0.1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_smps_softmax_form(gamma: float) -> None:
    def reference(logits: Tensor, mask: Tensor) -> Tensor:
        valid = mask != IGNORE
        return softmax_focal_loss_with_logits(logits.permute(0, 2, 3, 1)[valid], mask[valid], gamma=gamma)

    _assert_equal(_loss(focal=1.0, focal_gamma=gamma), reference, *_batch(3))


def test_focal_of_two_classes_is_smps_sigmoid_form() -> None:
    """The softmax of two logits is the sigmoid of their difference."""
    logits, mask = _batch(4)
    logits, mask = logits[:, :2], torch.where((mask == IGNORE) | (mask < 2), mask, mask % 2)
    mine = SegmentationLoss(num_classes=2, ignore_index=IGNORE, cross_entropy=0, focal=1)(logits, mask)
    reference = FocalLoss("binary", gamma=2.0, ignore_index=IGNORE)(logits[:, 1] - logits[:, 0], mask)
    torch.testing.assert_close(mine, reference)


def test_focal_with_gamma_0_is_the_cross_entropy() -> None:
    logits, mask = _batch(5)
    _assert_equal(
        _loss(focal=1.0, focal_gamma=0.0, class_weights=WEIGHTS), _loss(cross_entropy=1.0, class_weights=WEIGHTS), logits, mask
    )


def test_focal_with_class_weights_is_five_lines_of_numpy() -> None:
    logits, mask = _batch(6)
    valid = mask != IGNORE
    scores = np.exp(logits.permute(0, 2, 3, 1)[valid].numpy().astype(np.float64))
    true = mask[valid].numpy()
    p = (scores / scores.sum(axis=1, keepdims=True))[np.arange(len(true)), true]
    weight = np.array(WEIGHTS)[true]
    expected = (weight * (1 - p) ** 3 * -np.log(p)).sum() / weight.sum()
    mine = _loss(focal=1.0, focal_gamma=3.0, class_weights=WEIGHTS)(logits, mask)
    assert mine.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
def test_focal_has_a_gradient_at_pixels_that_are_quite_right(gamma: float) -> None:
    logits = torch.zeros(1, NUM_CLASSES, 1, 3)
    logits[0, 1] = torch.tensor([30.0, 300.0, 1e30])
    _, gradient = _value_and_gradient(_loss(focal=1.0, focal_gamma=gamma), logits, torch.ones(1, 1, 3, dtype=torch.int64))
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("absent", [(), (1, 3)])
def test_tversky_is_smps(alpha: float, beta: float, absent: tuple[int, ...]) -> None:
    """Smp counts an absent class as a loss of 0; here it is left out of the mean."""

    def reference(logits: Tensor, mask: Tensor) -> Tensor:
        loss = TverskyLoss("multiclass", alpha=alpha, beta=beta, ignore_index=IGNORE)(logits, mask)
        return loss * NUM_CLASSES / (NUM_CLASSES - len(absent))

    _assert_equal(_loss(tversky=1.0, tversky_alpha=alpha, tversky_beta=beta), reference, *_batch(7, absent=absent))


def test_tversky_at_one_half_is_dice() -> None:
    logits, mask = _batch(8, absent=(4,))
    _assert_equal(_loss(tversky=1.0, tversky_alpha=0.5, tversky_beta=0.5), _loss(dice=1.0), logits, mask)


def test_tversky_beta_is_what_missed_pixels_cost() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[0, :2] = 1
    missed = torch.zeros(1, NUM_CLASSES, 4, 4)
    missed[0, 0] = 100  # all background: class 1 is missed whole
    dear, cheap = (_loss(tversky=1.0, tversky_alpha=1 - beta, tversky_beta=beta)(missed, mask).item() for beta in (0.9, 0.1))
    # background: TP 8, FP 8, FN 0; class 1: TP 0
    assert dear == pytest.approx(((1 - 8 / (8 + 0.1 * 8)) + 1) / 2)
    assert cheap == pytest.approx(((1 - 8 / (8 + 0.9 * 8)) + 1) / 2)


@pytest.mark.parametrize("absent", [(), (0,), (1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_smps(seed: int, absent: tuple[int, ...]) -> None:
    logits, mask = _batch(seed, absent=absent)
    _assert_equal(_loss(lovasz=1.0), LovaszLoss("multiclass", ignore_index=IGNORE), logits, mask)


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    """On predictions of probability 0 and 1 the extension takes the values of the set function: numpy counts them."""
    _, mask = _batch(9)
    _, pred = _batch(10)
    pred = pred % NUM_CLASSES
    logits = 500.0 * F.one_hot(pred, NUM_CLASSES).permute(0, 3, 1, 2).float()
    valid = mask.numpy() != IGNORE
    losses = []
    for k in range(NUM_CLASSES):
        is_true, is_pred = (mask.numpy() == k) & valid, (pred.numpy() == k) & valid
        losses.append(1 - (is_true & is_pred).sum() / (is_true | is_pred).sum())
    assert _loss(lovasz=1.0)(logits, mask).item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_lovasz_ignores_pixels_that_tie_with_right_ones() -> None:
    """Errors of exactly 0 at labelled pixels must not be mixed with the ignored ones in the order."""
    mask = torch.tensor([[[0, IGNORE, 1, IGNORE, 1, 0]]])
    logits = torch.zeros(1, NUM_CLASSES, 1, 6)
    logits[0, 0, 0] = torch.tensor([200.0, 200, 0, 0, 0, 200])
    logits[0, 1, 0] = torch.tensor([0.0, 0, 200, 200, 0, 0])
    both = [
        _value_and_gradient(loss, logits, mask) for loss in (_loss(lovasz=1.0), LovaszLoss("multiclass", ignore_index=IGNORE))
    ]
    torch.testing.assert_close(both[0], both[1])


def test_lovasz_without_skipping_absent_classes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU sorts absent classes too, since it cannot know; the values are those of the CPU, which skips them."""
    logits, mask = _batch(11, absent=(2, 4))
    expected = _value_and_gradient(_loss(lovasz=1.0), logits, mask)

    monkeypatch.setattr(regions, "_known_absent", lambda num_true_K: frozenset())
    torch.testing.assert_close(_value_and_gradient(_loss(lovasz=1.0), logits, mask), expected)


def test_lovasz_keeps_its_digits_over_many_pixels() -> None:
    """800,000 pixels: a difference of neighbouring Jaccard values would have lost its digits in float32."""
    generator = torch.Generator().manual_seed(12)
    mask = torch.randint(0, 2, (1, 800, 1000), generator=generator)
    logits = torch.randn(1, 2, 800, 1000, generator=generator)
    loss = SegmentationLoss(num_classes=2, ignore_index=IGNORE, cross_entropy=0, lovasz=1)
    value, gradient = _value_and_gradient(loss, logits, mask)
    exact_value, exact_gradient = _value_and_gradient(loss, logits.double(), mask)
    assert value.item() == pytest.approx(exact_value.item(), rel=1e-6)
    largest = exact_gradient.abs().max().item()
    assert (gradient.double() - exact_gradient).abs().max().item() < 1e-4 * largest


@pytest.mark.parametrize("options", [{"focal": 1.0}, {"tversky": 1.0}, {"lovasz": 1.0}])
def test_a_perfect_prediction_costs_nothing(options: dict[str, float]) -> None:
    _, mask = _batch(13)
    safe = torch.where(mask == IGNORE, 0, mask)
    logits = 200.0 * F.one_hot(safe, NUM_CLASSES).permute(0, 3, 1, 2).float()
    assert _loss(**options)(logits, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"focal": 1.0}, {"tversky": 1.0}, {"lovasz": 1.0}, {"cross_entropy": 1.0, "label_smoothing": 0.1}]
)
def test_descent_on_it_finds_the_labels(options: dict[str, float]) -> None:
    logits, mask = _batch(14)
    logits = (0.1 * logits).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    loss = _loss(**options)
    for _ in range(150):
        optimizer.zero_grad()
        loss(logits, mask).backward()
        optimizer.step()
    valid = mask != IGNORE
    assert (logits.argmax(dim=1)[valid] == mask[valid]).float().mean() > 0.98
