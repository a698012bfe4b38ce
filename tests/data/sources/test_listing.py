"""What counts as a file, what is litter, how folders are told in messages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unetfast.data.sources.listing import describe_folder, holds_files, is_litter, list_files, list_folder, number_in_name
from unetfast.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"abc")


def test_litter():
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "__MACOSX", ".git"):
        assert is_litter(name)
    assert not is_litter("a.png")


def test_files_are_sorted_and_litter_is_passed_over(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpg", "c.txt", "sub/d.png", "._a.jpg", "__MACOSX/e.png", "sub/.hidden/f.png")
    files = list_files(tmp_path, (".png", ".jpg"))
    assert [(file.relative, file.suffix, file.num_bytes) for file in files] == [
        ("a.jpg", ".jpg", 3),
        ("b.PNG", ".png", 3),
        ("sub/d.png", ".png", 3),
    ]
    assert [file.relative for file in list_files(tmp_path, (".png",), deep=False)] == ["b.PNG"]
    assert [file.relative for file in list_files(tmp_path, deep=False)] == ["a.jpg", "b.PNG", "c.txt"]
    assert list_folder(tmp_path) == (["sub"], ["a.jpg", "b.PNG", "c.txt"])
    assert holds_files(tmp_path, frozenset({".txt"}))
    assert not holds_files(tmp_path / "sub", frozenset({".txt"}))


def test_stems_keep_their_dots(tmp_path):
    touch(tmp_path, "sub.x/v1.2.final.png")
    assert list_files(tmp_path)[0].stem == "sub.x/v1.2.final"


def test_links_in_a_circle_end(tmp_path):
    touch(tmp_path, "a/x.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    assert [(file.relative, file.num_bytes) for file in list_files(tmp_path)] == [("a/x.png", 3), ("nowhere.png", 0)]


def test_numbers():
    assert number_in_name("image_10.png") == 10
    assert number_in_name("video_00012") == 12
    assert number_in_name("cam2/frame007.png") == 7
    assert number_in_name("cover.png") is None


def test_describe(tmp_path):
    assert describe_folder(tmp_path) == "nothing"
    touch(tmp_path, "b/x.png", "a/x.png", "1.jpg", "2.jpg", "README")
    assert describe_folder(tmp_path) == "a/, b/, 1 (no suffix) file, 2 .jpg files"


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="cannot be listed"):
        list_folder(tmp_path / "gone")


def test_pipes_are_no_files(tmp_path: Path) -> None:
    """Opening one would wait for ever."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "nowhere")
    assert [file.relative for file in list_files(tmp_path)] == ["b.jpg", "c.jpg"]
