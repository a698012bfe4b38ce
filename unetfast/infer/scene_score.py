"""How ADE20K's scene parsing challenge scores: (pixel accuracy + mean IoU) / 2.

The rules are those of the challenge's development kit (github.com/CSAILVision/sceneparsing, README.md and demoEvaluation.m,
evaluationCode/intersectionAndUnion.m): pixels labelled 0 count nowhere, sums run over the whole split, and the mean IoU is over
all 150 classes, so that a class with neither true nor predicted pixels counts as 0. Elsewhere in this program such a class is
left out of the mean. On the full validation set every class occurs, and both are the same; on a part of it they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from unetfast.model.metrics import SegmentationMetrics

SCORE_CONVENTION = (
    "score = (pixel_accuracy + mean_iou) / 2; score_all_classes counts absent classes as IoU 0, as the toolkit of ADE20K's "
    "scene parsing challenge does; the challenge scores at original size (size = source, images not resized when packed)"
)


@dataclass(frozen=True, slots=True)
class SceneScore:
    """Both readings of the challenge's score; each None where there is no labelled pixel.

    Args:
        score: with absent classes left out of the mean IoU.
        mean_iou_all_classes: mean IoU with absent classes as 0.
        score_all_classes: with that mean, as the challenge's toolkit computes it.
    """

    score: float | None
    mean_iou_all_classes: float | None
    score_all_classes: float | None

    def to_json(self) -> dict[str, float | str | None]:
        """Return the numbers and what they mean."""
        return {
            "score": self.score,
            "mean_iou_all_classes": self.mean_iou_all_classes,
            "score_all_classes": self.score_all_classes,
            "score_convention": SCORE_CONVENTION,
        }


def score_scenes(metrics: SegmentationMetrics) -> SceneScore:
    """Compute the challenge's score from the metrics of a split."""
    accuracy, mean_iou = metrics.pixel_accuracy, metrics.mean_iou
    if accuracy is None or mean_iou is None:
        return SceneScore(None, None, None)
    mean_iou_all = sum(entry.iou or 0.0 for entry in metrics.classes) / len(metrics.classes)
    return SceneScore((accuracy + mean_iou) / 2, mean_iou_all, (accuracy + mean_iou_all) / 2)
