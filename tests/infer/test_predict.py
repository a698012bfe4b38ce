"""Prediction from files to files, with a tiny random model: sizes, formats, values, bad images, names."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console

from unetfast.checkpoint import load_checkpoint
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.errors import UserError
from unetfast.infer.predict import predict

SaveModel = Callable[..., Path]
MakeLabels = Callable[[int], LabelTable]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough that resizing keeps something to see."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save_image(path: Path, height: int = 40, width: int = 60, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(height, width, seed)).save(path, **options)
    return path


def read_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def expected_logits(checkpoint: Path, rgb_HWC: np.ndarray) -> torch.Tensor:
    """Resize by Pillow's antialiased filter, run the model, resize the logits by torch: the definition, in three lines."""
    height, width = load_checkpoint(checkpoint).config.loader.size_hw
    small = np.array(Image.fromarray(rgb_HWC).resize((width, height), Image.Resampling.BILINEAR))
    with torch.no_grad():
        logits = load_checkpoint(checkpoint).build_model()(torch.from_numpy(small).permute(2, 0, 1)[None])
    return F.interpolate(logits.float(), size=rgb_HWC.shape[:2], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("size", [(32, 48), (97, 131), (1, 1), (7, 300), (20, 20)])
def test_masks_have_the_image_size_and_the_source_values(
    tmp_path: Path, save_tiny_model: SaveModel, size: tuple[int, int]
) -> None:
    checkpoint = save_tiny_model()
    image = save_image(tmp_path / "in" / "a.png", *size)
    report = predict(checkpoint, [image], tmp_path / "out", device="cpu")
    assert (report.num_done, report.num_replaced, report.failures) == (1, 0, [])
    picture = read_picture(tmp_path / "out" / "a.png")
    assert picture.mode == "P"
    mask_HW = np.asarray(picture)
    assert mask_HW.shape == size
    assert set(np.unique(mask_HW)) <= {0, 255}
    logits = expected_logits(checkpoint, random_image(*size))
    # a resized pixel may be one off between the two filters, which moves a class only where both are near
    clear = ((logits[0] - logits[1]).abs() > 0.05).numpy()
    np.testing.assert_array_equal((mask_HW == 255)[clear], logits.argmax(dim=0).numpy()[clear] == 1)
    assert clear.mean() > 0.5 or size == (1, 1)


def test_probs_are_the_softmax_of_the_resized_logits_and_agree_with_the_mask(
    tmp_path: Path, save_tiny_model: SaveModel, make_labels: MakeLabels
) -> None:
    checkpoint = save_tiny_model(make_labels(5))
    image = save_image(tmp_path / "a.png", 61, 83)
    predict(checkpoint, [image], tmp_path / "out", probs=True, device="cpu")
    probs_KHW = np.load(tmp_path / "out" / "a_probs.npy", allow_pickle=False)
    assert probs_KHW.dtype == np.float16
    assert probs_KHW.shape == (5, 61, 83)
    np.testing.assert_allclose(probs_KHW.astype(np.float32).sum(axis=0), 1, atol=3e-3)
    expected = expected_logits(checkpoint, random_image(61, 83)).softmax(dim=0).numpy()
    np.testing.assert_allclose(probs_KHW, expected, atol=0.02)
    mask_HW = np.asarray(read_picture(tmp_path / "out" / "a.png"))
    of_mask = np.take_along_axis(probs_KHW, mask_HW[None].astype(np.int64) - 1, axis=0)[0]  # class k has value k + 1
    np.testing.assert_array_equal(of_mask, probs_KHW.max(axis=0))


def test_all_outputs_stand_beside_each_other_in_the_tree(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    save_image(tmp_path / "in" / "a.jpg")
    save_image(tmp_path / "in" / "deep" / "b.png", 20, 30)
    predict(save_tiny_model(), [tmp_path / "in"], tmp_path / "out", overlay=True, probs=True, per_class=True, device="cpu")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for name in ("a", "deep/b"):
        assert {f"{name}.png", f"{name}_overlay.jpg", f"{name}_probs.npy"} <= files
        mask_HW = np.asarray(read_picture(tmp_path / "out" / f"{name}.png"))
        classes = [(0, "0_background.png"), (255, "1_car.png")]
        for value, file in classes:
            path = tmp_path / "out" / f"{name}_classes" / file
            assert path.exists() == bool((mask_HW == value).any())
            if path.exists():
                np.testing.assert_array_equal(np.asarray(read_picture(path)) == 255, mask_HW == value)
    assert not [file for file in files if ".tmp-" in file]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batch_size_and_threads_change_nothing(tmp_path: Path, save_tiny_model: SaveModel, batch_size: int) -> None:
    checkpoint = save_tiny_model()
    for place in range(5):
        save_image(tmp_path / "in" / f"{place}.png", 20 + 9 * place, 50, seed=place)
    seen: list[int] = []
    for threads, out in ((1, tmp_path / "one"), (3, tmp_path / "three")):
        seen.append(predict(checkpoint, [tmp_path / "in"], out, batch_size=batch_size, threads=threads, device="cpu").num_done)
    assert seen == [5, 5]
    for place in range(5):
        assert (tmp_path / "one" / f"{place}.png").read_bytes() == (tmp_path / "three" / f"{place}.png").read_bytes()


def test_odd_kinds_of_images_are_predicted(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rgb = Image.fromarray(random_image(33, 47))
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    report = predict(save_tiny_model(), [folder], tmp_path / "out", overlay=True, device="cpu")
    assert report.failures == []
    assert report.num_done == 7
    for name in ("grey.png", "grey.jpg", "cmyk", "bits", "palette", "deep", "alpha"):
        assert read_picture(tmp_path / "out" / f"{name}.png").size == (47, 33)


def test_a_turned_photo_is_predicted_as_it_is_seen(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save_image(tmp_path / "turned.jpg", 30, 50, exif=exif)
    checkpoint = save_tiny_model()
    predict(checkpoint, [image], tmp_path / "apply", device="cpu")
    predict(checkpoint, [image], tmp_path / "ignore", exif="ignore", device="cpu")
    assert read_picture(tmp_path / "apply" / "turned.png").size == (30, 50)
    assert read_picture(tmp_path / "ignore" / "turned.png").size == (50, 30)
    report = predict(checkpoint, [image], tmp_path / "error", exif="error", device="cpu")
    assert "EXIF orientation 6" in report.failures[0].reason


def test_bad_images_are_reported_and_the_rest_done(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    folder = tmp_path / "in"
    for place in range(3):
        save_image(folder / f"good_{place}.jpg", 50, 70, seed=place)
    whole = (folder / "good_0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    console = Console(file=io.StringIO(), width=200)
    report = predict(save_tiny_model(), [folder], tmp_path / "out", batch_size=2, device="cpu", console=console)
    assert report.num_done == 3
    assert [Path(failure.file).name for failure in report.failures] == ["cut.jpg", "empty.png", "text.png"]
    assert all(failure.reason for failure in report.failures)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"good_{place}.png" for place in range(3)]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cut.jpg" in said
    assert "3 images failed" in said
    assert "--on-bad" not in said, "that is an option of packing"


def test_only_bad_images_leave_nothing(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    report = predict(save_tiny_model(), [tmp_path / "a.png"], tmp_path / "out", device="cpu")
    assert (report.num_done, len(report.failures)) == (0, 1)
    assert not (tmp_path / "out").exists()


def test_a_second_run_replaces_its_files_and_says_so(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    checkpoint, image = save_tiny_model(), save_image(tmp_path / "a.jpg")
    predict(checkpoint, [image], tmp_path / "out", device="cpu")
    console = Console(file=io.StringIO(), width=200)
    again = predict(checkpoint, [image], tmp_path / "out", overlay=True, probs=True, device="cpu", console=console)
    assert again.num_replaced == 1
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 mask was there already, and replaced" in said
    assert "NAME.png: palette PNG in the source's values" in said
    assert "NAME_overlay.jpg" in said
    assert "NAME_probs.npy: probabilities, float16, classes x height x width" in said
    assert "NAME_classes" not in said


def test_no_image_is_replaced_by_a_result(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    image = save_image(tmp_path / "a.png")
    before = image.read_bytes()
    with pytest.raises(UserError, match="would replace this image"):
        predict(save_tiny_model(), [image], tmp_path, device="cpu")
    assert image.read_bytes() == before


def test_results_that_clash_are_refused_before_any_work(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    images = [save_image(tmp_path / folder / "a.jpg") for folder in ("x", "y")]
    with pytest.raises(UserError, match="both would be written to"):
        predict(save_tiny_model(), images, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_more_than_255_classes_and_16_bit_values(tmp_path: Path, save_tiny_model: SaveModel, make_labels: MakeLabels) -> None:
    image = save_image(tmp_path / "a.png", 30, 20)
    predict(save_tiny_model(make_labels(300)), [image], tmp_path / "out", overlay=True, device="cpu")
    mask_HW = np.asarray(read_picture(tmp_path / "out" / "a.png"))
    assert mask_HW.dtype == np.uint16
    assert 1 <= mask_HW.min() <= mask_HW.max() <= 300


def test_rgb_sources_get_rgb_masks(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    infos = [ClassInfo(name=str(k), color=(k, 0, 0), value=(k, 100, 200)) for k in range(3)]
    image = save_image(tmp_path / "a.png")
    predict(save_tiny_model(LabelTable(classes=tuple(infos))), [image], tmp_path / "out", device="cpu")
    picture = read_picture(tmp_path / "out" / "a.png")
    assert picture.mode == "RGB"
    assert {color for _, color in picture.getcolors()} <= {(k, 100, 200) for k in range(3)}


def test_a_run_in_fp16_is_predicted_on_the_cpu_all_the_same(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    checkpoint = save_tiny_model(train={"amp": "fp16"})
    console = Console(file=io.StringIO(), width=200)
    predict(checkpoint, [save_image(tmp_path / "a.png")], tmp_path / "out", device="cpu", console=console)
    assert "fp16 needs a GPU" in console.file.getvalue()  # type: ignore[attr-defined]


def test_messages(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    image = save_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"nowhere\.pt: no such checkpoint"):
        predict(tmp_path / "nowhere.pt", [image], tmp_path / "out")
    with pytest.raises(UserError, match="--exif sideways"):
        predict(save_tiny_model(), [image], tmp_path / "out", exif="sideways")
    with pytest.raises(UserError, match="device 'tpu7'"):
        predict(save_tiny_model(), [image], tmp_path / "out", device="tpu7")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        predict(save_tiny_model(), [image], tmp_path / "file", device="cpu")


@pytest.mark.real
def test_real_quirks_never_stop_a_run(tmp_path: Path, save_tiny_model: SaveModel, real_data: Path) -> None:
    report = predict(save_tiny_model(), [real_data / "quirks"], tmp_path / "out", overlay=True, device="cpu")
    assert report.num_done >= 5
    assert report.failures
