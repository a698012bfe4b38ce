"""Metrics against scikit-learn, torchmetrics and counting by hand; conventions; the traps that must be named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_jaccard_index

from unetfast.model.metrics import CONVENTION, compute_metrics, confusion_matrix

IGNORE = 255
NAMES = ["sky", "road", "car", "tree", "person"]


def _batch(seed: int = 0, *, num_classes: int = 5, num_used: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, num_used, (3, 6, 11), generator=generator)
    pred = torch.randint(0, num_classes, (3, 6, 11), generator=generator)
    pred = torch.where(torch.rand(mask.shape, generator=generator) < 0.6, mask, pred)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORE
    return pred, mask.to(torch.uint8)


def _confusion(pred: Tensor, mask: Tensor, num_classes: int = 5) -> Tensor:
    return confusion_matrix(pred, mask, num_classes=num_classes, ignore_index=IGNORE)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(2, 9))
def test_confusion_matrix_is_scikit_learns(seed: int, num_classes: int) -> None:
    pred, mask = _batch(seed, num_classes=num_classes, num_used=num_classes)
    valid = mask != IGNORE
    expected = sklearn_confusion_matrix(mask[valid].numpy(), pred[valid].numpy(), labels=list(range(num_classes)))
    got = _confusion(pred, mask, num_classes)
    assert got.dtype == torch.int64
    assert np.array_equal(got.numpy(), expected)


def test_confusion_matrix_counts_true_classes_in_rows() -> None:
    pred = torch.tensor([[[1, 1, 0]]])
    mask = torch.tensor([[[0, 0, IGNORE]]], dtype=torch.uint8)
    assert _confusion(pred, mask, 2).tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
@pytest.mark.parametrize("pred_dtype", [torch.uint8, torch.uint16, torch.int64])
def test_integers_of_any_width_count_the_same(pred_dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    pred, mask = _batch()
    assert torch.equal(_confusion(pred.to(pred_dtype), mask.to(mask_dtype)), _confusion(pred, mask))


def test_wide_masks_and_many_classes() -> None:
    pred = torch.tensor([[[299, 0, 7]]])
    mask = torch.tensor([[[299, 7, 65535]]]).to(torch.uint16)
    got = confusion_matrix(pred, mask, num_classes=300, ignore_index=65535)
    assert got.nonzero().tolist() == [[7, 0], [299, 299]]


def test_confusion_matrices_of_parts_add_up_to_that_of_the_whole() -> None:
    pred, mask = _batch()
    parts = [_confusion(pred[n : n + 1], mask[n : n + 1]) for n in range(3)]
    assert torch.equal(torch.stack(parts).sum(0), _confusion(pred, mask))
    assert int(_confusion(pred, mask).sum()) == int((mask != IGNORE).sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.uint16])
def test_a_gpu_counts_the_same_without_a_wait(mask_dtype: torch.dtype) -> None:
    pred, mask = _batch()
    device_pred, device_mask = pred.cuda(), mask.cuda().to(mask_dtype)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = _confusion(device_pred, device_mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), _confusion(pred, mask))


def test_counts_are_exact_past_the_integers_of_float32() -> None:
    confusion = torch.tensor([[2**53 + 1, 0], [0, 1]])
    metrics = compute_metrics(confusion, ["a", "b"])
    assert metrics.classes[0].pixels == 2**53 + 1
    assert metrics.mean_iou == 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_used=st.integers(1, 5), shown=st.integers(1, 5))
def test_metrics_are_those_of_scikit_learn_and_torchmetrics(seed: int, num_used: int, shown: int) -> None:
    """Also where classes are absent from the labels, the predictions or both."""
    pred, mask = _batch(seed, num_classes=shown, num_used=num_used)
    metrics = compute_metrics(_confusion(pred, mask), NAMES)
    valid = mask != IGNORE
    true_P, pred_P = mask[valid].long(), pred[valid]
    seen_K = np.isin(range(5), torch.cat([true_P, pred_P]).numpy())
    options = {"labels": list(range(5)), "average": None, "zero_division": 0}
    iou_K = np.where(seen_K, jaccard_score(true_P, pred_P, **options), np.nan)
    dice_K = np.where(seen_K, f1_score(true_P, pred_P, **options), np.nan)
    for entry, iou, dice in zip(metrics.classes, iou_K, dice_K, strict=True):
        assert (np.nan if entry.iou is None else entry.iou) == pytest.approx(iou, nan_ok=True)
        assert (np.nan if entry.dice is None else entry.dice) == pytest.approx(dice, nan_ok=True)
    assert metrics.pixel_accuracy == pytest.approx(accuracy_score(true_P, pred_P))
    assert metrics.num_absent == 5 - seen_K.sum()

    wide = torch.where(valid, mask.long(), -1)
    options = {"num_classes": 5, "ignore_index": -1}
    assert metrics.mean_iou == pytest.approx(multiclass_jaccard_index(pred, wide, average="macro", **options).item(), abs=1e-6)
    assert metrics.mean_dice == pytest.approx(multiclass_f1_score(pred, wide, average="macro", **options).item(), abs=1e-6)
    accuracy = multiclass_accuracy(pred, wide, average="micro", **options).item()
    assert metrics.pixel_accuracy == pytest.approx(accuracy, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_dice_and_iou_are_tied(seed: int) -> None:
    """Dice = 2 IoU / (1 + IoU), per class."""
    for entry in compute_metrics(_confusion(*_batch(seed)), NAMES).classes:
        assert entry.iou is not None
        assert entry.dice == pytest.approx(2 * entry.iou / (1 + entry.iou))


def test_conventions_of_absent_and_only_predicted_classes() -> None:
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1], confusion[2, 2] = 6, 2, 4  # road is predicted but never true; tree, person are absent
    metrics = compute_metrics(confusion, NAMES)
    assert [entry.iou for entry in metrics.classes] == [0.75, 0.0, 1.0, None, None]
    assert [entry.dice for entry in metrics.classes] == [pytest.approx(12 / 14), 0.0, 1.0, None, None]
    assert [entry.pixels for entry in metrics.classes] == [8, 0, 4, 0, 0]
    assert metrics.mean_iou == pytest.approx(1.75 / 3)
    assert metrics.pixel_accuracy == pytest.approx(10 / 12)
    assert (metrics.num_absent, metrics.num_only_predicted, metrics.num_pixels) == (2, 1, 12)
    assert any("without a single true pixel: 1" in line for line in metrics.warnings())
    assert "absent" in CONVENTION


def test_to_dict_is_json_with_null_for_absent_classes() -> None:
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    confusion[0, 0], confusion[2, 2] = 6, 4
    data = json.loads(json.dumps(compute_metrics(confusion, NAMES).to_dict(), allow_nan=False))
    assert data["mean_iou"] == data["mean_dice"] == data["pixel_accuracy"] == 1.0
    assert data["classes"][0] == {"name": "sky", "iou": 1.0, "dice": 1.0, "pixels": 6}
    assert data["classes"][4] == {"name": "person", "iou": None, "dice": None, "pixels": 0}


def test_nothing_labelled_has_no_numbers_and_says_so() -> None:
    pred, mask = _batch()
    metrics = compute_metrics(_confusion(pred, torch.full_like(mask, IGNORE)), NAMES)
    assert metrics.mean_iou is metrics.mean_dice is metrics.pixel_accuracy is None
    assert metrics.num_absent == 5
    assert len(metrics.warnings()) == 1
    assert "no labelled pixel" in metrics.warnings()[0]


def test_good_numbers_carry_no_warning() -> None:
    assert compute_metrics(_confusion(*_batch()), NAMES).warnings() == []
    assert compute_metrics(torch.tensor([[9]]), ["only"]).warnings() == []


def test_every_label_of_one_class_is_a_trap() -> None:
    """Labels all background: accuracy is 1, and other programs report a mean IoU of 0.5."""
    metrics = compute_metrics(torch.tensor([[100, 0], [0, 0]]), ["background", "car"])
    assert (metrics.pixel_accuracy, metrics.mean_iou, metrics.num_absent) == (1.0, 1.0, 1)
    assert ["every labelled pixel is of class 'background'" in line for line in metrics.warnings()] == [True]


def test_one_class_predicted_everywhere_is_a_trap() -> None:
    metrics = compute_metrics(torch.tensor([[90, 0], [10, 0]]), ["background", "car"])
    assert metrics.only_predicted_class == "background"
    assert ["predicted as class 'background'" in line for line in metrics.warnings()] == [True]
    assert metrics.mean_iou == pytest.approx(0.45)


@pytest.mark.parametrize("where", ["true", "predicted"])
@pytest.mark.parametrize("wrong", [5, 200])
def test_an_unknown_class_id_is_never_passed_over(where: str, wrong: int) -> None:
    pred, mask = _batch()
    mask[0, 0, 0] = 0
    (mask if where == "true" else pred)[0, 0, 0] = wrong
    with pytest.raises(RuntimeError, match="out of bounds"):
        _confusion(pred, mask)


@pytest.mark.parametrize(
    ("pred", "mask", "message"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 3, 2, dtype=torch.uint8), r"\(1, 2, 3\).*\(1, 3, 2\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.uint8), r"\(N, H, W\)"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.uint8), "predictions are torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 3, dtype=torch.bool), "masks are torch.bool"),
    ],
)
def test_ids_that_do_not_fit_are_refused(pred: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _confusion(pred, mask)


def test_an_ignore_index_that_is_a_class_is_refused() -> None:
    pred, mask = _batch()
    with pytest.raises(ValueError, match="ignore_index = 4 names one of the 5 classes"):
        confusion_matrix(pred, mask, num_classes=5, ignore_index=4)


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (torch.zeros(4, 5, dtype=torch.int64), "5 class names"),
        (torch.zeros(5, 5), "torch.float32"),
        (torch.full((5, 5), -1), "negative"),
    ],
)
def test_a_matrix_that_is_not_of_counts_is_refused(confusion: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(confusion, NAMES)
