"""What evaluation and prediction show: a progress bar on stderr, a table of scores on stdout."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unetfast.data.labels import LabelTable
from unetfast.infer.scene_score import score_scenes
from unetfast.model.metrics import ClassMetrics, SegmentationMetrics

if TYPE_CHECKING:
    from unetfast.infer.evaluate_post import PostScores

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
    post: PostScores | None = None,
    scene_note: str | None = None,
) -> None:
    """Print a table of IoU, Dice and pixels by class, the means, and what they mean.

    Classes that are predicted without a true pixel stand last. Absent classes have no row; they are counted.

    Args:
        metrics: of a split.
        loss: of it.
        title: the line above.
        warnings: lines below.
        out: where it is printed.
        loss_word: what the loss is called.
        post: scores after post-processing, whose columns stand beside.
        scene_note: at what size the score of ADE20K's challenge was taken; None: that score is not printed.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for name in ("IoU", "Dice", "pixels") if post is None else ("IoU", "with post", "gain", "Dice", "with post", "pixels"):
        table.add_column(name, justify="right", no_wrap=True)
    after: Sequence[ClassMetrics | None] = [None] * len(metrics.classes) if post is None else post.metrics.classes
    shown = [
        (entry, other)
        for entry, other in zip(metrics.classes, after, strict=True)
        if entry.iou is not None or (other is not None and other.iou is not None)
    ]
    for entry, other in sorted(shown, key=lambda pair: pair[0].pixels == 0):
        share = f"{100 * entry.pixels / max(metrics.num_pixels, 1):.2f} %" if entry.pixels else "no true pixel"
        table.add_row(
            Text(entry.name), *_score_cells(entry.iou, entry.dice, None if other is None else (other.iou, other.dice)), share
        )
    table.add_section()
    means = None if post is None else (post.metrics.mean_iou, post.metrics.mean_dice)
    table.add_row("mean", *_score_cells(metrics.mean_iou, metrics.mean_dice, means), f"{metrics.num_pixels:,}", style="bold")
    # wide enough for any line: a file or pipe has no width
    console = Console(file=out, highlight=False, soft_wrap=True)
    console.print(title, markup=False)
    console.print(table)
    absent = f", {metrics.num_absent} of {len(metrics.classes)} classes absent" if metrics.num_absent else ""
    console.print(f"pixel accuracy {_number(metrics.pixel_accuracy)}, {loss_word} {_number(loss)}{absent}", markup=False)
    for line in [*_scene_lines(metrics, scene_note), *_post_lines(metrics, post)]:
        console.print(line, markup=False)
    console.print(f"({CONVENTION_IN_WORDS})", style="dim", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _score_cells(iou: float | None, dice: float | None, after: tuple[float | None, float | None] | None) -> list[str]:
    if after is None:
        return [_number(iou), _number(dice)]
    gain = None if iou is None or after[0] is None else after[0] - iou
    return [_number(iou), _number(after[0]), "-" if gain is None else f"{gain:+.4f}", _number(dice), _number(after[1])]


def _scene_lines(metrics: SegmentationMetrics, scene_note: str | None) -> list[str]:
    """Write the challenge's score, and its toolkit's reading where that is another number."""
    if scene_note is None:
        return []
    scene = score_scenes(metrics)
    lines = [f"score {_number(scene.score)} = (pixel accuracy + mean IoU) / 2; {scene_note}"]
    if metrics.num_absent and scene.score is not None:
        lines.append(
            f"  the challenge's toolkit counts the {metrics.num_absent} absent classes as IoU 0: mean IoU "
            f"{_number(scene.mean_iou_all_classes)}, score {_number(scene.score_all_classes)}"
        )
    return lines


def _post_lines(metrics: SegmentationMetrics, post: PostScores | None) -> list[str]:
    """Say what post-processing gave, or took."""
    if post is None or metrics.mean_iou is None or post.metrics.mean_iou is None:
        return []
    gain = post.metrics.mean_iou - metrics.mean_iou
    pairs = [(before.iou, after.iou) for before, after in zip(metrics.classes, post.metrics.classes, strict=True)]
    gains = [after - before for before, after in pairs if before is not None and after is not None]
    verdict = "no change" if gain == 0 else "better" if gain > 0 else "worse"
    accuracy = f"{_number(metrics.pixel_accuracy)} -> {_number(post.metrics.pixel_accuracy)}"
    return [
        f"--post {post.text}: mean IoU {gain:+.4f} ({verdict}), {sum(one > 0 for one in gains)} classes better and "
        f"{sum(one < 0 for one in gains)} worse; pixel accuracy {accuracy}; {post.seconds_per_image:.2f} s an image"
    ]


def scores_to_csv(metrics: SegmentationMetrics, labels: LabelTable, post: PostScores | None = None) -> str:
    """Write a row a class, in the order of ids; undefined numbers (of absent classes) are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "value", "name", "iou", "dice", "pixels", *(["iou_post", "dice_post"] if post else [])])
    for class_id, (info, entry) in enumerate(zip(labels.classes, metrics.classes, strict=True)):
        value = info.value if isinstance(info.value, int) else "#" + bytes(info.value).hex()
        row: list[object] = [class_id, value, entry.name, entry.iou, entry.dice, entry.pixels]
        if post is not None:
            row += [post.metrics.classes[class_id].iou, post.metrics.classes[class_id].dice]
        writer.writerow(["" if cell is None else cell for cell in row])
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
