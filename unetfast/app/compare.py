"""Runs beside each other: `unetfast compare`."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unetfast.app.report import check_page
from unetfast.errors import UserError
from unetfast.train.history import read_record
from unetfast.viz.report.compare import build_comparison, delta
from unetfast.viz.report.comparison import SCORES, Comparison, compare_records
from unetfast.viz.report.html import number
from unetfast.viz.report.sections import METRIC_WORDS
from unetfast.viz.report.settings import format_value
from unetfast.wholefile import write_whole

if TYPE_CHECKING:
    from unetfast.viz.report.record import Row

MAX_CLASSES = 12  # rows of the table on a terminal
_FILE_WIDTH = 1000  # columns
_STYLES = {"better": "green", "worse": "red", "": ""}
_WORDS = METRIC_WORDS | {"loss": "loss"}


def compare_runs(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    json: bool = False,
    results: Console | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare run folders with the first of them, and print what differs.

    Args:
        runs: two or more run folders.
        out: an HTML file to write as well.
        json: print one JSON object rather than tables.
        results: where the comparison goes; None takes stdout.
        console: for notes; None is silent.

    Raises:
        UserError: fewer than two folders, one given twice, one that is no run folder, or `out` cannot be written.
    """
    if len(runs) < 2:
        raise UserError("compare: give two run folders or more, such as `unetfast compare runs/a runs/b`")
    resolved = [run.resolve() for run in runs]
    twice = next((run for place, run in enumerate(runs) if resolved[place] in resolved[:place]), None)
    if twice is not None:
        raise UserError(f"{twice}: given twice; a run cannot be compared with itself")
    if out is not None:
        check_page(out)
    comparison = compare_records([read_record(run, pictures=False) for run in runs])
    results = results or Console(highlight=False)
    if json:
        results.print(json_module.dumps(comparison.to_json(), allow_nan=False), markup=False, highlight=False, soft_wrap=True)
    else:
        print_comparison(comparison, results)
    if out is not None:
        data = build_comparison(comparison).encode()
        write_whole(out, lambda file: file.write(data))
        if console is not None:
            console.print(f"page    {out}; open it in a browser", markup=False, soft_wrap=True)
    return comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print whether runs can be compared, their scores, classes, speeds, and the config keys that differ."""

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def show(table: Table) -> None:
        console.print()
        console.print(table)

    if not console.is_terminal:
        console.width = _FILE_WIDTH  # a file or pipe has no width of its own
    for reason in comparison.reasons:
        say(f"not comparable: {reason}", "yellow")
    for note in comparison.notes:
        say(f"note: {note}")
    for title, rows in (("best", comparison.best), ("last", comparison.last)):
        table = _new_table(f"{title} validation", comparison.labels)
        for key in SCORES:
            table.add_row(_WORDS[key], *(_cell(row, rows[0], key, is_first=place == 0) for place, row in enumerate(rows)))
        table.add_row(
            "at step", *("-" if row is None else f"{row['step']:,}{' (EMA)' * (row['kind'] == 'val_ema')}" for row in rows)
        )
        show(table)
    if comparison.classes:
        table = _new_table("IoU by class", comparison.labels)
        for one in comparison.classes[:MAX_CLASSES]:
            cells = [_with_delta(iou, one.ious[0], is_first=place == 0) for place, iou in enumerate(one.ious)]
            table.add_row(Text(one.name), *cells)
        show(table)
        if len(comparison.classes) > MAX_CLASSES:
            say(f"  and {len(comparison.classes) - MAX_CLASSES} classes with smaller differences; --json lists all")
    table = _new_table("speed", comparison.labels)
    table.add_row("images/s, median", *(_plain(speed.images_per_s) for speed in comparison.speeds))
    table.add_row("data-wait, median, %", *(_plain(speed.data_wait_pct) for speed in comparison.speeds))
    if any(speed.gpu_memory_gib is not None for speed in comparison.speeds):
        table.add_row("GPU memory, most, GiB", *(_plain(speed.gpu_memory_gib) for speed in comparison.speeds))
    table.add_row("device", *(Text(speed.device or "-") for speed in comparison.speeds))
    show(table)
    if not comparison.config:
        say("\nconfig: no key differs but those of logging")
        return
    table = _new_table("config", comparison.labels)
    for key, values in comparison.config.items():
        table.add_row(Text(key), *(Text(format_value(value)) for value in values))
    show(table)


def _new_table(title: str, labels: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True, header_style="bold")
    for label in labels:
        table.add_column(Text(label), justify="right", header_style="bold", overflow="fold")
    return table


def _cell(row: Row | None, base: Row | None, key: str, *, is_first: bool) -> Text:
    value = None if row is None else row[key]
    return _with_delta(value, None if base is None else base[key], is_first=is_first, lower_is_better=key == "loss")


def _with_delta(value: float | None, base: float | None, *, is_first: bool, lower_is_better: bool = False) -> Text:
    text = Text("-" if value is None else number(value))
    if not is_first:
        difference, verdict = delta(value, base, lower_is_better=lower_is_better)
        if difference:
            text.append(f" ({difference})", style=_STYLES[verdict])
    return text


def _plain(value: float | None) -> str:
    return "-" if value is None else number(value, 1)
