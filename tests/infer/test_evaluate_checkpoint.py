"""`unetfast eval` from shards and checkpoint on disk to a table or JSON: what stands on stdout, and nothing else does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from unetfast.checkpoint import load_checkpoint, save_checkpoint
from unetfast.config import apply_overrides, build_config
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.pack import PackOptions, pack
from unetfast.data.reader import open_shards
from unetfast.data.toy import write_toy
from unetfast.errors import UserError
from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint
from unetfast.infer.load import build_loss
from unetfast.loader.build import build_loader

SaveModel = Callable[..., Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    write_toy(folder / "Data", "carvana", num_groups=4, images_per_group=3, seed=0, size_hw=(60, 90))
    pack(folder / "Data", folder / "shards", options=PackOptions(val_fraction=0.5), workers=1)
    return folder / "shards"


@pytest.fixture
def checkpoint(shards: Path, save_tiny_model: SaveModel) -> Path:
    return save_tiny_model(open_shards(shards).manifest.labels)


def run_json(shards: Path, checkpoint: Path, **options: object) -> dict[str, object]:
    out = io.StringIO()
    evaluate_checkpoint(shards, checkpoint, json=True, device="cpu", threads=1, stdout=out, **options)  # type: ignore[arg-type]
    assert out.getvalue().count("\n") == 1
    return dict(json.loads(out.getvalue()))


def test_json_is_one_object_on_stdout_and_all_else_is_on_stderr(
    shards: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate_checkpoint(
        shards, checkpoint, json=True, device="cpu", threads=1, console=Console(stderr=True, highlight=False)
    )
    captured = capsys.readouterr()
    tree = json.loads(captured.out)
    assert tree == {
        **evaluation.to_json(),
        **evaluation.scene_score.to_json(),
        "split": "val",
        "weights": "raw",
        "tta": "none",
    }
    assert "best.pt" in captured.err


@pytest.mark.parametrize("size", ["training", "source"])
def test_augmented_scores_are_those_of_the_plain_loop(shards: Path, checkpoint: Path, size: str) -> None:
    stored = load_checkpoint(checkpoint)
    noise_NCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 48), dtype=np.uint8))
    with torch.no_grad():
        stored.weights["head.bias"] -= stored.build_model()(noise_NCHW).mean(dim=(0, 2, 3))  # so that neither class has all
    save_checkpoint(checkpoint, stored)
    model = stored.build_model()
    tree = run_json(shards, checkpoint, tta="flips", size=size)
    assert tree["tta"] == "flips"
    right, losses, num_pixels = 0, [], 0
    with (
        open_shards(shards).split("val") as reader,
        build_loader(reader, stored.config, training=False, device=torch.device("cpu"), batch_size=1) as loader,
        torch.no_grad(),
    ):
        for batch in loader:
            image = batch.image_NCHW
            probs = (model(image).softmax(1) + model(image.flip(3)).softmax(1).flip(3)) / 2
            losses.append(F.nll_loss(probs.log(), batch.mask_NHW.long()))
            mask = torch.from_numpy(np.array(reader.decode_mask(int(batch.sample_ids[0]))))
            if size == "training":
                mask = batch.mask_NHW[0]
            else:
                probs = F.interpolate(probs.log(), size=mask.shape, mode="bilinear").softmax(1)
            right += int((probs[0].argmax(0) == mask).sum())
            num_pixels += mask.numel()
    assert tree["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert tree["pixel_accuracy"] == pytest.approx(right / num_pixels, abs=1e-5)
    assert tree["pixel_accuracy"] != run_json(shards, checkpoint, size=size)["pixel_accuracy"]


def test_augmentation_is_said(shards: Path, checkpoint: Path) -> None:
    out, console = io.StringIO(), Console(file=io.StringIO(), width=200)
    evaluate_checkpoint(shards, checkpoint, device="cpu", threads=1, tta="scales", console=console, stdout=out)
    assert "tta     mean of 3 copies: scales 0.75, 1, 1.25" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "; mean of 3 copies: scales 0.75, 1, 1.25" in out.getvalue()
    with pytest.raises(UserError, match="--tta turns: give one of"):
        evaluate_checkpoint(shards, checkpoint, device="cpu", tta="turns")


def test_numbers_are_those_of_the_loader_and_the_model(shards: Path, checkpoint: Path) -> None:
    tree = run_json(shards, checkpoint)
    stored = load_checkpoint(checkpoint)
    model = stored.build_model()
    with (
        open_shards(shards).split("val") as reader,
        build_loader(reader, stored.config, training=False, device=torch.device("cpu"), batch_size=1) as loader,
        torch.no_grad(),
    ):
        pairs = [(model(batch.image_NCHW).float(), batch.mask_NHW.long()) for batch in loader]
    logits, mask = torch.cat([logits for logits, _ in pairs]), torch.cat([mask for _, mask in pairs])
    assert tree["num_images"] == len(mask) == 6
    assert tree["loss"] == pytest.approx(float(F.cross_entropy(logits, mask)), rel=1e-5)
    assert tree["pixel_accuracy"] == pytest.approx(float((logits.argmax(dim=1) == mask).float().mean()))


def test_source_size_counts_stored_pixels(shards: Path, checkpoint: Path) -> None:
    tree = run_json(shards, checkpoint, size="source")
    with open_shards(shards).split("val") as reader:
        counts = sum(np.bincount(reader.decode_mask(place).reshape(-1), minlength=2) for place in range(reader.num_samples))
    assert [entry["pixels"] for entry in tree["classes"]] == counts.tolist()  # type: ignore[attr-defined, index, union-attr]
    assert tree["size"] == "source"


def test_batch_size_and_threads_change_no_number(shards: Path, checkpoint: Path) -> None:
    first = run_json(shards, checkpoint, batch_size=1)
    other = run_json(shards, checkpoint, batch_size=5)
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert {**other, "loss": 0} == {**first, "loss": 0}


def test_the_table_names_classes_means_and_convention(shards: Path, checkpoint: Path) -> None:
    out = io.StringIO()
    evaluation = evaluate_checkpoint(shards, checkpoint, split="train", device="cpu", threads=1, stdout=out)
    text = out.getvalue()
    for part in ("background", "car", "IoU", "Dice", "pixels", "mean", "split train", "one confusion matrix"):
        assert part in text
    assert f"{evaluation.metrics.mean_iou:.4f}" in text
    assert "at training size 32x48; --size source scores at the stored size" in text
    assert "null" not in text


def test_the_table_at_source_size_says_where_the_loss_was_taken(shards: Path, checkpoint: Path) -> None:
    out, notes = io.StringIO(), io.StringIO()
    console = Console(file=notes, width=200)
    evaluation = evaluate_checkpoint(shards, checkpoint, size="source", device="cpu", threads=1, stdout=out, console=console)
    assert "6 images at their stored size" in out.getvalue()
    assert f"loss at training size {evaluation.loss:.4f}" in out.getvalue()
    assert "best.pt: step 10, 2 classes" in notes.getvalue()
    assert "loader  cpu (no GPU is used)\n" in notes.getvalue()


def test_absent_classes_are_counted_and_have_no_row(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    write_toy(tmp_path / "Data", "clevr", num_groups=2, images_per_group=3, seed=0, size_hw=(32, 48))
    pack(tmp_path / "Data", tmp_path / "shards", workers=1)
    checkpoint = save_tiny_model(open_shards(tmp_path / "shards").manifest.labels)
    out = io.StringIO()
    evaluation = evaluate_checkpoint(tmp_path / "shards", checkpoint, device="cpu", threads=1, stdout=out)
    metrics = evaluation.metrics
    assert metrics.num_absent > 0
    assert f"{metrics.num_absent} of 49 classes absent" in out.getvalue()
    absent = next(entry.name for entry in metrics.classes if entry.iou is None)
    assert not any(line.strip().startswith(absent) for line in out.getvalue().splitlines())


def test_other_classes_are_refused_by_name(shards: Path, save_tiny_model: SaveModel) -> None:
    infos = (ClassInfo(name="background", color=(0, 0, 0), value=0), ClassInfo(name="lorry", color=(1, 1, 1), value=1))
    with pytest.raises(UserError, match="'lorry' in the checkpoint, 'car' in the shards"):
        evaluate_checkpoint(shards, save_tiny_model(LabelTable(classes=infos)), device="cpu")


def test_messages(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test split"):
        evaluate_checkpoint(shards, checkpoint, split="test", device="cpu")
    with pytest.raises(UserError, match="no such folder"):
        evaluate_checkpoint(tmp_path / "nowhere", checkpoint, device="cpu")
    with pytest.raises(UserError, match=r"eval\.size"):
        evaluate_checkpoint(shards, checkpoint, size="huge", device="cpu")
    with pytest.raises(UserError, match=r"did you mean loader\.threads"):
        evaluate_checkpoint(shards, checkpoint, overrides=["loader.thread=1"], device="cpu")


def test_a_checkpoint_made_for_another_backend_is_evaluated_here(shards: Path, save_tiny_model: SaveModel) -> None:
    labels = open_shards(shards).manifest.labels
    loader = {"size_hw": [32, 48], "batch_size": 4, "backend": "dali"}
    assert run_json(shards, save_tiny_model(labels, loader=loader))["num_images"] == 6


def test_automatic_class_weights_come_from_the_train_split(shards: Path) -> None:
    manifest = open_shards(shards).manifest
    config = build_config(apply_overrides({}, ["loss.class_weights=auto"])).loss
    pixels = np.array(manifest.splits["train"].class_pixels)
    weights = build_loss(config, manifest, split="val").class_weights_K.numpy()
    np.testing.assert_allclose(weights, np.median(pixels) / pixels, rtol=1e-6)
    only_val = manifest.model_copy(update={"splits": {"val": manifest.splits["val"]}})
    console = Console(file=io.StringIO(), width=200)
    build_loss(config, only_val, split="val", console=console)
    assert "class weights from val" in console.file.getvalue()  # type: ignore[attr-defined]


def test_class_weights_need_a_labelled_pixel(shards: Path) -> None:
    manifest = open_shards(shards).manifest
    config = build_config(apply_overrides({}, ["loss.class_weights=auto"])).loss
    empty = manifest.splits["val"].model_copy(update={"class_pixels": (0, 0)})
    with pytest.raises(UserError, match="no class has a pixel"):
        build_loss(config, manifest.model_copy(update={"splits": {"val": empty}}), split="val")
