"""Scores of single images against scikit-learn, image by image."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from unetfast.model.metrics import confusion_matrix, confusion_per_image, image_scores

IGNORE = 255


def test_each_images_scores_are_those_of_scikit_learn_on_it_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    mask_NHW = torch.randint(0, 6, (5, 7, 9), generator=generator)
    pred_NHW = torch.where(torch.rand(mask_NHW.shape, generator=generator) < 0.7, mask_NHW, (mask_NHW + 1) % 6)
    mask_NHW[1] = 2  # one class alone
    mask_NHW[torch.rand(mask_NHW.shape, generator=generator) < 0.2] = IGNORE
    confusion_NKK = confusion_per_image(pred_NHW, mask_NHW, num_classes=8, ignore_index=IGNORE)
    assert torch.equal(confusion_NKK.sum(dim=0), confusion_matrix(pred_NHW, mask_NHW, num_classes=8, ignore_index=IGNORE))
    found_N2 = image_scores(confusion_NKK)
    for pred_HW, mask_HW, (iou, accuracy) in zip(pred_NHW, mask_NHW, found_N2.tolist(), strict=True):
        valid = (mask_HW != IGNORE).numpy()
        true, pred = mask_HW.numpy()[valid], pred_HW.numpy()[valid]
        # scikit-learn's macro mean is over the classes that are true or predicted somewhere
        assert np.isclose(iou, jaccard_score(true, pred, average="macro"))
        assert np.isclose(accuracy, accuracy_score(true, pred))


def test_an_image_without_labelled_pixels_has_no_score() -> None:
    mask_NHW = torch.full((2, 3, 3), IGNORE)
    mask_NHW[1] = 0
    confusion_NKK = confusion_per_image(torch.zeros_like(mask_NHW), mask_NHW, num_classes=2, ignore_index=IGNORE)
    found_N2 = image_scores(confusion_NKK)
    assert found_N2[0].isnan().all()
    assert found_N2[1].tolist() == [1.0, 1.0]
