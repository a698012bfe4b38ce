"""mask.npy of predicted videos: what the CLEVR source reads, equal to the masks of the frames."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unetfast.checkpoint import load_checkpoint, save_checkpoint
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.sources.clevr import build_labels
from unetfast.errors import UserError
from unetfast.infer.predict import PredictReport, predict

SaveModel = Callable[..., Path]
NUM_FRAMES = 12  # so that image_10 sorts before image_2 by name


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos without masks, and a picture that is none of theirs."""
    rng = np.random.default_rng(0)
    for video in ("video_0", "video_7"):
        (tmp_path / "videos" / video).mkdir(parents=True)
        for number in range(NUM_FRAMES):
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((36, 24), Image.Resampling.BICUBIC).save(tmp_path / "videos" / video / f"image_{number}.png")
    (tmp_path / "videos" / "notes").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "videos" / "notes" / "image_0.png")
    return tmp_path / "videos"


@pytest.fixture
def checkpoint(save_tiny_model: SaveModel) -> Path:
    """A random net, made so sure of itself that its masks are not of one class."""
    path = save_tiny_model(build_labels(), dataset="clevr")
    stored = load_checkpoint(path)
    stored.weights["head.weight"] *= 30
    save_checkpoint(path, stored)
    return path


def run(checkpoint: Path, inputs: list[Path], out: Path, **options: object) -> tuple[PredictReport, str]:
    console = Console(file=io.StringIO(), width=400)
    report = predict(checkpoint, inputs, out, device="cpu", threads=2, console=console, **options)  # type: ignore[arg-type]
    return report, console.file.getvalue()  # type: ignore[attr-defined]


def frame_masks(folder: Path) -> np.ndarray:
    """The masks of the frames in the order of their numbers, read by Pillow."""
    files = sorted(folder.glob("image_*.png"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
    masks = []
    for file in files:
        with Image.open(file) as picture:
            masks.append(np.asarray(picture))
    return np.stack(masks)


def video_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("video*") if path.is_dir())


def test_videos_of_clevr_give_back_mask_npy(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    report, said = run(checkpoint, [videos], tmp_path / "out", batch_size=5)
    assert (report.num_videos, report.failures) == (2, [])
    assert "mask.npy of 2 videos: uint8, frames x height x width" in said
    assert sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("mask.npy")) == sorted(
        (folder / "mask.npy").relative_to(videos) for folder in video_folders(videos)
    )
    for folder in video_folders(tmp_path / "out"):
        masks = np.load(folder / "mask.npy", allow_pickle=False)
        assert (masks.dtype, masks.shape) == (np.uint8, (NUM_FRAMES, 24, 36))
        assert masks.flags.c_contiguous
        np.testing.assert_array_equal(masks, frame_masks(folder))
        assert len({mask.tobytes() for mask in masks}) > 1, "or their order would prove nothing"


def test_the_packer_reads_what_was_predicted(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    run(checkpoint, [videos], tmp_path / "out")
    for folder in video_folders(videos):
        shutil.copy(tmp_path / "out" / folder.relative_to(videos) / "mask.npy", folder / "mask.npy")
    shutil.rmtree(videos / "notes")
    pack(videos, tmp_path / "shards", dataset="clevr", options=PackOptions(val_fraction=0), workers=1)
    num_read = 0
    with open_shards(tmp_path / "shards").split("train") as reader:
        for sample in range(reader.num_samples):
            source = Path(reader.read_json(sample)["source_path"])
            with Image.open(tmp_path / "out" / source) as picture:
                np.testing.assert_array_equal(reader.decode_mask(sample), np.asarray(picture))
            num_read += 1
    assert num_read == 2 * NUM_FRAMES


def test_a_single_video_and_a_pattern_do_the_same(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    video = video_folders(videos)[0]
    run(checkpoint, [video], tmp_path / "one")
    run(checkpoint, [video.parent / "*" / "image_*.png"], tmp_path / "all")
    one = np.load(tmp_path / "one" / "mask.npy", allow_pickle=False)
    np.testing.assert_array_equal(one, np.load(tmp_path / "all" / video.name / "mask.npy", allow_pickle=False))


def test_missing_frames_are_said(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    first, second = video_folders(videos)
    for number in (3, 7):
        (first / f"image_{number}.png").unlink()
    report, said = run(checkpoint, [videos], tmp_path / "out")
    assert report.num_videos == 2
    masks = np.load(tmp_path / "out" / first.relative_to(videos) / "mask.npy", allow_pickle=False)
    assert len(masks) == NUM_FRAMES - 2
    np.testing.assert_array_equal(masks, frame_masks(tmp_path / "out" / first.relative_to(videos)))
    assert "2 frames are missing between 0 and 11 (3, 7); it holds the 10 that are there, in the order of their numbers" in said
    assert str(second.name) not in said.replace(str(first), "")


def test_a_damaged_frame_leaves_no_mask_npy_and_the_other_videos_theirs(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    first, second = video_folders(videos)
    (first / "image_4.png").write_bytes((first / "image_4.png").read_bytes()[:60])
    report, said = run(checkpoint, [videos], tmp_path / "out")
    assert (report.num_videos, len(report.failures)) == (1, 1)
    assert not (tmp_path / "out" / first.relative_to(videos) / "mask.npy").exists()
    assert (tmp_path / "out" / second.relative_to(videos) / "mask.npy").exists()
    assert "mask.npy: image_4.png could not be predicted, and masks go by place" in said


def test_frames_of_other_sizes_leave_no_mask_npy(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    first, _ = video_folders(videos)
    Image.new("RGB", (10, 20)).save(first / "image_5.png")
    report, said = run(checkpoint, [videos], tmp_path / "out")
    assert (report.num_videos, report.num_done) == (1, 2 * NUM_FRAMES + 1)
    assert "its frames differ in size (image_0.png and image_5.png)" in said


def test_part_of_a_video_is_no_video_unless_asked_for(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    video = video_folders(videos)[0]
    frames = [video / "image_3.png", video / "image_10.png"]
    report, said = run(checkpoint, frames, tmp_path / "out")
    assert report.num_videos == 0
    assert f"no mask.npy of {video.name}: 2 of its 12 images are predicted" in said
    report, said = run(checkpoint, frames, tmp_path / "on", mask_npy="on")
    assert np.load(tmp_path / "on" / "mask.npy", allow_pickle=False).shape == (2, 24, 36)
    assert "6 frames are missing between 3 and 10 (4, 5, 6, 7, 8 and 1 more)" in said


def test_other_checkpoints_write_it_only_when_asked(videos: Path, save_tiny_model: SaveModel, tmp_path: Path) -> None:
    cars = save_tiny_model()
    assert run(cars, [videos], tmp_path / "auto")[0].num_videos == 0
    report, _ = run(cars, [videos], tmp_path / "on", mask_npy="on")
    assert report.num_videos == 3, "every folder of numbered images"
    for folder in [*video_folders(tmp_path / "on"), tmp_path / "on" / "notes"]:
        masks = np.load(folder / "mask.npy", allow_pickle=False)
        assert set(np.unique(masks)) <= {0, 255}, "the source's own values, as in the PNGs"
        np.testing.assert_array_equal(masks, frame_masks(folder))


def test_it_can_be_left_out(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert run(checkpoint, [videos], tmp_path / "out", mask_npy="off")[0].num_videos == 0
    assert not list((tmp_path / "out").rglob("mask.npy"))


def test_the_videos_own_masks_are_never_replaced(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    video = video_folders(videos)[0]
    for frame in video.iterdir():
        with Image.open(frame) as picture:
            picture.save(frame.with_suffix(".jpg"))
        frame.unlink()
    (video / "mask.npy").write_bytes(b"the true ones")
    inputs = [video / "image_*.jpg"]
    _, said = run(checkpoint, inputs, video)
    assert (video / "mask.npy").read_bytes() == b"the true ones"
    assert "would replace the video's own masks" in said
    with pytest.raises(UserError, match="would replace the video's own masks; take another --out"):
        predict(checkpoint, inputs, video, mask_npy="on", device="cpu")


def test_messages(videos: Path, checkpoint: Path, save_tiny_model: SaveModel, tmp_path: Path) -> None:
    first, second = video_folders(videos)
    shutil.copy(first / "image_0.png", first / "last.png")
    _, said = run(checkpoint, [videos], tmp_path / "out")
    assert f"no mask.npy of {first.name}: {first / 'last.png'}: has no frame number in its name" in said
    with pytest.raises(UserError, match=r"last\.png: has no frame number in its name"):
        predict(checkpoint, [videos], tmp_path / "out", mask_npy="on", device="cpu")
    shutil.move(first / "last.png", first / "image_00.png")
    with pytest.raises(
        UserError, match=r"image_00\.png: has the frame number of image_0\.png|image_0\.png: has the frame number of"
    ):
        predict(checkpoint, [videos], tmp_path / "out", mask_npy="on", device="cpu")
    files = [first / "image_1.png", second / "image_2.png"]
    with pytest.raises(UserError, match=r"both would be written to .*mask\.npy; give the folder above"):
        predict(checkpoint, files, tmp_path / "out", mask_npy="on", device="cpu")
    rgb = LabelTable(classes=tuple(ClassInfo(name=str(k), color=(k, 0, 0), value=(k, 1, 2)) for k in range(3)))
    with pytest.raises(UserError, match=r"--mask-npy on: mask\.npy holds a byte a pixel"):
        predict(save_tiny_model(rgb), [videos], tmp_path / "out", mask_npy="on", device="cpu")
    with pytest.raises(UserError, match="--mask-npy maybe: give one of auto, on, off"):
        predict(checkpoint, [videos], tmp_path / "out", mask_npy="maybe", device="cpu")


@pytest.mark.real
def test_a_real_video(real_data: Path, checkpoint: Path, tmp_path: Path) -> None:
    folders = [path.parent for path in sorted((real_data / "clevr").rglob("mask.npy"))]
    video = folders[0]
    report, _ = run(checkpoint, [video], tmp_path / "out")
    true = np.load(video / "mask.npy", allow_pickle=False)
    found = np.load(tmp_path / "out" / "mask.npy", allow_pickle=False)
    assert report.num_videos == 1
    assert (found.shape, found.dtype) == (true.shape, true.dtype)
