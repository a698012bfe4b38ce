"""Loaders end, on close, on an error, when forgotten and with the interpreter; no thread is left, and nothing is said."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loader_backends import dali_only
from loader_batches import ALL, keep

from unetfast.config import build_config
from unetfast.data.indexrow import IndexRow
from unetfast.data.reader import SplitReader, open_shards
from unetfast.errors import UserError
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader

MakeLoader = Callable[..., Loader]
TASKS = Path("/proc/self/task")


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("unetfast-loader")}


def all_threads() -> set[str]:
    """Find all threads of this process, DALI's own among them; where /proc does not tell, those of Python."""
    return (
        {path.name for path in TASKS.iterdir()} if TASKS.exists() else {str(thread.ident) for thread in threading.enumerate()}
    )


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until something is so, for two minutes at most: a thread that was joined is listed a moment longer."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def build(backend_and_device: tuple[str, torch.device], shards: Path) -> Callable[..., Loader]:
    """Build a loader that nothing else holds or closes."""
    backend, device = backend_and_device

    def make(**settings: object) -> Loader:
        section = {"backend": backend, "size_hw": [24, 32], "batch_size": 4, "threads": 2, **settings}
        config = build_config({"loader": section, "augment": ALL})
        return build_loader(open_shards(shards).split("train"), config, training=True, device=device)

    return make


@pytest.fixture
def no_thread_left(build: Callable[..., Loader]) -> Iterator[None]:
    """Fail where a test leaves more threads than there were; what the libraries keep from a first loader on is there before."""
    with build() as loader:
        keep(loader, 2)
    gc.collect()
    own, every = own_threads(), all_threads()
    yield
    assert wait_for(lambda: own_threads() <= own), own_threads() - own
    assert wait_for(lambda: all_threads() <= every), f"{len(all_threads() - every)} threads more than the {len(every)} before"


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_close_stops_all_threads_and_may_be_repeated(build: Callable[..., Loader], num_batches: int) -> None:
    before = all_threads()
    loader = build(prefetch_batches=8)
    keep(loader, num_batches)
    assert num_batches == 0 or all_threads() - before
    loader.close()
    loader.close()
    assert not any(thread.is_alive() for thread in own_threads())
    assert wait_for(lambda: all_threads() <= before)  # while the closed loader is still held


@pytest.mark.usefixtures("no_thread_left")
def test_a_closed_loader_refuses(build: Callable[..., Loader]) -> None:
    with build() as loader:
        stream = iter(loader)
        next(stream)
    for batches in (stream, iter(loader)):
        with pytest.raises(UserError, match="this loader is closed"):
            next(batches)
    assert loader.position == 4  # it can still be asked where it stood
    assert loader.state_dict()["position"] == 4


@pytest.mark.usefixtures("no_thread_left")
def test_an_error_in_the_loop_leaves_no_thread(build: Callable[..., Loader]) -> None:
    def loop() -> None:
        with build() as loader:
            for batch in loader:
                raise KeyError(batch.image_NCHW.shape)

    with pytest.raises(KeyError):
        loop()


@pytest.mark.usefixtures("no_thread_left")
def test_a_forgotten_loader_leaves_no_thread(build: Callable[..., Loader]) -> None:
    loader = build(prefetch_batches=8)
    keep(loader, 1)
    assert own_threads()
    del loader
    gc.collect()


@pytest.mark.usefixtures("no_thread_left")
def test_loaders_side_by_side_do_not_disturb_each_other(build: Callable[..., Loader]) -> None:
    with build() as alone:
        whole = keep(alone, 6)
    with build() as one, build() as other:
        assert keep(one, 2) == whole[:2]
        assert keep(other, 4) == whole[:4]
        other.close()
        assert keep(one, 4) == whole[2:]


def test_prefetch_is_bounded(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = SplitReader._check

    def note(reader: SplitReader, sample_id: int, name: str, row: IndexRow, data: bytes) -> bytes:
        if name == "image":
            read.append(sample_id)
        return original(reader, sample_id, name, row, data)

    monkeypatch.setattr(SplitReader, "_check", note)
    loader = make_loader(prefetch_batches=2)
    keep(loader, 3)
    loader.close()
    # DALI has as many batches under way again
    ahead = {"cpu": 2, "dali": 4}[loader.backend]
    assert 3 * 4 <= len(read) <= (3 + ahead) * 4


@pytest.mark.parametrize("member", ["image", "mask"])
def test_an_error_in_a_thread_comes_out_as_itself(
    make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    class OddError(Exception):
        pass

    original = SplitReader._check

    def fail(reader: SplitReader, sample_id: int, name: str, row: IndexRow, data: bytes) -> bytes:
        if name == member:
            raise OddError("in a thread")
        return original(reader, sample_id, name, row, data)

    whole = keep(make_loader(augment=ALL), 12)
    loader, found = make_loader(augment=ALL), []

    def run() -> None:
        for batch in loader:
            found.extend(keep(iter([batch])))

    found += keep(loader, 1)
    monkeypatch.setattr(SplitReader, "_check", fail)
    with pytest.raises(OddError, match="in a thread"):
        run()  # some batches were read before
    assert loader.position == 4 * len(found)
    monkeypatch.undo()
    assert found + keep(loader, 12 - len(found)) == whole  # the loader itself is sound


@dali_only
def test_batches_that_are_kept_stay_as_they_are(make_loader: MakeLoader) -> None:
    """The CPU backend uses a batch's memory again; DALI's is free when nobody holds it."""
    loader = make_loader(augment=ALL)
    batches = [batch for _, batch in zip(range(30), loader, strict=False)]
    copies = keep(iter(batches))
    keep(loader, 30)
    loader.close()
    assert keep(iter(batches)) == copies == keep(make_loader(augment=ALL), 30)


# last lines of a script, its exit code, and what its traceback ends with
EXITS: dict[str, tuple[str, int, str]] = {
    "end of script": ("", 0, ""),
    "exception": ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "interrupt": (
        # a shell that starts tests behind itself has them ignore the interrupt, and children inherit that
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\nfor batch in stream:\n    pass",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
}


@pytest.mark.parametrize("kind", EXITS)
def test_the_interpreter_exits_without_noise(backend_and_device: tuple[str, torch.device], shards: Path, kind: str) -> None:
    backend, device = backend_and_device
    last_lines, code, message = EXITS[kind]
    script = f"""
import os, signal, sys, threading
import torch
from pathlib import Path
from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.build import build_loader
section = {{"backend": "{backend}", "size_hw": [24, 32], "batch_size": 4, "threads": 2, "prefetch_batches": 16}}
reader = open_shards(Path({str(shards)!r})).split("train")
loader = build_loader(reader, build_config({{"loader": section}}), training=True, device=torch.device("{device}"))
stream = iter(loader)
batch = next(stream)
assert loader.backend == "{backend}"
{last_lines}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    if not message:
        assert lines == []
    else:
        assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", message)
        assert all(line.startswith("  ") for line in lines[1:-1]), done.stderr
