"""CLEVR videos: frames by number, one mask.npy a video read frame by frame, and its many faults."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from unetfast.data.sample import check_mask
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.clevr import build_labels, recognize, scan
from unetfast.errors import BadSampleError, UserError


def write_video(folder, num_frames=12, masks=None, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + num_frames):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(folder / f"image_{number}.png")
    if masks is None:
        masks = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None], (num_frames, 4, 6))
    if masks is not False:
        np.save(folder / "mask.npy", masks)


def test_labels_follow_the_formula():
    labels = build_labels()
    assert labels.num_classes == 49
    assert labels.names[0] == "background"
    assert labels.names[1] == "gray metal cube"
    assert labels.names[1 + 16 * 1 + 8 * 1 + 3] == "green rubber sphere"
    assert labels.names[48] == "yellow rubber cylinder"
    assert len({info.color for info in labels.classes}) == 49
    assert not labels.has_ignore
    assert labels.mask_bits == 8


def test_every_frame_meets_its_own_mask(tmp_path):
    write_video(tmp_path / "train" / "video_0")
    write_video(tmp_path / "train" / "video_00007", num_frames=3)
    write_video(tmp_path / "val" / "video_1000", num_frames=2)
    found = scan(tmp_path, SourceOptions())
    assert (found.layout, found.problems, found.notes) == ("split folders", [], [])
    assert len(found.samples) == 17
    for sample in found.samples:
        with Image.open(sample.image.path) as image:
            frame = image.getpixel((0, 0))[0]  # the frame's number is its grey
        assert found.read_mask(sample.mask).tolist() == np.full((4, 6), frame).tolist()
        assert sample.mask.length == 24
    assert {(s.split, s.group) for s in found.samples} == {
        ("train", "video_0"),
        ("train", "video_00007"),
        ("val", "video_1000"),
    }
    assert "video_0/image_10" in [s.name for s in found.samples]
    assert found.samples[0].source_path == "train/video_0/image_0.png"


@pytest.mark.parametrize("name", ["videoX", "video_3", "video_00003", "video3", "Video-3"])
def test_names_of_videos(tmp_path, name):
    write_video(tmp_path / name, num_frames=2)
    found = scan(tmp_path, SourceOptions())
    assert (found.layout, [s.split for s in found.samples]) == ("one folder of videos", ["", ""])
    assert found.samples[0].group == name


def test_frames_may_count_from_one(tmp_path):
    write_video(tmp_path / "video_0", num_frames=11, first=1)
    found = scan(tmp_path, SourceOptions())
    by_name = {s.name: s for s in found.samples}
    assert found.read_mask(by_name["video_0/image_1"].mask).max() == 0
    assert found.read_mask(by_name["video_0/image_11"].mask).max() == 10


def test_unlabelled_videos_are_counted_and_left_out(tmp_path):
    write_video(tmp_path / "train" / "video_0")
    write_video(tmp_path / "train" / "video_1", masks=False)
    write_video(tmp_path / "unlabeled" / "video_2000", masks=False)
    write_video(tmp_path / "hidden" / "video_15000", num_frames=11, masks=False)
    found = scan(tmp_path, SourceOptions())
    assert found.notes == [("unlabelled videos left out", 3)]
    assert {s.group for s in found.samples} == {"video_0"}
    assert found.problems == []


def test_litter_is_passed_over(tmp_path):
    write_video(tmp_path / "video_0")
    (tmp_path / "video_0" / "._image_0.png").write_bytes(b"x")
    (tmp_path / "video_0" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._video_0").write_bytes(b"x")
    found = scan(tmp_path, SourceOptions())
    assert (len(found.samples), found.problems) == (12, [])


def test_faults_of_a_video_are_problems_by_name(tmp_path):
    zeros = np.zeros((3, 4, 6), np.uint8)
    cases = {
        "fewer": (zeros[:2], "holds masks of 2 frames, video_1/ holds 3 images"),
        "more": (np.zeros((4, 4, 6), np.uint8), "holds masks of 4 frames, video_1/ holds 3 images"),
        "dtype": (zeros.astype(np.float32), "holds float32; a video's masks are uint8"),
        "wide": (zeros.astype(np.int64), "holds int64; a video's masks are uint8"),
        "shape": (zeros[:, :, :, None], "has shape (3, 4, 6, 1); a video's masks"),
        "flat": (zeros[0], "has shape (4, 6); a video's masks"),
        "order": (np.asfortranarray(zeros), "is in Fortran order"),
        "pickled": (np.array([{"a": 1}], dtype=object), "holds pickled Python objects, which are never opened"),
    }
    for name, (masks, reason) in cases.items():
        root = tmp_path / name
        write_video(root / "video_0", num_frames=3)
        write_video(root / "video_1", num_frames=3, masks=masks)
        found = scan(root, SourceOptions())
        assert {s.group for s in found.samples} == {"video_0"}, name
        (problem,) = found.problems
        assert problem.file.endswith("video_1/mask.npy"), name
        assert reason in problem.reason, name
        assert problem.remedy, name


def test_cut_and_broken_masks(tmp_path):
    write_video(tmp_path / "video_0", num_frames=3)
    for number, cut in ((1, -10), (2, 20)):
        write_video(tmp_path / f"video_{number}", num_frames=3)
        path = tmp_path / f"video_{number}" / "mask.npy"
        path.write_bytes(path.read_bytes()[:cut])
    write_video(tmp_path / "video_3", num_frames=3)
    (tmp_path / "video_3" / "mask.npy").write_bytes(b"corrupt")
    found = scan(tmp_path, SourceOptions())
    assert {s.group for s in found.samples} == {"video_0"}
    assert len(found.problems) == 3


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    write_video(tmp_path / "video_0", num_frames=1)
    path = tmp_path / "video_1" / "mask.npy"
    write_video(path.parent, num_frames=1, masks=False)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n"
    path.write_bytes(header + pickle.dumps(Bomb()))
    found = scan(tmp_path, SourceOptions())
    assert "pickled" in found.problems[0].reason


def test_images_that_do_not_count_up_are_problems(tmp_path):
    write_video(tmp_path / "video_0", num_frames=3)
    write_video(tmp_path / "video_1", num_frames=3)
    (tmp_path / "video_1" / "image_1.png").unlink()
    write_video(tmp_path / "video_2", num_frames=3)
    (tmp_path / "video_2" / "image_01.png").write_bytes(b"x")
    write_video(tmp_path / "video_3", num_frames=3)
    (tmp_path / "video_3" / "cover.png").write_bytes(b"x")
    write_video(tmp_path / "video_4", num_frames=0, masks=np.zeros((1, 4, 6), np.uint8))
    problems = {problem.file: problem.reason for problem in scan(tmp_path, SourceOptions()).problems}
    assert "frame 1 is missing between 0 and 2" in problems["video_1/"]
    assert "has the frame number of image_01.png" in problems["video_2/image_1.png"]
    assert "has no frame number" in problems["video_3/cover.png"]
    assert problems["video_4/"] == "holds no images"


def test_labels_of_49_and_above_are_refused_by_video_and_frame(tmp_path):
    masks = np.zeros((3, 4, 6), np.uint8)
    masks[2, 0, 0] = 49
    write_video(tmp_path / "video_9", num_frames=3, masks=masks)
    found = scan(tmp_path, SourceOptions())
    found.read_mask(found.samples[1].mask)
    with pytest.raises(BadSampleError, match=r"video_9/mask\.npy, frame 2: holds the values 0, 49, of which 49"):
        found.read_mask(found.samples[2].mask)
    mapped = scan(tmp_path, SourceOptions(value_map=((49, 0),)))
    assert mapped.read_mask(mapped.samples[2].mask).max() == 0
    ignoring = scan(tmp_path, SourceOptions(value_map=((49, None),)))  # as the error proposes; the packer accepts it
    mask_HW = ignoring.read_mask(ignoring.samples[2].mask)
    assert check_mask(mask_HW, ignoring.labels, image_hw=(4, 6), file="mask.npy")[-1] == 1
    assert ignoring.labels.ignore_value == 49
    with pytest.raises(UserError, match=r"--map 49=60: the data set has the classes 0\.\.48"):
        scan(tmp_path, SourceOptions(value_map=((49, 60),)))
    with pytest.raises(UserError, match="--map #ff0000: the masks of this data set hold numbers"):
        scan(tmp_path, SourceOptions(value_map=(((255, 0, 0), 1),)))


def test_other_folders_are_not_clevr(tmp_path):
    write_video(tmp_path / "video_0", masks=False)
    assert recognize(tmp_path) == ""
    with pytest.raises(UserError, match="no CLEVR videos with masks in it; looked for folders video_"):
        scan(tmp_path, SourceOptions())


@pytest.mark.real
def test_real_files(real_data):
    found = scan(real_data / "clevr" / "Dataset_Student", SourceOptions())
    assert (found.problems, found.notes) == ([], [("unlabelled videos left out", 1)])
    assert [s.split for s in found.samples] == ["train"] * 44 + ["val"] * 44
    assert len({s.group for s in found.samples}) == 4
    for sample in found.samples:
        mask_HW = found.read_mask(sample.mask)
        assert mask_HW.shape == (160, 240)
        number = int(sample.name.rpartition("_")[2])
        np.testing.assert_array_equal(mask_HW, np.load(sample.mask.path)[number])
    background = np.mean([(found.read_mask(s.mask) == 0).mean() for s in found.samples])
    assert 0.92 < background < 0.96
