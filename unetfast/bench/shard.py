"""The packing rung: a source folder packed into shards by `pack()`, to the last rename, start of its workers included."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unetfast.bench.rung import Round, Stopwatch, read_host_peak_mib
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.packreport import PackReport

_LOOK_S = 0.05  # between two looks at the workers' memory


class ShardRung:
    """Packs one folder again and again; a round is one packing, however long it takes.

    Args:
        source: folder of images and masks; read from the page cache, as it was just drawn or read.
        dataset: its layout.
        work: folder that the shards are written to, and removed from after each round.
        options: of the packing.
        workers: processes, as of `pack`.
    """

    name = "shard"

    def __init__(self, source: Path, dataset: str, work: Path, *, options: PackOptions, workers: int = 0) -> None:
        self._source = source
        self._dataset = dataset
        self._work = work
        self._options = options
        self._workers = workers
        self._report: PackReport | None = None

    def warm_up(self, seconds: float) -> None:  # noqa: ARG002  # its round is one packing
        """Pack once; see `Rung`."""
        self.run_round()

    def run_round(self) -> Round:
        """Pack the folder; see `Rung`."""
        out = self._work / "packed"
        with watch_children() as peaks_mib:
            watch = Stopwatch()
            self._report = pack(self._source, out, dataset=self._dataset, options=self._options, workers=self._workers)
            wall_s, core_s = watch.read()
        num_images, num_bytes = self._report.num_samples, self._report.source_bytes
        shutil.rmtree(out)
        figures = {"source_mib_per_s": num_bytes / wall_s / 2**20, "workers_peak_mib": sum(peaks_mib.values())}
        return Round(num_images, wall_s, core_s, figures)

    def describe(self) -> dict[str, Any]:
        """Tell what was packed; see `Rung`."""
        facts: dict[str, Any] = {"source": self._source.name, "dataset": self._dataset, "workers_asked_for": self._workers}
        if self._report is not None:
            facts |= {"images_per_round": self._report.num_samples, "source_bytes": self._report.source_bytes}
        return facts


@contextmanager
def watch_children() -> Iterator[dict[int, float]]:
    """Look at the children that this process starts meanwhile: each one's most resident memory, MiB, by process id.

    Children that stand before (another's workers, multiprocessing's resource tracker) do not count. What a child takes in its
    last moments, behind the last look, is not seen. Empty where the system does not tell; Linux does.
    """
    peaks_mib: dict[int, float] = {}
    standing = set(_list_children())
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            for process in set(_list_children()) - standing:
                with suppress(OSError, IndexError, ValueError):
                    peaks_mib[process] = read_host_peak_mib(process) or peaks_mib.get(process, 0.0)

    watcher = threading.Thread(target=look, name="watch children", daemon=True)
    watcher.start()
    try:
        yield peaks_mib
    finally:
        ended.set()
        watcher.join()


def _list_children() -> list[int]:
    children: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return children
