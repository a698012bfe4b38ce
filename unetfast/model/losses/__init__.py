"""Losses over logits and class ids, and their weighted sum.

- pixels.py: a value for each pixel, averaged: cross-entropy, binary cross-entropy, focal. Class weights act on these.
- regions.py: a value for each class over the whole batch: soft Dice, Tversky, Lovasz-softmax. Each present class counts once.
- labels.py: the true classes in the forms that all of them need.
- balance.py: class weights from pixel counts.
- weighted.py: `SegmentationLoss`, the weighted sum that training takes.

All are computed in float32, whatever the format of the logits. None builds a one-hot copy of the mask, which for 150 classes
would be as large as the logits: sums over the true class are gathered instead. Ignored pixels have no part in any value or
gradient, and a batch without a labelled pixel has loss 0 and gradient 0. Nothing here waits for the GPU.

A further loss is one more function over `Labels` in pixels.py or regions.py, and a weight of `SegmentationLoss`.
"""

from unetfast.model.losses.balance import median_frequency_weights
from unetfast.model.losses.labels import Labels
from unetfast.model.losses.pixels import binary_cross_entropy, cross_entropy, focal
from unetfast.model.losses.regions import lovasz_softmax, soft_dice, tversky
from unetfast.model.losses.weighted import PIXEL_WEIGHTED, SegmentationLoss

__all__ = [
    "PIXEL_WEIGHTED",
    "Labels",
    "SegmentationLoss",
    "binary_cross_entropy",
    "cross_entropy",
    "focal",
    "lovasz_softmax",
    "median_frequency_weights",
    "soft_dice",
    "tversky",
]
