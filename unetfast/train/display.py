"""What a run says while it works: a live bar on a terminal, plain lines in a log or with NO_COLOR."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0  # of a plain log; a live bar is always up to date
WIDE_TERMINAL = 120  # columns from which the live line is written out
METRIC_WORDS = {"mean_dice": "mDice", "mean_iou": "mIoU", "pixel_accuracy": "accuracy", "val_loss": "loss"}
SECONDS_BETWEEN_HISTORIES = 10.0  # a figure takes some tenths of a second, a small epoch less


class Display:
    """Shows the progress of a run.

    Args:
        console: where to.
        num_epochs: of the whole run.
        num_steps: of the whole run.
        first_step: steps that were done before, by the run that is gone on with.
        now: a clock in seconds.

    Attributes:
        warnings: those that were said by `warn_once`, in order.
    """

    def __init__(
        self,
        console: Console,
        *,
        num_epochs: int,
        num_steps: int,
        first_step: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._num_epochs = num_epochs
        self._num_steps = num_steps
        self.first_step = first_step
        self._now = now
        self._began_s = now()
        self._said_s: float | None = None
        self._drew_s = self._began_s
        self._warned: set[str] = set()
        self.warnings: list[str] = []
        self._progress: Progress | None = None
        if console.is_terminal and not os.environ.get("NO_COLOR"):
            bar = BarColumn(bar_width=20 if console.width >= WIDE_TERMINAL else 8)
            columns = (TextColumn("{task.description}"), bar, TextColumn("{task.fields[status]}"))
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("epoch", total=num_steps, completed=first_step, status="starting")

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, line: str, *, style: str = "") -> None:
        """Print one line for good."""
        self._console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def warn_once(self, warning: str) -> None:
        """Print a warning, unless one of its kind stands there: the same words before the colon, whatever the numbers."""
        kind = re.sub(r"\d+", "#", warning.partition(":")[0])
        if kind not in self._warned:
            self._warned.add(kind)
            self.warnings.append(warning)
            self.say(f"warning: {warning}", style="yellow")

    def count_step(self, step: int) -> None:
        """Move the bar; cheap, and does not wait for the GPU."""
        if self._progress is not None:
            self._progress.update(self._task, completed=min(step, self._num_steps))

    def show_row(self, row: dict[str, Any]) -> None:
        """Show a row of kind "train"."""
        parts = self._describe(row)
        epoch, status = f"epoch {row['epoch']}/{self._num_epochs}", "  ".join(parts)
        if self._progress is not None:
            if self._console.width < WIDE_TERMINAL:  # 80 columns hold what matters most, and a short bar where it fits
                epoch, status = epoch.removeprefix("epoch "), " ".join(parts).replace("step ", "").replace("data-wait", "wait")
            self._progress.update(self._task, description=epoch, status=status)
        elif self._said_s is None or self._now() - self._said_s >= SECONDS_BETWEEN_LINES:
            self._said_s = self._now()
            self.say(f"{epoch}  {status}")

    def is_time_for_history(self) -> bool:
        """Say whether the figure of a run in progress should be drawn anew; at its end it is drawn in any case."""
        due = self._now() - self._drew_s >= SECONDS_BETWEEN_HISTORIES
        if due:
            self._drew_s = self._now()
        return due

    def _describe(self, row: dict[str, Any]) -> list[str]:
        step = row["step"]
        num_done = max(1, step - self.first_step)
        left_s = (self._now() - self._began_s) / num_done * max(0, self._num_steps - step)
        loss = "nan" if row["loss"] is None else f"{row['loss']:.4f}"
        parts = [f"step {step:,}/{self._num_steps:,}", f"loss {loss}", f"{format_rate(row['images_per_s'])} img/s"]
        parts.append(f"data-wait {row['data_wait_pct']:.1f} %")
        if "gpu_memory_gib" in row:
            parts.append(f"{row['gpu_memory_gib']:.1f} GiB")
        return [*parts, f"{format_duration(left_s)} left"]


def format_rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def format_duration(seconds: float) -> str:
    """Write hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def format_scores(row: dict[str, Any], class_names: list[str]) -> str:
    """Write the headline of a row of kind "val" or "epoch": with two classes the Dice of the second one too."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    parts = [f"mDice {number(row['mean_dice'])}"]
    if len(class_names) == 2 and "classes" in row:
        parts.append(f"Dice {number(row['classes'][1]['dice'])} ({class_names[1]})")
    parts += [f"mIoU {number(row['mean_iou'])}", f"accuracy {number(row['pixel_accuracy'])}", f"loss {number(row['loss'])}"]
    return "  ".join(parts)
