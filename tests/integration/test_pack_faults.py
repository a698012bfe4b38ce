"""Faults of the machine while packing: full disks, forbidden folders; and every real folder packed and verified."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.toy.layouts import write_toy
from unetfast.data.verify import verify_shards
from unetfast.errors import UserError

OPTIONS = PackOptions(shard_mib=0.02)


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "src"
    write_toy(root, "carvana", num_groups=6, seed=0, images_per_group=2)
    return root


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pack.log"
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("may not mount a small file system here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(src: Path, small_disk: Path, tmp_path: Path, workers: int) -> None:
    """What is packed so far is kept, and with more space the packing goes on to the same bytes."""
    out = small_disk / "out"
    with pytest.raises(UserError, match=r"the disk is full .*kept: free some space and repeat the command"):
        pack(src, out, options=OPTIONS, workers=workers)
    assert not (out / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    pack(src, out, options=OPTIONS, workers=workers)
    pack(src, tmp_path / "whole", options=OPTIONS, workers=1)
    assert read_folder(out) == read_folder(tmp_path / "whole")


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
        (errno.EIO, "cannot be written"),
        (errno.ENOTDIR, "cannot be a folder .*choose another --out"),
    ],
)
def test_every_write_error_is_told(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, message: str
) -> None:
    home: Any = os if name == "fsync" else Path
    real: Callable[..., Any] = getattr(home, name)
    calls = [0]

    def fail(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(number, os.strerror(number))
        return real(*args)

    with monkeypatch.context() as patches:
        patches.setattr(home, name, fail)
        with pytest.raises(UserError, match=message):
            pack(src, tmp_path / "out", options=OPTIONS, workers=1)
    pack(src, tmp_path / "out", options=OPTIONS, workers=1)
    assert verify_shards(tmp_path / "out") == []


def test_file_size_limit(src: Path, tmp_path: Path) -> None:
    """A limit on file sizes, as some clusters have it, is told like a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from unetfast.data.pack import pack\n"
        "from unetfast.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    pack(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    arguments = [sys.executable, "-c", script, str(src), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "the disk is full (File too large)" in done.stdout


def test_a_folder_that_may_not_be_written(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out.*may not be written \(Permission denied\); choose another --out"):
        pack(src, tmp_path / "out", workers=1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_damaged_images_are_told_by_us_alone(tmp_path: Path, workers: str) -> None:
    """Pillow warns of them on stderr too, with a path in its own source."""
    write_toy(tmp_path / "src", "folder", num_groups=4, seed=0)
    for image in sorted((tmp_path / "src").rglob("images/*"))[:2]:
        image.unlink()
        image.with_suffix(".tif").write_bytes(b"II*\0" + b"\xff" * 50)
    command = [sys.executable, "-m", "unetfast", "shard", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    command += ["--workers", workers, "--shard-mib", "0.01", "--on-bad", "skip", "--max-bad", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "bad samples left out: 2" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ["carvana", "clevr", "ade20k", "folder"])
def test_every_toy_layout_is_packed_and_verified(name: str, tmp_path: Path) -> None:
    write_toy(tmp_path / "src", name, num_groups=4, seed=1, images_per_group=3 if name in ("carvana", "clevr") else None)
    report = pack(tmp_path / "src", tmp_path / "out", workers=1)
    assert report.manifest is not None
    assert report.manifest.dataset == name
    assert set(report.samples) == {"train", "val"}
    assert verify_shards(tmp_path / "out") == []


REAL = {
    "carvana": ("carvana", "carvana", 96, 2),
    "clevr": ("clevr/Dataset_Student", "clevr", 88, 49),
    "ade20k": ("ade20k/ADEChallengeData2016", "ade20k", 12, 150),
    "ade20k_5class": ("ade20k_5class/ADEChallengeData2016", "ade20k", 59, 150),
    "ade20k_full": ("ade20k_full", "ade20k", 2, 150),
    "voc_labelme": ("folder/voc_labelme", "folder", 3, 21),
    "membrane": ("folder/membrane", "folder", 12, 2),
}


@pytest.mark.real
@pytest.mark.parametrize("case", REAL)
def test_every_real_folder_is_packed_and_verified(case: str, real_data: Path, tmp_path: Path) -> None:
    folder, dataset, num_samples, num_classes = REAL[case]
    report = pack(real_data / folder, tmp_path / "out", workers=1)
    manifest = open_shards(tmp_path / "out").manifest
    assert (manifest.dataset, manifest.num_classes, report.num_samples) == (dataset, num_classes, num_samples)
    assert verify_shards(tmp_path / "out") == []
    if case == "carvana":
        assert manifest.mask_bits == 1
        assert report.codecs == {"jpeg": 96}
        assert {name: split.groups for name, split in manifest.splits.items()} == {"train": 13, "val": 2}
    if case == "clevr":
        assert report.source_notes == {"unlabelled videos left out": 1}
        assert report.samples == {"train": 44, "val": 44}
