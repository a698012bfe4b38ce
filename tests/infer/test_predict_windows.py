"""Prediction of whole files by windows, with test-time augmentation, of many kinds of input; and the memory that it takes."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from unetfast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.errors import UserError
from unetfast.infer import job as job_module
from unetfast.infer import prediction as prediction_module
from unetfast.infer.predict import PredictReport, predict

SaveModel = Callable[..., Path]
K = 5
LABELS = LabelTable(classes=tuple(ClassInfo(name=f"c{k}", color=(k, 40 * k, 9), value=k) for k in range(K)))


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def checkpoint(save_tiny_model: SaveModel) -> Path:
    """A random net of 5 classes, none of which has the better of the others everywhere."""
    path = save_tiny_model(LABELS)
    stored = load_checkpoint(path)
    stored.weights["head.weight"] *= 20
    noise_HWC = np.random.default_rng(9).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stored.weights["head.bias"] -= ask(stored, noise_HWC).mean(dim=(1, 2))
    save_checkpoint(path, stored)
    return path


def save_picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def ask(stored: Checkpoint, rgb_HWC: np.ndarray) -> Tensor:
    with torch.no_grad():
        logits: Tensor = stored.build_model()(torch.from_numpy(np.array(rgb_HWC)).permute(2, 0, 1)[None])[0]
    return logits


def run(checkpoint: Path, inputs: list[Path], out: Path, **options: object) -> tuple[PredictReport, str]:
    console = Console(file=io.StringIO(), width=400)
    report = predict(checkpoint, inputs, out, device="cpu", threads=2, console=console, **options)  # type: ignore[arg-type]
    return report, console.file.getvalue()  # type: ignore[attr-defined]


def blend_plainly(
    stored: Checkpoint, rgb_HWC: np.ndarray, window_hw: tuple[int, int], tops: list[int], lefts: list[int]
) -> Tensor:
    """Whole-array blending by the definition."""
    bells = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in window_hw]
    weight = torch.from_numpy(np.outer(*bells))
    total, weights = (
        torch.zeros(K, *rgb_HWC.shape[:2], dtype=torch.float64),
        torch.zeros(rgb_HWC.shape[:2], dtype=torch.float64),
    )
    for top in tops:
        for left in lefts:
            rows, columns = slice(top, top + window_hw[0]), slice(left, left + window_hw[1])
            total[:, rows, columns] += weight * ask(stored, rgb_HWC[rows, columns]).double()
            weights[rows, columns] += weight
    return total / weights


def test_windows_on_files_are_the_plain_blend(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 75, 101)
    _, said = run(checkpoint, [image], tmp_path / "out", window="auto", probs=True)
    assert "window  32x48, overlap 0.5, at the image's own resolution" in said
    assert "trained on whole images resized to 32x48; --scale shows it things as large as there" in said
    # 75 rows: steps of at most 16 -> 4 windows; 101 columns: steps of at most 24 -> 4 windows
    expected = blend_plainly(
        load_checkpoint(checkpoint), read_pixels(image), (32, 48), [0, 14, 29, 43], [0, 18, 35, 53]
    ).softmax(dim=0)
    probs = np.load(tmp_path / "out" / "a_probs.npy", allow_pickle=False)
    np.testing.assert_allclose(probs, expected.numpy(), atol=1e-3)  # float16
    mask_HW = read_pixels(tmp_path / "out" / "a.png")
    top2 = expected.topk(2, dim=0).values
    clear = ((top2[0] - top2[1]) > 1e-4).numpy()
    np.testing.assert_array_equal(mask_HW[clear], expected.argmax(dim=0).numpy()[clear])
    assert len(np.unique(mask_HW)) > 1


def test_one_window_is_direct_prediction_at_the_images_own_size(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 45, 50)
    run(checkpoint, [image], tmp_path / "out", window="64x64", probs=True)
    expected = ask(load_checkpoint(checkpoint), read_pixels(image)).softmax(dim=0)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a_probs.npy"), expected.numpy().astype(np.float16))


def test_an_image_of_the_training_size_is_the_same_with_and_without_windows(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 32, 48)
    for window in ("auto", "off"):
        run(checkpoint, [image], tmp_path / window, window=window)
    assert (tmp_path / "auto" / "a.png").read_bytes() == (tmp_path / "off" / "a.png").read_bytes()


def test_at_a_scale_windows_see_more_and_masks_keep_the_images_size(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 128, 192)
    _, said = run(checkpoint, [image], tmp_path / "out", window="auto", scale=0.25, probs=True)
    assert "window  32x48, overlap 0.5, sees 128x192 pixels of the image" in said
    run(checkpoint, [image], tmp_path / "off", probs=True)
    # one window at a quarter is the whole image resized to the training size
    found, expected = (np.load(tmp_path / name / "a_probs.npy").astype(np.float32) for name in ("out", "off"))
    assert found.shape == (K, 128, 192)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_all_files_are_the_same_from_memory_and_from_disk(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save_picture(tmp_path / "a.png", 90, 140)
    kinds = {"overlay": True, "per_class": True, "probs": True, "window": "auto"}
    run(checkpoint, [image], tmp_path / "memory", **kinds)
    monkeypatch.setattr(prediction_module.Prediction.__init__, "__kwdefaults__", {"memory_bytes": 0})
    run(checkpoint, [image], tmp_path / "disk", **kinds)
    files = sorted(path.relative_to(tmp_path / "memory") for path in (tmp_path / "memory").rglob("*") if path.is_file())
    assert len(files) > 4
    assert files == sorted(path.relative_to(tmp_path / "disk") for path in (tmp_path / "disk").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "memory" / file).read_bytes() == (tmp_path / "disk" / file).read_bytes()


def test_a_damaged_image_is_one_clear_line_and_the_others_go_on(checkpoint: Path, tmp_path: Path) -> None:
    images = [save_picture(tmp_path / "in" / f"{place}.jpg", 70, 90, place) for place in range(4)]
    whole = images[1].read_bytes()
    images[1].write_bytes(whole[: len(whole) // 2])
    save_picture(images[2], 300, 300)
    report, said = run(checkpoint, [tmp_path / "in"], tmp_path / "out", window="auto", max_pixels=50_000)
    assert report.num_done == 2
    lines = [line for line in said.splitlines() if line.startswith("failed:")]
    assert len(lines) == 2
    assert re.search(r"1\.jpg: is damaged or cut short", lines[0])
    assert re.search(r"2\.jpg: has 300x300 pixels, the limit is 50000 pixels; --max-pixels 90000 allows it", lines[1])
    assert "--on-bad" not in said
    report, _ = run(checkpoint, [tmp_path / "in"], tmp_path / "out", window="auto", max_pixels=90_000)
    assert report.num_done == 3


@pytest.mark.parametrize("window", ["auto", "off"])
def test_numbers_that_are_not_finite_are_no_mask(checkpoint: Path, tmp_path: Path, window: str) -> None:
    stored = load_checkpoint(checkpoint)
    stored.weights["head.bias"][2] = float("nan")
    save_checkpoint(checkpoint, stored)
    image = save_picture(tmp_path / "a.png", 60, 70)
    report, said = run(checkpoint, [image], tmp_path / "out", window=window, probs=True)
    assert report.num_done == 0
    assert "a.png: the model's numbers are not finite" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("window", ["off", "auto"])
def test_augmented_prediction_is_the_mean_over_copies(checkpoint: Path, tmp_path: Path, window: str) -> None:
    image = save_picture(tmp_path / "a.png", 32, 48)
    _, said = run(checkpoint, [image], tmp_path / "out", tta="flips", window=window, probs=True)
    assert "tta     mean of 2 copies: flips as it is, left-right" in said
    stored, rgb_HWC = load_checkpoint(checkpoint), read_pixels(image)
    mirrored = ask(stored, rgb_HWC[:, ::-1]).softmax(dim=0).flip(2)
    expected = (ask(stored, rgb_HWC).softmax(dim=0) + mirrored) / 2
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a_probs.npy"), expected.numpy(), atol=1e-3)


def test_flips_top_to_bottom_are_for_nets_that_saw_them(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    image = save_picture(tmp_path / "a.png", 32, 48)
    checkpoint = save_tiny_model(augment={"vflip": {"prob": 0.5}})
    _, said = run(checkpoint, [image], tmp_path / "out", tta="flips+scales", window="auto")
    assert "mean of 12 copies: flips as it is, left-right, top-bottom, both; scales 0.75, 1, 1.25" in said


def test_a_net_trained_on_crops_sees_what_it_saw(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    image = save_picture(tmp_path / "a.png", 40, 60)
    _, said = run(save_tiny_model(augment={"crop": {"prob": 1.0}}), [image], tmp_path / "out", window="auto")
    assert "window  32x48, overlap 0.5, at the image's own resolution\n" in said
    assert "--scale" not in said


def test_throughput_is_told(checkpoint: Path, tmp_path: Path) -> None:
    for place in range(3):
        save_picture(tmp_path / "in" / f"{place}.png", 100, 200, place)
    report, said = run(checkpoint, [tmp_path / "in" / "*.png"], tmp_path / "out")
    assert report.num_pixels == 60_000
    assert report.seconds > 0
    found = re.search(
        r"3 images done, 0\.1 megapixels in ([\d.]+) s: ([\d,.]+) images/s, ([\d,.]+) megapixels/s, reading", said
    )
    assert found is not None
    assert float(found[2].replace(",", "")) == pytest.approx(3 / report.seconds, abs=0.1)
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    predict(checkpoint, [tmp_path / "in"], tmp_path / "out", device="cpu", console=console, window="auto")
    assert re.search(r"3/3.*img/s.*Mpx/s", console.file.getvalue())  # type: ignore[attr-defined]


def test_refinement_sees_pixels_and_probabilities(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 64, 96)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def refine(rgb_HWC: np.ndarray, probs_KHW: np.ndarray) -> np.ndarray:
        seen.append((rgb_HWC, probs_KHW))
        return np.full(rgb_HWC.shape[:2], 3)

    for window in ("off", "auto"):
        run(checkpoint, [image], tmp_path / window, window=window, probs=True, post=refine)
        rgb_HWC, probs_KHW = seen.pop()
        np.testing.assert_array_equal(rgb_HWC, read_pixels(image))
        assert probs_KHW.dtype == np.float32
        np.testing.assert_allclose(probs_KHW.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(probs_KHW.astype(np.float16), np.load(tmp_path / window / "a_probs.npy"))
        assert (read_pixels(tmp_path / window / "a.png") == 3).all()


def test_refinement_of_an_image_too_large_is_one_clear_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "MAX_POST_BYTES", 4 * K * 50 * 50)
    images = [save_picture(tmp_path / "in" / "large.png", 60, 60), save_picture(tmp_path / "in" / "small.png", 40, 40)]
    report, said = run(
        checkpoint, [tmp_path / "in"], tmp_path / "out", post=lambda rgb_HWC, probs_KHW: probs_KHW.argmax(axis=0)
    )
    assert [failure.file for failure in report.failures] == [str(images[0])]
    assert report.num_done == 1
    assert re.search(r"large\.png: --post needs the probabilities of the whole image at once: 5 classes x 60 x 60 are", said)


def test_too_little_memory_on_the_device_names_the_way_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("unetfast.model.unet.UNet.forward", run_out)
    image = save_picture(tmp_path / "a.png", 80, 90)
    with pytest.raises(UserError, match=r"memory is too small for 6 x 32x48 pixels at once; take a smaller --batch-size"):
        predict(checkpoint, [image], tmp_path / "out", window="auto", batch_size=6, device="cpu")
    with pytest.raises(UserError, match=r"for 1 x 32x48 pixels at once; take smaller windows, such as --window 256x256"):
        predict(checkpoint, [image], tmp_path / "out", window="auto", batch_size=1, device="cpu")


def test_messages(checkpoint: Path, tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.png", 40, 60)
    for options, words in (
        ({"window": "12"}, "--window 12: give auto, off or HEIGHTxWIDTH"),
        ({"overlap": 0.3}, "--overlap and --scale are for windows"),
        ({"tta": "turns"}, "--tta turns: give one of none, flips"),
        ({"max_pixels": 0}, "--max-pixels 0: give a number of pixels"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            predict(checkpoint, [image], tmp_path / "out", device="cpu", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


MEASURE = """
import sys
from pathlib import Path
from unetfast.infer.predict import predict
import torch
torch.set_num_threads(1)
def peak_mib():  # not ru_maxrss, which begins with that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
small, large, checkpoint, out = sys.argv[1:]
options = dict(window="auto", overlap=0.0, batch_size=1, threads=1, device="cpu")
predict(checkpoint, [small], out, **options)  # what libraries take once
before = peak_mib()
report = predict(checkpoint, [large], out, **options)
assert report.num_done == 1, report
print(peak_mib() - before)
"""


@pytest.mark.slow
def test_memory_above_the_decoded_pixels_is_bounded(tmp_path: Path, save_tiny_model: SaveModel) -> None:
    """60 classes on 4 megapixels, whose whole logits would take 916 MiB. The bound by the rule of docs/inference.md:

    sums of one row of windows 60 x 128 x 2000 x 4 B = 59 MiB, a block and its indices 64 and 128 / 60 MiB, a window's logits 4
    MiB, the class ids 4 MiB; and room for what the allocator keeps.
    """
    labels = LabelTable(classes=tuple(ClassInfo(name=f"c{k}", color=(k, 9, 9), value=k) for k in range(60)))
    tiny = {"base_channels": 2, "depth": 1, "convs_per_block": 1, "norm": "none"}
    checkpoint = save_tiny_model(labels, size_hw=(128, 128), model=tiny)
    rows = np.linspace(0, 255, 2000, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(rows, (2000, 2000, 3)).copy()).save(tmp_path / "large.jpg", quality=80)
    save_picture(tmp_path / "small.jpg", 64, 64)
    paths = [tmp_path / "small.jpg", tmp_path / "large.jpg", checkpoint, tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decoded_mib = 2000 * 2000 * 3 / 2**20
    assert decoded_mib < float(done.stdout) < decoded_mib + 300
    with Image.open(tmp_path / "out" / "large.png") as picture:
        assert picture.size == (2000, 2000)
