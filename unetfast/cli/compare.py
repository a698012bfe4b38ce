"""`unetfast compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.program import app, notes_console, results_console


@app.command(epilog="Example: unetfast compare runs/carvana-1 runs/carvana-2 --out compare.html")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Two run folders or more.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page too, with curves overlaid.")] = None,
) -> None:
    """Compare runs: scores, classes, speed and the config keys that differ; says where they are not comparable."""
    from unetfast.app.compare import compare_runs

    compare_runs(runs, out=out, json=json, results=results_console(), console=notes_console())
