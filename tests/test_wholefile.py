"""Whole files: the former one or the new one, never a half; what cannot be a checkpoint is refused by its first bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unetfast.errors import UserError
from unetfast.wholefile import check_checkpoint_file, write_whole


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    write_whole(path, lambda file: file.write(b"former"))
    return path


def test_what_is_written_replaces_what_stood_there(saved: Path) -> None:
    write_whole(saved, lambda file: file.write(b"new"))
    assert saved.read_bytes() == b"new"
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_does_not_end_leaves_the_former_file(saved: Path, error: BaseException) -> None:
    def fail(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises((UserError, KeyboardInterrupt), match=r"page\.html: cannot be written \(No space left on device\)|^$"):
        write_whole(saved, fail)
    assert saved.read_bytes() == b"former"
    assert list(saved.parent.iterdir()) == [saved]


def test_full_disk_is_told_in_plain_words(saved: Path) -> None:
    def fail_as_torch_does(_file: object) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904

    with pytest.raises(UserError, match=f"cannot be written \\({os.strerror(errno.ENOSPC)}\\); free space"):
        write_whole(saved, fail_as_torch_does)
    assert saved.read_bytes() == b"former"


def test_full_disk_is_found_where_torch_says_nothing_of_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_file: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.raises(UserError, match="PytorchStreamWriter failed"):
        write_whole(saved, fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
        write_whole(saved, fail)


def test_what_cannot_be_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for content, reason in ((b"", "the file is empty"), (b"\x80\x02abc", "it begins with")):
        path = tmp_path / "best.pt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"not a checkpoint of unetfast .{reason}"):
            check_checkpoint_file(path)
    with pytest.raises(UserError, match=r"a folder, not a checkpoint; give .*best\.pt"):
        check_checkpoint_file(tmp_path)
    with pytest.raises(UserError, match=r"gone\.pt: no such checkpoint; `unetfast train` writes"):
        check_checkpoint_file(tmp_path / "gone.pt")
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04 and more")
    check_checkpoint_file(tmp_path / "best.pt")
