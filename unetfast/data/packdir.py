"""The shard folder while it is being packed: who owns it, what is done already, and what of it may be removed.

`.packing/` in the folder holds a lock, the plan, temporaries, and one result file for each finished shard; it goes when the
manifest is there. Only what is proven to be ours is ever removed: a folder that holds anything else is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unetfast.data.manifest import INDEX_NAME, MANIFEST_NAME, PRESENCE_NAME, SPLIT_NAMES
from unetfast.errors import UserError

WORK_NAME = ".packing"
LOG_NAME = "pack.log"
SKIPPED_NAME = "skipped.jsonl"
_SHARD_FILE = re.compile(r"\d{6}\.(tar|idx)")
_TOP_FILES = (MANIFEST_NAME, LOG_NAME, SKIPPED_NAME)


def check_place(src: Path, out: Path) -> None:
    """Check that source and output are different places.

    Raises:
        UserError: the source is missing, or one folder lies in the other.
    """
    if not src.exists():
        raise UserError(f"--src {src}: no such folder; give the folder of the data set as it was downloaded")
    if not src.is_dir():
        raise UserError(f"--src {src}: is no folder; give the folder of the data set as it was downloaded")
    source, target = src.resolve(), out.resolve()
    if source == target or source in target.parents:
        raise UserError(f"--out {out}: lies in the source folder {src}; choose a folder outside of it")
    if target in source.parents:
        raise UserError(f"--out {out}: the source folder {src} lies in it; choose another folder")


@contextmanager
def naming_disk_errors(out: Path) -> Iterator[None]:
    """Turn an OSError of writing into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"the disk is full ({error.strerror}). What is packed so far is kept: free some space and repeat the command"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"may not be written ({error.strerror}); choose another --out, or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            what = f"cannot be a folder ({error.strerror}); choose another --out"
        else:
            what = f"cannot be written ({error.strerror or error}); what is packed so far is kept: repeat the command to go on"
        raise UserError(f"{where}: {what}") from None


class PackFolder:
    """A shard folder under work.

    Args:
        out: the folder; made when missing.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out / WORK_NAME
        self._plan_path = self.work / "plan.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one packer alone.

        Raises:
            UserError: another one is at work, or the folder holds files that no packer wrote.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out}: is a file; choose a folder")
        if self.out.is_dir() and not self.work.exists() and not (self.out / MANIFEST_NAME).exists():
            self._refuse(sorted(self.out.iterdir()), "choose a new or empty folder")
        descriptor = self._lock()
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock(self) -> int:
        while True:
            self.work.mkdir(parents=True, exist_ok=True)
            path = self.work / "lock"
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # another packer just ended and took its folder away
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(
                    f"--out {self.out}: another packing is at work in it; wait for it, or choose another folder"
                ) from None
            try:
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)  # the lock of a folder that is gone

    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> bool:
        """Prepare the folder for a plan: start, go on, or find it done. To be called with the lock held.

        Args:
            plan: what shapes the bytes, JSON.
            overwrite: replace a packing of another plan.

        Returns:
            Whether the folder is complete already; then nothing is to be done.

        Raises:
            UserError: the folder holds a packing of another plan, or files of others that `overwrite` would have to remove.
        """
        under_work = _read_json(self._plan_path)
        differences: list[str] = []
        state = ""
        if under_work is not None:
            if any((self.work / "done").glob("*.json")):  # else there is nothing to keep, and any plan may start
                differences, state = compare_plans(under_work, plan), "an unfinished packing"
        elif (self.out / MANIFEST_NAME).exists():
            finished = self._read_finished_plan()
            differences = compare_plans(finished, {key: plan[key] for key in finished})
            state = "a finished packing"
            if not differences:
                self._remove_work()
                return True
        else:
            self._refuse(self._list_files(), "choose a new or empty folder")
        if differences and not overwrite:
            if state == "a finished packing":
                self._remove_work()
            raise UserError(
                f"--out {self.out}: holds {state} of something else:\n"
                + "".join(f"  {difference}\n" for difference in differences)
                + "  choose another --out, or replace it with --overwrite"
            )
        if differences:
            self._check_all_ours()
            shutil.rmtree(self.work / "done", ignore_errors=True)
        shutil.rmtree(self.work / "tmp", ignore_errors=True)
        for name in ("tmp", "done"):
            (self.work / name).mkdir(exist_ok=True)
        if under_work != plan:
            self.publish(self._plan_path, json.dumps(plan, sort_keys=True).encode())
        # from here on the folder is no shard folder until the new manifest stands
        for name in (MANIFEST_NAME, *([LOG_NAME, SKIPPED_NAME] if differences else [])):
            (self.out / name).unlink(missing_ok=True)
        self._remove_unvouched()
        return False

    def result_path(self, shard_name: str) -> Path:
        """File that vouches for a finished shard; written last."""
        return self.work / "done" / f"{shard_name.replace('/', '-')}.json"

    def temporary(self, path: Path) -> Path:
        """Name for a file until it is complete, on the same file system."""
        return self.work / "tmp" / f"{path.parent.name}-{path.name}"

    def publish(self, path: Path, data: bytes) -> None:
        """Write a small file so that it is there whole or not at all, also after a power cut."""
        temporary = self.work / f"{path.name}.new" if path.parent == self.work else self.temporary(path)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.reveal(temporary, path)

    def reveal(self, temporary: Path, path: Path) -> None:
        """Give a complete, synced file its name."""
        path.parent.mkdir(exist_ok=True)
        temporary.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def end(self) -> None:
        """Remove what only the packing needed; the manifest must stand already."""
        self._plan_path.unlink()
        self._remove_work()

    def _remove_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def _read_finished_plan(self) -> dict[str, Any]:
        manifest = _read_json(self.out / MANIFEST_NAME)
        if not isinstance(manifest, dict):
            raise UserError(f"{self.out / MANIFEST_NAME}: cannot be read; choose another --out, or remove the folder")
        finished = {
            key: manifest.get(key)
            for key in ("format_version", "dataset", "layout", "options", "labels", "split_rule", "source_xxh3")
        }
        try:
            last = json.loads((self.out / LOG_NAME).read_text(encoding="utf-8").splitlines()[-1])
            finished["listing_xxh3"] = last["listing_xxh3"]
        except (OSError, ValueError, IndexError, KeyError, TypeError):
            pass  # without a log, names and sizes must do
        return finished

    def _check_all_ours(self) -> None:
        """Refuse to remove anything from a folder that holds files of others."""
        foreign = [path for path in self._list_files() if not self._is_ours(path)]
        self._refuse(foreign, "so it is not overwritten: move them away, or choose another folder")

    def _refuse(self, foreign: list[Path], remedy: str) -> None:
        if foreign:
            names = ", ".join(str(path.relative_to(self.out)) for path in foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise UserError(f"--out {self.out}: holds files that no packing wrote ({names}); {remedy}")

    def _remove_unvouched(self) -> None:
        """Remove shards that no result file vouches for: of a packing that was killed, or is being replaced."""
        for path in self._list_files():
            if path.parent != self.out and self._is_ours(path) and not self.result_path(_shard_name(path)).exists():
                path.unlink()
        for split in SPLIT_NAMES:
            folder = self.out / split
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _list_files(self) -> list[Path]:
        found = []
        for path in sorted(self.out.rglob("*")):
            if self.work != path and self.work not in path.parents and not (path.is_dir() and not path.is_symlink()):
                found.append(path)
        return found

    def _is_ours(self, path: Path) -> bool:
        if path.parent == self.out:
            return path.name in _TOP_FILES
        in_split = path.parent.parent == self.out and path.parent.name in SPLIT_NAMES
        return in_split and (path.name in (INDEX_NAME, PRESENCE_NAME) or _SHARD_FILE.fullmatch(path.name) is not None)


def compare_plans(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what differs between two plans, for people."""
    differences = []
    old_options, new_options = old.get("options") or {}, new.get("options") or {}
    for key in sorted(old_options.keys() | new_options.keys()):
        if old_options.get(key) != new_options.get(key):
            differences.append(
                f"--{key.replace('_hw', '').replace('_', '-')}: {old_options.get(key)}, now {new_options.get(key)}"
            )
    for key, what in (
        ("format_version", "format of the shards"),
        ("dataset", "data set"),
        ("layout", "layout of the source"),
        ("labels", "classes"),
        ("split_rule", "split"),
        ("source_xxh3", "names or sizes of the source's files"),
    ):
        if old.get(key) != new.get(key):
            short = "" if key in ("labels", "source_xxh3") else f": {old.get(key)}, now {new.get(key)}"
            differences.append(f"{what}{short or ' differ'}")
    if not differences and old.get("listing_xxh3") != new.get("listing_xxh3"):
        differences.append("the source's files were modified since (same names and sizes, other times)")
    if not differences and old != new:
        differences.append("the version of the packer")
    return differences


def _shard_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where the file is missing or broken."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None
