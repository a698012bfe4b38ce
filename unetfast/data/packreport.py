"""What the packer tells people and programs: its plan, its progress, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from unetfast.data.imbalance import advise_on_classes
from unetfast.data.manifest import Manifest
from unetfast.data.plan import PackPlan
from unetfast.data.sources.base import SourceScan

MAX_LISTED_CLASSES = 20
_PLAIN_EVERY_S = 10.0


@dataclass(slots=True)
class PackReport:
    """What came of a packing.

    Args:
        out: the shard folder.
        status: "packed", "complete" (it was packed before; nothing was done) or "dry-run".
        samples: of each split.
        num_skipped: bad samples that were left out, listed in skipped.jsonl.
        source_bytes: images and masks in the source.
        packed_bytes: all tar files.
        image_bytes: packed images alone.
        mask_bytes: packed masks alone.
        codecs: samples of each image codec.
        notes: how often each change was made to a sample on the way in.
        source_notes: what was left out of the source, or is worth a word, and how often.
        warnings: what the user should look at.
        seconds: of this run.
        images_per_s: of this run, over what it packed itself.
        manifest: of the folder; None after a dry run.
    """

    out: Path
    status: str
    samples: dict[str, int] = field(default_factory=dict)
    num_skipped: int = 0
    source_bytes: int = 0
    packed_bytes: int = 0
    image_bytes: int = 0
    mask_bytes: int = 0
    codecs: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    source_notes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    images_per_s: float = 0.0
    manifest: Manifest | None = None

    @property
    def num_samples(self) -> int:
        return sum(self.samples.values())


class PackProgress:
    """Progress over all samples: a live bar in a terminal, a plain line now and then elsewhere.

    Args:
        console: where to show it.
        total: samples in all.
        done: samples that an earlier, interrupted run packed.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._done = self._before = done
        self._start = self._told = time.monotonic()
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("packing"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} img/s"),
                TimeRemainingColumn(),
            )
            self._bar = self._stack.enter_context(Progress(*columns, console=self._console))
            self._task = self._bar.add_task("", total=self._total, completed=self._done, rate="-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def add(self, count: int) -> None:
        """Count samples that are done."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f}")
        elif now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            left = (self._total - self._done) / rate
            show(self._console, f"packing {self._done:,}/{self._total:,}  {rate:,.0f} img/s  {format_time(left)} left")

    @property
    def packed(self) -> int:
        """Samples packed by this run."""
        return self._done - self._before

    @property
    def images_per_s(self) -> float:
        """Rate of this run so far, start of the workers included."""
        return self.packed / max(time.monotonic() - self._start, 1e-9)


def show(console: Console, text: str) -> None:
    """Print plain text: no markup, no wrapping inside lines."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_plan(console: Console, scan: SourceScan, plan: PackPlan) -> None:
    """Say what the input was taken for, and how it will be split."""
    groups = len({ref.group for ref in scan.samples if ref.group})
    grouped = f", {groups:,} groups" if groups else ""
    show(
        console,
        f"{scan.dataset} ({scan.layout}): {len(scan.samples):,} pairs{grouped}, {format_bytes(plan.source_bytes)}, "
        + format_classes(scan.labels.num_classes),
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in plan.count_samples().items())
    rule = "the source's own" if plan.split_rule == "source" else plan.split_rule
    show(console, f"  split {rule} ({counts}); {len(plan.shards)} shards")
    for what, count in scan.notes:
        show(console, f"  {what}: {count:,}")
    for warning in plan.warnings:
        show(console, f"warning: {warning}")


def show_report(console: Console, report: PackReport, *, told: Sequence[str] = ()) -> None:
    """Say what was packed: files and bytes, classes, what was changed or left out, and what to do next.

    Args:
        console: to print to.
        report: what came of the packing.
        told: warnings that need no second word.
    """
    manifest = report.manifest
    if manifest is None:
        show(console, "dry run: nothing was written")
        return
    num_tars = sum(len(split.shards) for split in manifest.splits.values())
    if report.status == "complete":
        show(console, f"{report.out}/ is complete already: {num_tars} tar files, {format_bytes(report.packed_bytes)}")
    else:
        codecs = ", ".join(f"{count:,} {codec}" for codec, count in sorted(report.codecs.items()))
        bits = f"{manifest.mask_bits} bit{'s' if manifest.mask_bits > 1 else ''} a pixel"
        show(
            console,
            f"{report.out}/  {num_tars} tar files, {format_bytes(report.packed_bytes)} "
            f"from {format_bytes(report.source_bytes)} (images {format_bytes(report.image_bytes)}: {codecs}; "
            f"masks {format_bytes(report.mask_bytes)}, {bits})",
        )
    for line in build_split_lines(manifest) + build_class_lines(manifest, limit=MAX_LISTED_CLASSES):
        show(console, f"  {line}")
    for what, count in sorted(report.notes.items()):
        show(console, f"  {what}: {count:,}")
    if report.num_skipped:
        show(console, f"  bad samples left out: {report.num_skipped:,}, see {report.out / 'skipped.jsonl'}")
    for warning in report.warnings:
        if warning not in told:
            show(console, f"warning: {warning}")
    for warning in advise_on_classes(manifest):
        show(console, f"warning: {warning}")
    if report.status == "packed":
        show(console, f"  {report.seconds:.1f} s, {report.images_per_s:,.0f} img/s")
    show(console, f"next: unetfast train --shards {report.out}")


def build_split_lines(manifest: Manifest) -> list[str]:
    """Tabulate the splits: samples, groups, tars, bytes, sizes."""
    rows = [["split", "samples", "groups", "tars", "size", "height", "width"]]
    for name, split in manifest.splits.items():
        height, width = (
            f"{low} px" if low == high else f"{low}..{high} px" for low, high in zip(split.min_hw, split.max_hw, strict=True)
        )
        num_bytes = sum(shard.bytes for shard in split.shards)
        groups = f"{split.groups:,}" if split.groups else "-"
        rows.append([name, f"{split.samples:,}", groups, str(len(split.shards)), format_bytes(num_bytes), height, width])
    return align(rows)


def build_class_lines(manifest: Manifest, limit: int | None = None) -> list[str]:
    """Tabulate the classes over all splits: share of the pixels, images they occur in.

    Args:
        manifest: of the folder.
        limit: where there are more, list so many of those that occur, the largest; None lists all, in their order.
    """
    splits = manifest.splits.values()
    pixels = [sum(counts) for counts in zip(*(split.class_pixels for split in splits), strict=True)]
    images = [sum(counts) for counts in zip(*(split.class_images for split in splits), strict=True)]
    ignored = sum(split.ignored_pixels for split in splits)
    total = max(1, sum(pixels) + ignored)
    order = list(range(manifest.num_classes))
    if limit is not None and len(order) > limit:
        occurring = [class_id for class_id in order if pixels[class_id]]
        order = sorted(occurring, key=lambda class_id: -pixels[class_id])[:limit]
    rows = [["id", "class", "pixels", "images"]]
    for class_id in order:
        name = manifest.labels.names[class_id]
        rows.append([str(class_id), name, f"{100 * pixels[class_id] / total:.2f} %", f"{images[class_id]:,}"])
    if ignored:
        rows.append([str(manifest.ignore_index), "(ignored)", f"{100 * ignored / total:.2f} %", ""])
    lines = align(rows, left=(1,))
    absent = sum(count == 0 for count in images)
    rest = manifest.num_classes - len(order) - (absent if limit is not None and manifest.num_classes > limit else 0)
    if rest:
        lines.append(f"... and {rest} more: unetfast inspect lists all classes")
    if absent:
        lines.append(f"{absent} of {manifest.num_classes} classes occur nowhere")
    return lines


def align(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    """Align columns: those named in `left` to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_classes(num_classes: int) -> str:
    """Write a number of classes."""
    return f"{num_classes} class{'es' if num_classes > 1 else ''}"


def format_bytes(num_bytes: int) -> str:
    """Write a number of bytes in KiB, MiB or GiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1024:,.1f} KiB"


def format_time(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
