"""Which images are found, and the names of their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetfast.errors import UserError
from unetfast.infer.inputs import ImageInput, check_outputs, list_images


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(images: list[ImageInput]) -> list[str]:
    return [image.name for image in images]


def test_a_folder_is_read_with_its_tree_in_order(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "b.JPG", photos / "a.v2.png", photos / "deep" / "er" / "c.tiff")
    touch(photos / "notes.txt", photos / ".DS_Store", photos / "._b.JPG", photos / ".hidden" / "d.png")
    images = list_images([photos], tmp_path / "out")
    assert names(images) == ["a.v2", "b", "deep/er/c"]
    assert images[1].path == photos / "b.JPG"


def test_files_take_their_own_name_and_any_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "photo.data")
    assert names(list_images([tmp_path / "x" / "photo.data"], tmp_path / "out")) == ["photo"]


def test_an_image_given_twice_is_predicted_once(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.png")
    assert names(list_images([tmp_path / "in", tmp_path / "in" / "a.png"], tmp_path / "out")) == ["a"]


def test_several_folders_stand_under_their_own_names(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "b.png")
    found = names(list_images([tmp_path / "x", tmp_path / "y", tmp_path / "b.png"], tmp_path / "out"))
    assert found == ["x/a", "y/a", "b"]


def test_same_stem_keeps_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    assert names(list_images([tmp_path / "in"], tmp_path / "out")) == ["a.jpg", "a.png", "b"]


def test_results_of_a_former_run_are_no_input(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "a.jpg", photos / "pred" / "a.png")
    assert names(list_images([photos], photos / "pred")) == ["a"]


def test_a_link_that_leads_back_up_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    assert names(list_images([tmp_path / "in"], tmp_path / "out")) == ["a"]


def test_a_pattern_keeps_the_tree_below_its_fixed_part(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "a.jpg", photos / "deep" / "er" / "b.jpg", photos / "deep" / "c.png", photos / "deep" / "d.txt")
    touch(photos / ".hidden" / "e.jpg", photos / ".f.jpg")
    assert names(list_images([photos / "**" / "*.jpg"], tmp_path / "out")) == ["a", "deep/er/b"]
    assert names(list_images([photos / "deep" / "*"], tmp_path / "out")) == ["c", "er/b"], "a folder that matches is read"
    assert names(list_images([photos / "*" / "?.png"], tmp_path / "out")) == ["deep/c"]
    assert names(list_images([photos / "[ab].jpg"], tmp_path / "out")) == ["a"]


def test_a_relative_pattern_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "x" / "a.jpg", tmp_path / "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert names(list_images([Path("**/*.jpg")], Path("out"))) == ["b", "x/a"]


def test_several_patterns_stand_under_the_names_of_their_folders(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg", tmp_path / "y" / "b.png")
    assert names(list_images([tmp_path / "x" / "*.jpg", tmp_path / "y"], tmp_path / "out")) == ["x/a", "y/a", "y/b"]
    found = names(list_images([tmp_path / "y" / "*.jpg", tmp_path / "y" / "*.png"], tmp_path / "out"))
    assert found == ["a", "b"], "two patterns in one folder"


def test_results_of_a_former_run_match_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "pred" / "a.png")
    assert names(list_images([tmp_path / "**" / "*.png"], tmp_path / "pred")) == ["a"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path / "photo[1].jpg", tmp_path / "photo1.jpg")
    assert names(list_images([tmp_path / "photo[1].jpg"], tmp_path / "out")) == ["photo[1]"]


def test_a_pattern_without_images_is_one_clear_line(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a.txt")
    with pytest.raises(UserError, match=r"photos/\*\*/\*\.jpg: the pattern matches nothing; ") as caught:
        list_images([tmp_path / "photos" / "**" / "*.jpg"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no image among the 1 files and folders that it matches"):
        list_images([tmp_path / "photos" / "*"], tmp_path / "out")


def test_messages(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image given"):
        list_images([], tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        list_images([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match=r"empty: no image in it or below it; looked for .*\.png"):
        list_images([tmp_path / "empty"], tmp_path / "out")
    touch(tmp_path / "in" / "a.png")
    with pytest.raises(UserError, match="--out is the folder of the images"):
        list_images([tmp_path / "in"], tmp_path / "in")


def test_two_images_with_one_result_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.png", tmp_path / "y" / "a.png")
    images = list_images([tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"], tmp_path / "out")
    planned = [[tmp_path / "out" / f"{image.name}.png"] for image in images]
    with pytest.raises(UserError, match=r"x/a\.png and .*y/a\.png: both would be written"):
        check_outputs(images, planned)


def test_an_image_is_never_replaced(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    images = list_images([tmp_path / "a.png"], tmp_path)
    with pytest.raises(UserError, match="would replace this image"):
        check_outputs(images, [[tmp_path / "a.png"]])
