"""Submissions of ADE20K, scored by the challenge's own rules (in numpy), against what `unetfast eval` says."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from unetfast.checkpoint import load_checkpoint, save_checkpoint
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.pack import PackOptions, pack
from unetfast.data.reader import open_shards
from unetfast.data.sources.ade20k import build_labels
from unetfast.errors import UserError
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint, score_checkpoint
from unetfast.infer.predict import predict
from unetfast.infer.submission import check_submission_names, choose_submission_format

SaveModel = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


def score_by_the_toolkit(predictions: Path, annotations: Path) -> tuple[float, float, np.ndarray]:
    """Accuracy, mean IoU and IoU of the 150 classes, after demoEvaluation.m and intersectionAndUnion.m of the toolkit."""
    intersection, union = np.zeros(150), np.zeros(150)
    num_correct = num_labelled = 0
    for file in sorted(predictions.glob("*.png")):
        with Image.open(file) as picture:
            assert picture.mode == "L"  # "Label image should be a gray-scale image!"
            pred_HW = np.array(picture).astype(np.int64)
        with Image.open(annotations / file.name) as picture:
            anno_HW = np.array(picture).astype(np.int64)
        assert pred_HW.shape == anno_HW.shape
        num_labelled += (anno_HW > 0).sum()
        num_correct += ((pred_HW == anno_HW) & (anno_HW > 0)).sum()
        pred_HW = pred_HW * (anno_HW > 0)
        hit = np.bincount((pred_HW * (pred_HW == anno_HW)).reshape(-1), minlength=151)[1:]
        intersection += hit
        union += np.bincount(pred_HW.reshape(-1), minlength=151)[1:] + np.bincount(anno_HW.reshape(-1), minlength=151)[1:] - hit
    iou_K = intersection / (np.finfo(float).eps + union)
    return num_correct / num_labelled, iou_K.mean(), iou_K


def balance(checkpoint: Path, images: list[Path]) -> Path:
    """Shift the random head so that every class has the same mean logit: else one class wins everywhere."""
    loaded = load_checkpoint(checkpoint)
    small = [Image.open(image).convert("RGB").resize((48, 32)) for image in images]
    image_NCHW = torch.from_numpy(np.stack([np.array(picture) for picture in small])).permute(0, 3, 1, 2)
    with torch.no_grad():
        loaded.weights["head.bias"] -= loaded.build_model()(image_NCHW).mean(dim=(0, 2, 3))
    save_checkpoint(checkpoint, loaded)
    return checkpoint


NUMBERS = ("1349", "1599", "1996")  # of pictures that are small enough for a test


@pytest.fixture(scope="module")
def ade_folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real pictures in the challenge's layout."""
    folder = tmp_path_factory.mktemp("ade-source")
    for number in NUMBERS:
        for part in (f"images/validation/ADE_val_0000{number}.jpg", f"annotations/validation/ADE_val_0000{number}.png"):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(real_data / "ade20k" / "ADEChallengeData2016" / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def ade_shards(ade_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ade") / "shards"
    pack(ade_folder, out, workers=1)
    return out


@pytest.fixture(scope="module")
def ade_checkpoint(ade_folder: Path, tmp_path_factory: pytest.TempPathFactory, save_model_at: SaveModel) -> Path:
    """A random net of the 150 classes, in which many classes win somewhere.

    It sees pictures large enough that the loader decodes them in full, as `predict` does.
    """
    checkpoint = save_model_at(tmp_path_factory.mktemp("ade-model") / "best.pt", build_labels(), size_hw=(136, 200))
    return balance(checkpoint, sorted((ade_folder / "images" / "validation").glob("*.jpg")))


@pytest.mark.real
def test_predicted_pngs_score_at_the_toolkit_what_eval_says(
    tmp_path: Path, ade_folder: Path, ade_shards: Path, ade_checkpoint: Path
) -> None:
    report = predict(ade_checkpoint, [ade_folder / "images" / "validation"], tmp_path / "pred", submission=True, device="cpu")
    assert report.num_done == len(NUMBERS)
    files = sorted((tmp_path / "pred").iterdir())
    assert [file.name for file in files] == [f"ADE_val_0000{number}.png" for number in NUMBERS]
    values = np.unique(np.concatenate([np.unique(np.array(Image.open(file))) for file in files]))
    assert len(values) > 20
    assert values.min() >= 1
    assert values.max() <= 150
    accuracy, mean_iou, iou_K = score_by_the_toolkit(tmp_path / "pred", ade_folder / "annotations" / "validation")

    evaluation = score_checkpoint(ade_shards, ade_checkpoint, size="source", device="cpu", threads=1)
    metrics, scene = evaluation.metrics, evaluation.scene_score
    assert metrics.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert [entry.iou or 0.0 for entry in metrics.classes] == pytest.approx(iou_K.tolist(), abs=1e-12)
    assert scene.mean_iou_all_classes == pytest.approx(mean_iou, abs=1e-12)
    assert scene.score_all_classes == pytest.approx((accuracy + mean_iou) / 2, abs=1e-12)
    # ours leaves absent classes out of the mean, and there are some in three pictures
    assert metrics.num_absent > 0
    present = [entry.iou for entry in metrics.classes if entry.iou is not None]
    assert scene.score == pytest.approx((accuracy + sum(present) / len(present)) / 2)
    assert scene.score is not None
    assert scene.score > scene.score_all_classes  # type: ignore[operator]


@pytest.mark.real
def test_eval_writes_the_same_pngs_a_table_and_a_csv(
    tmp_path: Path, ade_folder: Path, ade_shards: Path, ade_checkpoint: Path
) -> None:
    out, notes = io.StringIO(), io.StringIO()
    evaluation = evaluate_checkpoint(
        ade_shards,
        ade_checkpoint,
        device="cpu",
        threads=1,
        submission=tmp_path / "sub",
        csv=tmp_path / "classes.csv",
        stdout=out,
        console=Console(file=notes, width=200),
    )
    assert evaluation.size == "source"
    predict(ade_checkpoint, [ade_folder / "images" / "validation"], tmp_path / "pred", submission=True, device="cpu")
    for file in sorted((tmp_path / "pred").iterdir()):
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "sub" / file.name)), np.array(Image.open(file)))
    assert len(list((tmp_path / "sub").iterdir())) == len(NUMBERS)
    assert "3 grey PNGs of values 1..150; to hand in: zip -j submission.zip" in notes.getvalue()

    text, scene = out.getvalue(), evaluation.scene_score
    assert f"score {scene.score:.4f} = (pixel accuracy + mean IoU) / 2; at original size, as the challenge scores" in text
    assert f"mean IoU {scene.mean_iou_all_classes:.4f}, score {scene.score_all_classes:.4f}" in text
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [info.name for info in build_labels().classes]
    assert [int(row["value"]) for row in rows] == list(range(1, 151))
    for row, entry in zip(rows, evaluation.metrics.classes, strict=True):
        assert row["iou"] == ("" if entry.iou is None else str(entry.iou))
        assert int(row["pixels"]) == entry.pixels


@pytest.mark.real
def test_what_the_score_was_taken_at_is_said(tmp_path: Path, ade_folder: Path, ade_shards: Path, ade_checkpoint: Path) -> None:
    out = io.StringIO()
    evaluate_checkpoint(ade_shards, ade_checkpoint, size="training", device="cpu", threads=1, stdout=out)
    assert "the challenge scores at original size: --size source" in out.getvalue()
    pack(ade_folder, tmp_path / "small", options=PackOptions(max_side=128), workers=1)
    out = io.StringIO()
    evaluate_checkpoint(tmp_path / "small", ade_checkpoint, size="source", device="cpu", threads=1, stdout=out)
    assert "these images were resized when they were packed" in out.getvalue()
    with pytest.raises(UserError, match=r"--submission: the shards hold pictures that were resized \(--max-side 128\)"):
        score_checkpoint(tmp_path / "small", ade_checkpoint, submission=tmp_path / "sub", device="cpu")
    with pytest.raises(UserError, match="--submission works at the stored size of the images"):
        score_checkpoint(ade_shards, ade_checkpoint, submission=tmp_path / "sub", size="training", device="cpu")


@pytest.mark.real
def test_post_processing_is_scored_beside_the_plain_predictions(
    tmp_path: Path, ade_folder: Path, ade_shards: Path, ade_checkpoint: Path
) -> None:
    out = io.StringIO()
    evaluation = evaluate_checkpoint(
        ade_shards,
        ade_checkpoint,
        device="cpu",
        threads=1,
        json=True,
        post="islands:200,holes:200",
        submission=tmp_path / "sub",
        stdout=out,
    )
    tree = json.loads(out.getvalue())
    accuracy, mean_iou, iou_K = score_by_the_toolkit(tmp_path / "sub", ade_folder / "annotations" / "validation")
    post = tree["post"]
    assert post["steps"] == "islands:200,holes:200"
    assert post["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert [entry["iou"] or 0.0 for entry in post["classes"]] == pytest.approx(iou_K.tolist(), abs=1e-12)
    assert post["score_all_classes"] == pytest.approx((accuracy + mean_iou) / 2, abs=1e-12)
    # those without stand beside, unchanged, and the gains are the differences
    plain = score_checkpoint(ade_shards, ade_checkpoint, size="source", device="cpu", threads=1)
    assert (plain.confusion_KK == evaluation.confusion_KK).all()
    assert tree["mean_iou"] == plain.metrics.mean_iou
    assert post["mean_iou_gain"] == pytest.approx(post["mean_iou"] - tree["mean_iou"])
    assert post["mean_iou"] != tree["mean_iou"]
    # predict does the same
    predict(
        ade_checkpoint,
        [ade_folder / "images" / "validation"],
        tmp_path / "pred",
        submission=True,
        post="islands:200,holes:200",
        device="cpu",
    )
    for file in sorted((tmp_path / "pred").iterdir()):
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "sub" / file.name)), np.array(Image.open(file)))


def test_other_classes_make_no_submission(save_tiny_model: SaveModel, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "ADE_val_00000001.jpg")
    with pytest.raises(UserError, match="class 0 there is 'wall' with value 1, here it is 'background' with value 0"):
        predict(save_tiny_model(), [tmp_path / "ADE_val_00000001.jpg"], tmp_path / "out", submission=True, device="cpu")
    official = build_labels()
    with pytest.raises(UserError, match="class 149 there is 'flag' with value 150, here there is none"):
        choose_submission_format(LabelTable(classes=official.classes[:-1], ignore_value=0))
    more = (*official.classes, ClassInfo(name="else", color=(1, 1, 1), value=151))
    with pytest.raises(UserError, match="the model has 151 classes"):
        choose_submission_format(LabelTable(classes=more, ignore_value=0))


def test_other_names_make_no_submission(save_tiny_model: SaveModel, tmp_path: Path) -> None:
    check_submission_names(["ADE_val_00000001", "ADE_test_00000002"])
    for name in ("photo", "validation/ADE_val_00000001", "ADE_val_1", "ADE_val_00000001.jpg"):
        with pytest.raises(UserError, match="is no name of the challenge, such as ADE_val_00000001"):
            check_submission_names([name])
    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "photo.jpg")
    with pytest.raises(UserError, match="photo is no name of the challenge"):
        predict(save_tiny_model(build_labels()), [tmp_path / "in"], tmp_path / "out", submission=True, device="cpu")


def test_the_table_shows_what_post_processing_gives_and_takes(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    from unetfast.data.toy import write_toy

    write_toy(tmp_path / "Data", "carvana", num_groups=2, images_per_group=2, seed=0, size_hw=(60, 90))
    pack(tmp_path / "Data", tmp_path / "shards", options=PackOptions(val_fraction=0.5), workers=1)
    checkpoint = save_tiny_model(open_shards(tmp_path / "shards").manifest.labels)
    balance(checkpoint, sorted((tmp_path / "Data").rglob("*.jpg")))
    out = io.StringIO()
    evaluation = evaluate_checkpoint(
        tmp_path / "shards", checkpoint, device="cpu", threads=1, post="crf:iterations=2", stdout=out
    )
    text, post = out.getvalue(), evaluation.post
    assert post is not None
    assert evaluation.size == "source"
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["class"] == ["class", "IoU", "with", "post", "gain", "Dice", "with", "post", "pixels"]
    for name, before, after in zip(("background", "car"), evaluation.metrics.classes, post.metrics.classes, strict=True):
        assert before.iou is not None
        assert after.iou is not None
        assert rows[name][1:4] == [f"{before.iou:.4f}", f"{after.iou:.4f}", f"{after.iou - before.iou:+.4f}"]
    gain = post.metrics.mean_iou - evaluation.metrics.mean_iou  # type: ignore[operator]
    assert gain != 0
    assert f"--post crf:iterations=2: mean IoU {gain:+.4f} ({'better' if gain > 0 else 'worse'})" in text
    assert "score" not in text.splitlines()[0]  # the challenge's score is for ADE20K
    with pytest.raises(UserError, match="--post works at the stored size of the images: leave --size training out"):
        score_checkpoint(tmp_path / "shards", checkpoint, post="crf", size="training", device="cpu")
    with pytest.raises(UserError, match="no step is called 'smooth'"):
        score_checkpoint(tmp_path / "shards", checkpoint, post="smooth", device="cpu")
