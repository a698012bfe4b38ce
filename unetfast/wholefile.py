"""Files of which a reader sees the whole or nothing: how results are written, and what a checkpoint must be to be opened.

Imports nothing heavy: a page is written, and a mistyped checkpoint refused, without the seconds that torch takes to import.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from unetfast.errors import UserError, say_briefly

TEMPORARY_MARK = ".tmp-"  # in the name of a file that is being written: `.last.pt.tmp-<pid>`
FULL_DISK_BYTES = 2**20  # less free space than this is a full disk
_ZIP_START = b"PK\x03\x04"  # of a file that torch.save writes


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in the same folder, fsync it, rename it, fsync the folder.

    Args:
        path: where the file shall stand.
        write: writes the content to the open file.

    Raises:
        UserError: the file cannot be written; what stood at `path` still stands.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _say_reason(error, path.parent)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({reason}); free space or take another --out") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _say_reason(error: BaseException, folder: Path) -> str:
    """Say in the system's words why a write failed; torch's writer hides a full disk behind a RuntimeError of its own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < FULL_DISK_BYTES:
            return os.strerror(errno.ENOSPC)
    return say_briefly(error)


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folders; its rename is durable by itself
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_checkpoint_file(path: Path) -> None:
    """Refuse what cannot be a checkpoint, from its name and first bytes alone.

    Raises:
        UserError: there is no such file, it is a folder, it cannot be read, or torch did not write it.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a checkpoint; give {path / 'best.pt'} or another .pt file of a run")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; `unetfast train` writes best.pt and last.pt into its run folder")
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP_START))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if start != _ZIP_START:
        found = "the file is empty" if not start else f"it begins with {start!r}"
        raise UserError(f"{path}: not a checkpoint of unetfast ({found}); give best.pt or last.pt of a run")
