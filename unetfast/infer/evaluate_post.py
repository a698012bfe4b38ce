"""What becomes of each picture at its stored size while a split is scored: post-processing, and files of a submission.

Axis legend: K classes, H height, W width, C channels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetfast.data.labels import LabelTable
from unetfast.data.reader import SplitReader
from unetfast.errors import UserError
from unetfast.infer.fullsize import iter_stripes
from unetfast.infer.job import MAX_POST_BYTES
from unetfast.infer.outputs import MaskFormat, write_file
from unetfast.infer.post.process import PostProcess
from unetfast.infer.scene_score import score_scenes
from unetfast.infer.submission import submission_name
from unetfast.model.metrics import SegmentationMetrics, compute_metrics, confusion_matrix


@dataclass(frozen=True, slots=True)
class PostScores:
    """Scores of the same predictions after post-processing, at stored size.

    Args:
        text: what was done, as in `--post`.
        metrics: from one confusion matrix over the split, as those without.
        seconds_per_image: time that it took, mean.
    """

    text: str
    metrics: SegmentationMetrics
    seconds_per_image: float

    def to_json(self, without: SegmentationMetrics) -> dict[str, Any]:
        """Return the scores and what they gain or lose (negative) on those without."""
        metrics = self.metrics
        return {
            "steps": self.text,
            "mean_iou": metrics.mean_iou,
            "mean_dice": metrics.mean_dice,
            "pixel_accuracy": metrics.pixel_accuracy,
            **score_scenes(metrics).to_json(),
            "classes": [
                {
                    "name": entry.name,
                    "iou": entry.iou,
                    "dice": entry.dice,
                    "pixels": entry.pixels,
                    "iou_gain": subtract(entry.iou, before.iou),
                }
                for entry, before in zip(metrics.classes, without.classes, strict=True)
            ],
            "mean_iou_gain": subtract(metrics.mean_iou, without.mean_iou),
            "mean_dice_gain": subtract(metrics.mean_dice, without.mean_dice),
            "pixel_accuracy_gain": subtract(metrics.pixel_accuracy, without.pixel_accuracy),
            "seconds_per_image": self.seconds_per_image,
            "size": "source",
        }


def subtract(one: float | None, other: float | None) -> float | None:
    """Return the difference of two numbers that may be undefined."""
    return None if one is None or other is None else one - other


class FullSizeWork:
    """Takes the logits of one picture after the other; see `unetfast.infer.evaluate.evaluate`, `on_logits`.

    Args:
        reader: the split.
        labels: the classes.
        post: post-processing to score; None: the most likely class.
        submission: folder for the masks, after post-processing if there is any; None: no files.
        mask_format: of those.
    """

    def __init__(
        self,
        reader: SplitReader,
        labels: LabelTable,
        *,
        post: PostProcess | None = None,
        submission: Path | None = None,
        mask_format: MaskFormat | None = None,
    ) -> None:
        self._reader = reader
        self._labels = labels
        self._post = post
        self._submission = submission
        self._mask_format = mask_format
        self._confusion_KK = torch.zeros(labels.num_classes, labels.num_classes, dtype=torch.int64)
        self._seconds = 0.0
        self.num_images = 0

    def __call__(self, logits_KHW: Tensor, sample_id: int) -> None:
        mask_HW = self._reader.decode_mask(sample_id)
        height, width = mask_HW.shape
        if self._post is None:
            stripes = [stripe_KHW.max(dim=0).indices.cpu() for _, stripe_KHW in iter_stripes(logits_KHW, (height, width))]
            pred_HW = torch.cat(stripes).numpy()
        else:
            pred_HW = self._refine(self._post, logits_KHW, sample_id, (height, width))
            self._confusion_KK += confusion_matrix(
                torch.from_numpy(pred_HW.astype(np.int64))[None],
                torch.from_numpy(mask_HW.astype(np.int64))[None],
                num_classes=self._labels.num_classes,
                ignore_index=self._labels.ignore_index,
            )
        if self._submission is not None and self._mask_format is not None:
            source_path = str(self._reader.read_json(sample_id).get("source_path") or self._reader.key(sample_id))
            write_file(self._submission / submission_name(source_path), self._mask_format.encode(pred_HW))
        self.num_images += 1

    def _refine(self, post: PostProcess, logits_KHW: Tensor, sample_id: int, size_hw: tuple[int, int]) -> np.ndarray:
        shape_KHW = (len(logits_KHW), *size_hw)
        if 4 * np.prod(shape_KHW) > MAX_POST_BYTES:
            raise UserError(
                f"{self._reader.describe(sample_id)}: --post needs the probabilities of a whole picture at once, here "
                f"{4 * np.prod(shape_KHW) / 2**30:.1f} GiB; the limit is {MAX_POST_BYTES / 2**30:.0f} GiB: "
                "pack with --max-side to score it at a smaller size"
            )
        rgb_HWC = self._reader.decode_image(sample_id)
        probs_KHW = np.empty(shape_KHW, dtype=np.float32)
        for top, stripe_KHW in iter_stripes(logits_KHW, size_hw):
            probs_KHW[:, top : top + stripe_KHW.shape[1]] = stripe_KHW.softmax(dim=0).cpu().numpy()
        start = time.perf_counter()
        pred_HW = post(rgb_HWC, probs_KHW)
        self._seconds += time.perf_counter() - start
        return pred_HW

    def scores(self) -> PostScores | None:
        """Return the scores after post-processing; None without any."""
        if self._post is None:
            return None
        metrics = compute_metrics(self._confusion_KK, self._labels.names)
        return PostScores(self._post.text, metrics, self._seconds / max(self.num_images, 1))
