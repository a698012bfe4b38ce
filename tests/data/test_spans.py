"""Reading bytes: whole files, pieces of them, and what is said when they are not there."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from unetfast.data.sample import FileSpan
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError


def test_whole_file_and_pieces(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    assert read_span(FileSpan(str(path))) == bytes(range(100))
    assert read_span(FileSpan(str(path), offset=10, length=5)) == bytes(range(10, 15))
    assert read_span(FileSpan(str(path), offset=90)) == bytes(range(90, 100))


def test_pieces_read_their_own_bytes_alone(tmp_path, monkeypatch):
    path = tmp_path / "big.npy"
    path.write_bytes(b"x" * 10_000)
    lengths = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: lengths.append(length) or pread(fd, length, offset))
    read_span(FileSpan(str(path), offset=500, length=70, frame=3))
    assert lengths == [70]


@pytest.mark.parametrize(
    ("content", "offset", "length", "message"),
    [
        (b"", 0, -1, "the file is empty"),
        (b"abc", 0, 10, "bytes 0 to 10 were looked for, the file ends at 3"),
        (b"abc", 5, -1, "the file ends at 3"),
    ],
)
def test_short_files_are_named(tmp_path, content, offset, length, message):
    path = tmp_path / "cut.png"
    path.write_bytes(content)
    with pytest.raises(BadSampleError, match=message) as caught:
        read_span(FileSpan(str(path), offset, length))
    assert caught.value.file == str(path)
    assert "get the file again" in caught.value.remedy


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadSampleError, match=r"gone\.png: cannot be read \(No such file"):
        read_span(FileSpan(str(tmp_path / "gone.png")))
    with pytest.raises(BadSampleError, match="cannot be read"):
        read_span(FileSpan(str(tmp_path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(b"abc")
    path.chmod(0)
    with pytest.raises(BadSampleError, match="Permission denied"):
        read_span(FileSpan(str(path)))


def test_spans_are_named_by_frame_and_member(tmp_path):
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("dir/abc.mask.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[0]
    span = FileSpan(str(path), member.offset_data, member.size)
    assert read_span(span) == b"data"
    assert describe_span(span) == f"{path}: dir/abc.mask.png"
    assert describe_span(FileSpan("v/mask.npy", 128, 10, frame=7)) == "v/mask.npy, frame 7"
    assert describe_span(FileSpan("a.png")) == "a.png"
