"""`unetfast inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.program import app, notes_console, results_console


@app.command(epilog="Example: unetfast inspect shards/ --verify --sheet sheet.png")
def inspect(
    shards: Annotated[Path, typer.Argument(metavar="FOLDER", help="Shard folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and decode everything, test every checksum.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write samples, masks, legend and figures of classes and sizes to this PNG."),
    ] = None,
) -> None:
    """Say what a shard folder holds; verify it; draw a contact sheet."""
    from unetfast.data.manifest import read_manifest

    read_manifest(shards)  # a mistyped folder is refused before the decoders are imported
    from unetfast.app.inspect import inspect_shards

    report = inspect_shards(shards, verify=verify, sheet=sheet, console=notes_console(), results=results_console())
    if report.problems:
        raise typer.Exit(1)
