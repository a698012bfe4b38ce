"""Scores of a model on a split: the loss, and metrics from one confusion matrix over all of its pixels.

The training loop and `unetfast eval` share this code, so their numbers mean the same. Sums stay on the device and are read once
at the end. Several processes that score a split together get the numbers that one would: each sample is counted once, and a
batch's loss is that of all its parts.

Axis legend: N batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.data.labels import LabelTable
from unetfast.data.reader import SplitReader
from unetfast.device import AmpPolicy
from unetfast.distributed import World
from unetfast.infer.fullsize import iter_stripes
from unetfast.infer.scene_score import SceneScore, score_scenes
from unetfast.loader.batch import Batch, Loader
from unetfast.model.losses import SegmentationLoss
from unetfast.model.metrics import (
    CONVENTION,
    SegmentationMetrics,
    compute_metrics,
    confusion_matrix,
    confusion_per_image,
    image_scores,
)
from unetfast.viz.panels import Panel

if TYPE_CHECKING:
    from unetfast.infer.evaluate_post import PostScores

SIZES = ("training", "source")


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Scores of each image by itself (`unetfast.model.metrics.image_scores`), in the order in which they were read.

    Args:
        sample_ids: places in the split's index, int64, (n,).
        iou: mean over the classes that are true or predicted in the image, float32, (n,); NaN without a labelled pixel.
        accuracy: share of its labelled pixels, float32, (n,); NaN without one.
    """

    sample_ids: np.ndarray
    iou: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a model on a split.

    Args:
        loss: mean over the labelled pixels of the split at training size (see `evaluate`); None where there is no labelled
            pixel, or where the model's numbers are not finite.
        metrics: from one confusion matrix over the split.
        num_images: images that were scored.
        size: "training" or "source", the size at which pixels were counted; the loss is taken at training size in any case.
        panels: pictures of the first samples, at training size.
        confusion_KK: counts in pixels, int64, true classes in rows, on the host.
        notes: what the reader of the numbers should know beyond the traps of `metrics.warnings()`.
        images: scores of each image, in the order of the split; pixels counted at `size`.
        post: scores of the same predictions after post-processing; None without any.
    """

    loss: float | None
    metrics: SegmentationMetrics
    num_images: int
    size: str
    confusion_KK: Tensor
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: ImageScores | None = None
    post: PostScores | None = None

    @property
    def scene_score(self) -> SceneScore:
        """(pixel accuracy + mean IoU) / 2, the score of ADE20K's challenge."""
        return score_scenes(self.metrics)

    @property
    def warnings(self) -> list[str]:
        return [*self.notes, *self.metrics.warnings()]

    def to_json(self) -> dict[str, Any]:
        """Return the scores for `json.dumps`: undefined numbers are None, so the JSON is valid everywhere."""
        metrics = self.metrics
        return {
            "loss": self.loss,
            "loss_size": "training",
            "mean_iou": metrics.mean_iou,
            "mean_dice": metrics.mean_dice,
            "pixel_accuracy": metrics.pixel_accuracy,
            "num_images": self.num_images,
            "classes": [
                {"name": entry.name, "iou": entry.iou, "dice": entry.dice, "pixels": entry.pixels} for entry in metrics.classes
            ],
            "num_absent_classes": metrics.num_absent,
            "num_only_predicted_classes": metrics.num_only_predicted,
            "num_pixels": metrics.num_pixels,
            "size": self.size,
            "convention": CONVENTION,
            "warnings": self.warnings,
            **({} if self.post is None else {"post": self.post.to_json(metrics)}),
        }


def evaluate(
    model: nn.Module,
    loader: Loader,
    reader: SplitReader,
    *,
    loss: SegmentationLoss,
    labels: LabelTable,
    device: torch.device,
    amp: AmpPolicy,
    size: str = "training",
    collect_panels: int = 0,
    static_batch_size: int = 0,
    on_batch: Callable[[int], None] | None = None,
    on_logits: Callable[[Tensor, int], None] | None = None,
    world: World | None = None,
) -> Evaluation:
    """Score a model on every sample that a validation loader yields.

    The loss is taken at training size: each batch's loss weighs as much as its labelled pixels (times their class weights, if
    there are any). For cross-entropy and BCE that is the mean over the whole split, whatever the batch size; soft Dice is a
    figure of a batch, and so its mean depends a little on how the split is cut into batches.

    At size "source" the logits of one image at a time are brought to its stored size in stripes and compared with the
    stored mask, so memory does not grow with images or classes.

    The random state is not touched, and every module returns to the mode (training or evaluation) that it was in.

    Args:
        model: uint8 images (N, 3, H, W) to logits (N, K, H, W); may be compiled.
        loader: of validation, not a training stream.
        reader: the split that `loader` reads; for names, and for masks at stored size.
        loss: the loss of training.
        labels: the classes.
        device: where model and batches are.
        amp: the number format of the forward pass.
        size: "training" or "source".
        collect_panels: rows of pictures to keep, from the first samples.
        static_batch_size: smaller batches are padded to this many images, so that a compiled model sees one shape; padding
            counts nowhere. 0 takes the size of the first batch.
        on_batch: told the number of images that this process has done, after each batch; for progress.
        on_logits: given the logits (K, H, W) at training size and the sample id of each image, at size "source" alone.
        world: the processes that score the split together, each with its own part of every batch; all get the same result (but
            for `panels`, which are of the samples of each). All must call, with models of the same weights. None: this one
            alone.

    Raises:
        ValueError: an unknown `size`.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}, not one of {', '.join(SIZES)}")
    world = world or World()
    loss = copy.copy(loss)  # its sums are over the processes that score, not those that train
    loss.total = world.total
    sums = _Sums.start(labels.num_classes, device)
    with _eval_mode(model), torch.no_grad():
        for batch in _same_number(loader, world):
            if batch is None:
                _add_nothing(loss, world, sums)
            else:
                static_batch_size = static_batch_size or len(batch.sample_ids)
                image_NCHW, mask_NHW = _pad_batch(batch, static_batch_size, labels.ignore_index)
                with amp.autocast(device):
                    logits_NKHW = model(image_NCHW)
                _add_loss(loss, world, logits_NKHW, mask_NHW, sums)
                sums.add(batch, _count_batch(logits_NKHW, mask_NHW, batch, reader, labels, size=size, on_logits=on_logits))
                wanted = min(len(batch.sample_ids), collect_panels - len(sums.panels))
                sums.panels += _keep_panels(image_NCHW[:wanted], mask_NHW[:wanted], logits_NKHW[:wanted], batch, reader)
            if on_batch is not None:
                on_batch(sums.num_images)
    return sums.finish(labels, world, size=size)


@dataclass(slots=True)
class _Sums:
    """What a pass adds up; on the device, and of this process, until `finish`."""

    confusion_KK: Tensor
    loss: Tensor  # float64
    weight: Tensor  # float64, of what `loss` is the sum over
    panels: list[tuple[Tensor, Tensor, Tensor, str, str]] = field(default_factory=list)
    scores: list[tuple[np.ndarray, Tensor]] = field(default_factory=list)
    num_images: int = 0

    @classmethod
    def start(cls, num_classes: int, device: torch.device) -> _Sums:
        confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        loss, weight = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        return cls(confusion_KK, loss, weight)

    def add(self, batch: Batch, confusion_NKK: Tensor) -> None:
        """Take the counts of a batch's images."""
        self.confusion_KK += confusion_NKK.sum(dim=0)
        self.scores.append((batch.sample_ids.copy(), image_scores(confusion_NKK)))
        self.num_images += len(batch.sample_ids)

    def finish(self, labels: LabelTable, world: World, *, size: str) -> Evaluation:
        """Read the sums of all processes. A collective. Waits for the GPU."""
        confusion_KK = world.sum(self.confusion_KK)
        mean_loss = _divide(world.mean(self.loss).item(), self.weight.item())
        notes = []
        if mean_loss is not None and not math.isfinite(mean_loss):
            notes.append(f"the loss is {mean_loss}: the model's numbers are not finite (learning rate too high?)")
            mean_loss = None
        return Evaluation(
            loss=mean_loss,
            metrics=compute_metrics(confusion_KK, labels.names),
            num_images=sum(world.gather(self.num_images)),
            size=size,
            confusion_KK=confusion_KK.cpu(),
            panels=[_panel(*parts) for parts in self.panels],
            notes=notes,
            images=_read_image_scores(self.scores, world),
        )


def _count_batch(
    logits_NKHW: Tensor,
    mask_NHW: Tensor,
    batch: Batch,
    reader: SplitReader,
    labels: LabelTable,
    *,
    size: str,
    on_logits: Callable[[Tensor, int], None] | None,
) -> Tensor:
    """Count the pixels of each image of a batch, its padding left out: int64, (N, K, K), on the device."""
    num, num_classes = len(batch.sample_ids), labels.num_classes
    if size == "training":
        pred_NHW = logits_NKHW.max(dim=1).indices  # argmax gives the same, and is 20 times slower on a CPU
        ignore_index = labels.ignore_index
        return confusion_per_image(pred_NHW, mask_NHW, num_classes=num_classes, ignore_index=ignore_index)[:num]
    confusion_NKK = torch.zeros(num, num_classes, num_classes, dtype=torch.int64, device=logits_NKHW.device)
    for place, sample_id in enumerate(batch.sample_ids.tolist()):
        confusion_NKK[place] = _confusion_at_source(logits_NKHW[place], reader, sample_id, labels)
        if on_logits is not None:
            on_logits(logits_NKHW[place], sample_id)
    return confusion_NKK


def _keep_panels(
    image_NCHW: Tensor, mask_NHW: Tensor, logits_NKHW: Tensor, batch: Batch, reader: SplitReader
) -> list[tuple[Tensor, Tensor, Tensor, str, str]]:
    """Copy what a picture of each image needs: a batch is valid until the next one is asked for."""
    kept = []
    for place, logits_KHW in enumerate(logits_NKHW):
        sample_id = int(batch.sample_ids[place])
        parts = (image_NCHW[place].clone(), mask_NHW[place].clone(), logits_KHW.max(dim=0).indices)
        kept.append((*parts, reader.key(sample_id), _caption(reader, sample_id)))
    return kept


def _same_number(loader: Loader, world: World) -> Iterator[Batch | None]:
    """Yield this process's part of every batch of the split; None for each that has no sample for it.

    Only the last batch can be that small. Sums over processes want an answer for it all the same.
    """
    num_batches = 0
    for batch in loader:
        num_batches += 1
        yield batch
    if world.size > 1:
        yield from [None] * (loader.num_batches - num_batches)


def _add_loss(loss: SegmentationLoss, world: World, logits_NKHW: Tensor, mask_NHW: Tensor, sums: _Sums) -> None:
    """Add a batch's loss, times its weight, and its weight; those of the parts of all processes together."""
    weight = world.sum(_loss_weight(loss, mask_NHW))
    # a batch without weight has loss 0; a loss that is not finite must show in the sum all the same
    sums.loss += loss(logits_NKHW, mask_NHW).to(torch.float64) * weight
    sums.weight += weight


def _add_nothing(loss: SegmentationLoss, world: World, sums: _Sums) -> None:
    """Take part in the sums of a batch of which this process has no sample, with one pixel that is ignored."""
    logits_NKHW = torch.zeros(1, loss.num_classes, 1, 1, device=sums.loss.device)
    mask_NHW = torch.full((1, 1, 1), loss.ignore_index, dtype=torch.int64, device=sums.loss.device)
    _add_loss(loss, world, logits_NKHW, mask_NHW, sums)


def _read_image_scores(scores: list[tuple[np.ndarray, Tensor]], world: World) -> ImageScores | None:
    here = None
    if scores:
        score_N2 = torch.cat([part for _, part in scores]).cpu().numpy()
        here = (np.concatenate([sample_ids for sample_ids, _ in scores]), score_N2)
    parts = [part for part in world.gather(here) if part is not None]
    if not parts:
        return None
    sample_ids, score_N2 = (np.concatenate([part[place] for part in parts]) for place in range(2))
    order = np.argsort(sample_ids, kind="stable")
    return ImageScores(sample_ids[order], score_N2[order, 0], score_N2[order, 1])


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _pad_batch(batch: Batch, num: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Fill a smaller batch up with black images whose every pixel is ignored; on the device, same strides."""
    missing = num - len(batch.sample_ids)
    mask_NHW = batch.mask_NHW
    if mask_NHW.dtype == torch.uint16:
        mask_NHW = mask_NHW.to(torch.int32)  # torch computes little with uint16
    if missing <= 0:
        return batch.image_NCHW, mask_NHW
    image_NCHW = F.pad(batch.image_NCHW, (0, 0, 0, 0, 0, 0, 0, missing))
    if batch.image_NCHW.is_contiguous(memory_format=torch.channels_last):
        image_NCHW = image_NCHW.contiguous(memory_format=torch.channels_last)
    return image_NCHW, F.pad(mask_NHW, (0, 0, 0, 0, 0, missing), value=ignore_index)


def _loss_weight(loss: SegmentationLoss, mask_NHW: Tensor) -> Tensor:
    """Sum of the class weights of all labelled pixels; without class weights their number."""
    valid_NHW = mask_NHW != loss.ignore_index
    index_NHW = torch.where(valid_NHW, mask_NHW, 0).to(torch.int64)
    weight_NHW = loss.class_weights_K.to(torch.float64)[index_NHW] * valid_NHW
    return weight_NHW.sum()


def _confusion_at_source(logits_KHW: Tensor, reader: SplitReader, sample_id: int, labels: LabelTable) -> Tensor:
    stored_HW = np.require(reader.decode_mask(sample_id), requirements="W")  # torch takes no read-only memory
    mask_HW = torch.from_numpy(stored_HW).to(logits_KHW.device)
    height, width = mask_HW.shape
    num_classes = labels.num_classes
    confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=logits_KHW.device)
    for top, stripe_KHW in iter_stripes(logits_KHW, (height, width)):
        pred_HW = stripe_KHW.max(dim=0).indices
        confusion_KK += confusion_matrix(
            pred_HW[None],
            mask_HW[top : top + len(pred_HW)][None],
            num_classes=num_classes,
            ignore_index=labels.ignore_index,
        )
    return confusion_KK


def _divide(total: float, weight: float) -> float | None:
    return total / weight if weight > 0 else None


def _panel(image_CHW: Tensor, mask_HW: Tensor, pred_HW: Tensor, title: str, caption: str) -> Panel:
    return Panel(image_CHW.permute(1, 2, 0).cpu().numpy(), mask_HW.cpu().numpy(), pred_HW.cpu().numpy(), title, caption)


def _caption(reader: SplitReader, sample_id: int) -> str:
    return str(reader.read_json(sample_id).get("source_path") or reader.key(sample_id))
