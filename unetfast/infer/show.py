"""What evaluation and prediction show: a progress bar on stderr, a table of scores on stdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unetfast.model.metrics import SegmentationMetrics

# `unetfast.model.metrics.CONVENTION` for readers of a table
CONVENTION_IN_WORDS = (
    "from one confusion matrix over all labelled pixels; the means leave out classes that are neither there nor predicted; "
    "a class that is predicted without a true pixel counts as 0"
)


class RateColumn(ProgressColumn):
    """Images per second, and megapixels per second where they are counted."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        words = "" if rate is None else f"{rate:,.1f} img/s"
        megapixels, seconds = task.fields.get("megapixels", 0.0), task.finished_time or task.elapsed
        if megapixels and seconds:
            words += f"  {megapixels / seconds:,.1f} Mpx/s"
        return Text(words.lstrip())


@contextmanager
def build_bar(title: str, total: int, console: Console | None) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and time left; only on a terminal, nothing in a log, with NO_COLOR or without a console.

    Yields:
        A function that takes the number of images done so far (a part of one too), and that of megapixels if it is known.
    """
    if console is None or not console.is_terminal or os.environ.get("NO_COLOR"):
        yield lambda done, megapixels=0.0: None  # noqa: ARG005  # nobody looks
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, megapixels=0.0: progress.update(task, completed=done, megapixels=megapixels)


def print_scores(
    metrics: SegmentationMetrics,
    *,
    loss: float | None,
    title: str,
    warnings: list[str],
    out: TextIO,
    loss_word: str = "loss",
) -> None:
    """Print a table of IoU, Dice and pixels by class, the means, and what they mean.

    Classes that are predicted without a true pixel stand last. Absent classes have no row; they are counted.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for name in ("IoU", "Dice", "pixels"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = [entry for entry in metrics.classes if entry.iou is not None]
    for entry in sorted(shown, key=lambda entry: entry.pixels == 0):
        share = f"{100 * entry.pixels / max(metrics.num_pixels, 1):.2f} %" if entry.pixels else "no true pixel"
        table.add_row(Text(entry.name), _number(entry.iou), _number(entry.dice), share)
    table.add_section()
    table.add_row("mean", _number(metrics.mean_iou), _number(metrics.mean_dice), f"{metrics.num_pixels:,}", style="bold")
    # wide enough for any line: a file or pipe has no width
    console = Console(file=out, highlight=False, soft_wrap=True)
    console.print(title, markup=False)
    console.print(table)
    absent = f", {metrics.num_absent} of {len(metrics.classes)} classes absent" if metrics.num_absent else ""
    console.print(f"pixel accuracy {_number(metrics.pixel_accuracy)}, {loss_word} {_number(loss)}{absent}", markup=False)
    console.print(f"({CONVENTION_IN_WORDS})", style="dim", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
