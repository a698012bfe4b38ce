"""`unetfast report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: unetfast report runs/carvana-1 --out report.html")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Run folder of unetfast train.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; default: report.html in the run folder.")
    ] = None,
) -> None:
    """Write a run's report: one HTML file that opens without a server and without a network."""
    from unetfast.app.report import make_report

    make_report(run, out=out, console=notes_console())
