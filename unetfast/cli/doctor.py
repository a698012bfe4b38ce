"""`unetfast doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from unetfast.cli.program import app


@app.command(epilog="Example: unetfast doctor")
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is installed, which devices there are, and which loader backend would be used and why."""
    from rich.console import Console

    from unetfast.app.doctor import run_doctor

    report = run_doctor(console=Console(highlight=False), json=json)
    if not report.ok:
        raise typer.Exit(1)
