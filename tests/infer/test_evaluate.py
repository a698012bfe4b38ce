"""Evaluation against plain numpy and scikit-learn; what must not change its numbers; what its JSON holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix as reference_confusion
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.reader import SplitReader
from unetfast.device import AmpPolicy
from unetfast.infer.evaluate import Evaluation, evaluate
from unetfast.loader.batch import Batch, Loader
from unetfast.model.losses import SegmentationLoss

CPU = torch.device("cpu")
FLOAT32 = AmpPolicy("off", "test")


def make_labels(num_classes: int) -> LabelTable:
    infos = [ClassInfo(name=f"class {k}", color=(k % 256, 0, 0), value=k) for k in range(num_classes)]
    return LabelTable(classes=tuple(infos), ignore_value=65535)


class PixelNet(nn.Module):
    """Logits of each pixel from its own colour; remembers the batch shapes that it saw."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_classes, 3, 1, 1, generator=generator))
        self.norm = nn.BatchNorm2d(num_classes)
        self.dropout = nn.Dropout(0.5)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image_NCHW: Tensor) -> Tensor:
        self.shapes.append(tuple(image_NCHW.shape))
        logits_NKHW = F.conv2d(image_NCHW.float() / 64 - 2, self.weight)
        return cast(Tensor, self.dropout(self.norm(logits_NKHW)))


@dataclass
class ToySplit:
    """Samples in memory, as both loader and reader; its batches share one buffer, as real ones may."""

    image_NHWC: np.ndarray
    mask_NHW: np.ndarray
    batch_size: int = 3
    stored: list[np.ndarray] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        buffer = torch.zeros(self.batch_size, *self.image_NHWC.shape[1:], dtype=torch.uint8)
        for first in range(0, len(self.image_NHWC), self.batch_size):
            part = slice(first, min(first + self.batch_size, len(self.image_NHWC)))
            num = part.stop - first
            buffer[:num] = torch.from_numpy(self.image_NHWC[part])
            mask_NHW = torch.from_numpy(self.mask_NHW[part])
            yield Batch(buffer[:num].permute(0, 3, 1, 2), mask_NHW, np.arange(first, part.stop))
            buffer[:] = 0

    def key(self, sample: int) -> str:
        return f"sample_{sample}"

    def read_json(self, sample: int) -> dict[str, Any]:
        return {"source_path": f"images/sample {sample}.jpg"} if sample else {}

    def decode_mask(self, sample: int) -> np.ndarray:
        mask_HW = self.stored[sample].copy()
        mask_HW.flags.writeable = False
        return mask_HW


def make_split(num: int = 7, num_classes: int = 4, *, ignored: float = 0.1, seed: int = 0, dtype: Any = np.uint8) -> ToySplit:
    rng = np.random.default_rng(seed)
    mask_NHW = rng.integers(0, num_classes, (num, 10, 12)).astype(dtype)
    mask_NHW[rng.random(mask_NHW.shape) < ignored] = np.iinfo(dtype).max
    return ToySplit(rng.integers(0, 256, (num, 10, 12, 3), dtype=np.uint8), mask_NHW)


def run(
    split: ToySplit,
    *,
    num_classes: int = 4,
    model: nn.Module | None = None,
    loss: SegmentationLoss | None = None,
    **options: Any,
) -> Evaluation:
    labels = make_labels(num_classes)
    loss = loss or SegmentationLoss(num_classes=num_classes, ignore_index=labels.ignore_index)
    loader, reader = cast(Loader, split), cast(SplitReader, split)
    model = PixelNet(num_classes) if model is None else model
    return evaluate(model, loader, reader, loss=loss, labels=labels, device=CPU, amp=FLOAT32, **options)


def logits_of(split: ToySplit, num_classes: int = 4) -> Tensor:
    image_NCHW = torch.from_numpy(split.image_NHWC).permute(0, 3, 1, 2)
    with torch.no_grad():
        return cast(Tensor, PixelNet(num_classes).eval()(image_NCHW))


def test_numbers_are_those_of_scikit_learn_over_the_whole_split() -> None:
    split = make_split()
    evaluation = run(split)
    logits_NKHW = logits_of(split)
    valid = split.mask_NHW != 255
    true, pred = split.mask_NHW[valid], logits_NKHW.argmax(dim=1).numpy()[valid]
    np.testing.assert_array_equal(evaluation.confusion_KK.numpy(), reference_confusion(true, pred, labels=range(4)))
    metrics = evaluation.metrics
    assert [entry.iou for entry in metrics.classes] == pytest.approx(jaccard_score(true, pred, average=None))
    assert [entry.dice for entry in metrics.classes] == pytest.approx(f1_score(true, pred, average=None))
    assert metrics.pixel_accuracy == pytest.approx((true == pred).mean())
    assert [entry.pixels for entry in metrics.classes] == np.bincount(true).tolist()
    expected = F.cross_entropy(logits_NKHW, torch.from_numpy(split.mask_NHW).long(), ignore_index=255)
    assert evaluation.loss == pytest.approx(float(expected), rel=1e-6)
    assert evaluation.num_images == 7


@pytest.mark.parametrize(
    "weights",
    [{}, {"cross_entropy": 0.5, "bce": 2.0}, {"class_weights": [0.2, 1.0, 5.0, 0.0]}],
    ids=["cross-entropy", "with bce", "class weights"],
)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_batch_size_changes_nothing(batch_size: int, weights: dict[str, Any]) -> None:
    loss = SegmentationLoss(num_classes=4, ignore_index=255, **weights)
    split = make_split(ignored=0.3)
    split.mask_NHW[2] = 255  # a batch of one without any labelled pixel
    split.batch_size = 3
    first = run(split, loss=loss)
    split.batch_size = batch_size
    other = run(split, loss=loss)
    assert torch.equal(first.confusion_KK, other.confusion_KK)
    assert other.loss == pytest.approx(first.loss, rel=1e-6)


@pytest.mark.parametrize("static_batch_size", [0, 3, 5])
def test_smaller_batches_are_padded_and_padding_counts_nowhere(static_batch_size: int) -> None:
    split = make_split(7)
    model = PixelNet(4)
    evaluation = run(split, model=model, static_batch_size=static_batch_size)
    assert set(model.shapes) == {(static_batch_size or 3, 3, 10, 12)}
    split.batch_size = 7
    assert torch.equal(run(split).confusion_KK, evaluation.confusion_KK)


def test_dice_does_not_see_padding() -> None:
    loss = SegmentationLoss(num_classes=4, ignore_index=255, cross_entropy=0, dice=1)
    split = make_split(3)
    assert run(split, loss=loss, static_batch_size=8).loss == pytest.approx(run(split, loss=loss).loss, rel=1e-6)


def test_a_compiled_model_sees_one_shape() -> None:
    graphs = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, image_NCHW: Tensor) -> Tensor:
            return cast(Tensor, self.conv(image_NCHW.float()))

    model = torch.compile(Plain(), backend=count, fullgraph=True)
    split = make_split(7)
    run(split, model=cast(nn.Module, model))
    assert len(graphs) == 1


def test_source_size_is_the_resized_logits_against_the_stored_mask() -> None:
    split = make_split(5)
    rng = np.random.default_rng(9)
    sizes = [(37, 41), (10, 12), (64, 20), (5, 6), (90, 130)]
    split.stored = [rng.integers(0, 4, size).astype(np.uint8) for size in sizes]
    split.stored[0][:4] = 255
    evaluation = run(split, size="source")
    expected = np.zeros((4, 4), dtype=np.int64)
    for logits_KHW, mask_HW in zip(logits_of(split), split.stored, strict=True):
        resized = F.interpolate(logits_KHW[None], size=mask_HW.shape, mode="bilinear", align_corners=False)
        pred_HW = resized[0].argmax(dim=0).numpy()
        valid = mask_HW != 255
        expected += reference_confusion(mask_HW[valid], pred_HW[valid], labels=range(4))
    moved = np.abs(evaluation.confusion_KK.numpy() - expected).sum() / 2
    assert moved <= 2, "but for pixels where two classes are equal to the last bit"
    assert evaluation.num_images == 5
    assert evaluation.size == "source"
    assert evaluation.loss == pytest.approx(run(split).loss), "the loss stays that of the training size"


def test_more_than_255_classes() -> None:
    split = make_split(4, 300, dtype=np.uint16)
    evaluation = run(split, num_classes=300, collect_panels=1)
    logits_NKHW = logits_of(split, 300)
    valid = split.mask_NHW != 65535
    pred = logits_NKHW.argmax(dim=1).numpy()
    assert int(evaluation.confusion_KK.sum()) == valid.sum()
    assert evaluation.metrics.pixel_accuracy == pytest.approx((pred == split.mask_NHW)[valid].mean())
    split.stored = list(split.mask_NHW)
    assert torch.equal(run(split, num_classes=300, size="source").confusion_KK, evaluation.confusion_KK)


@pytest.mark.parametrize("size", ["training", "source"])
def test_each_image_is_scored_by_itself_under_its_own_id(size: str) -> None:
    split = make_split()
    split.stored = list(split.mask_NHW)
    whole = run(split, static_batch_size=4, size=size)
    assert whole.images is not None
    assert whole.images.sample_ids.tolist() == list(range(7))
    for place in range(7):
        part = slice(place, place + 1)
        one = ToySplit(split.image_NHWC[part], split.mask_NHW[part], stored=split.stored[part])
        alone = run(one, size=size).metrics
        assert whole.images.accuracy[place] == pytest.approx(alone.pixel_accuracy)
        assert whole.images.iou[place] == pytest.approx(alone.mean_iou)


def test_modes_and_random_state_are_left_as_they_were() -> None:
    model = PixelNet(4).train()
    model.norm.eval()  # frozen by the caller
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    run(make_split(), model=model)
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_modes_come_back_after_an_error() -> None:
    class Broken(PixelNet):
        def forward(self, image_NCHW: Tensor) -> Tensor:
            raise RuntimeError("no memory")

    model = Broken(4).train()
    with pytest.raises(RuntimeError, match="no memory"):
        run(make_split(), model=model)
    assert model.training


@pytest.mark.parametrize("size", ["training", "source"])
def test_panels_are_the_first_samples_and_outlive_their_batches(size: str) -> None:
    split = make_split(7)
    split.stored = list(split.mask_NHW)
    panels = run(split, size=size, collect_panels=5).panels
    assert [panel.title for panel in panels] == [f"sample_{place}" for place in range(5)]
    assert [panel.caption for panel in panels[:2]] == ["sample_0", "images/sample 1.jpg"]
    pred_NHW = logits_of(split).argmax(dim=1).numpy()
    for place, panel in enumerate(panels):
        np.testing.assert_array_equal(panel.image_HWC, split.image_NHWC[place])
        np.testing.assert_array_equal(panel.mask_HW, split.mask_NHW[place])
        np.testing.assert_array_equal(panel.pred_HW, pred_NHW[place])
    assert len(run(split, size=size, collect_panels=99).panels) == 7


def test_progress_is_told_in_images() -> None:
    seen: list[int] = []
    run(make_split(7), on_batch=seen.append)
    assert seen == [3, 6, 7]


def test_json_has_its_keys_and_null_for_what_is_undefined() -> None:
    split = make_split(num_classes=2)  # classes 2 and 3 are absent from the truth
    tree = json.loads(json.dumps(run(split).to_json(), allow_nan=False))
    assert {"loss", "mean_iou", "mean_dice", "pixel_accuracy", "num_images", "classes", "warnings"} <= tree.keys()
    assert [sorted(entry) for entry in tree["classes"]] == [["dice", "iou", "name", "pixels"]] * 4
    assert tree["num_images"] == 7
    assert tree["loss_size"] == "training"
    assert "one confusion matrix" in tree["convention"]
    assert any("without a single true pixel" in text for text in tree["warnings"])


def test_absent_classes_are_null_and_counted() -> None:
    class Zero(PixelNet):
        def forward(self, image_NCHW: Tensor) -> Tensor:
            logits_NKHW = super().forward(image_NCHW)
            return logits_NKHW - torch.tensor([0, 0, 1e6, 1e6])[:, None, None]

    tree = run(make_split(num_classes=2), model=Zero(4)).to_json()
    assert [entry["iou"] is None for entry in tree["classes"]] == [False, False, True, True]
    assert tree["num_absent_classes"] == 2
    assert tree["mean_iou"] == pytest.approx(np.mean([entry["iou"] for entry in tree["classes"][:2]]))


def test_nothing_labelled_gives_null_and_a_warning() -> None:
    split = make_split()
    split.mask_NHW[:] = 255
    tree = json.loads(json.dumps(run(split).to_json(), allow_nan=False))
    assert tree["loss"] is tree["mean_iou"] is tree["pixel_accuracy"] is None
    assert any("no labelled pixel" in text for text in tree["warnings"])


def test_numbers_that_are_not_finite_give_null_and_a_warning() -> None:
    model = PixelNet(4)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    tree = json.loads(json.dumps(run(make_split(), model=model).to_json(), allow_nan=False))
    assert tree["loss"] is None
    assert any("not finite" in text for text in tree["warnings"])


def test_one_class_everywhere_is_warned_of() -> None:
    split = make_split()
    split.mask_NHW[:] = 0
    assert any("every labelled pixel is of class" in text for text in run(split).warnings)


def test_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="training, source"):
        run(make_split(), size="huge")
