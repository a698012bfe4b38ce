"""The packing rung: a source folder packed into shards by `pack()`, to the last rename, start of its workers included."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

from unetfast.bench.rung import Round, Stopwatch
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.packreport import PackReport


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
        watch = Stopwatch()
        self._report = pack(self._source, out, dataset=self._dataset, options=self._options, workers=self._workers)
        wall_s, core_s = watch.read()
        num_images, num_bytes = self._report.num_samples, self._report.source_bytes
        shutil.rmtree(out)
        return Round(num_images, wall_s, core_s, {"source_mib_per_s": num_bytes / wall_s / 2**20})

    def describe(self) -> dict[str, Any]:
        """Tell what was packed; see `Rung`."""
        worker_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        facts: dict[str, Any] = {"source": self._source.name, "dataset": self._dataset, "workers": self._workers}
        if self._report is not None:
            facts |= {"images_per_round": self._report.num_samples, "source_bytes": self._report.source_bytes}
        return {**facts, "largest_child_peak_mib": round(worker_kib / 1024, 1)}
