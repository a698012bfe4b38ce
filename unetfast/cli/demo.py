"""`unetfast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import ToyDataset
from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: unetfast demo --dataset clevr")
def demo(
    dataset: Annotated[ToyDataset, typer.Option(help="Which layout to imitate.")] = ToyDataset.carvana,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the demo; made afresh each time.")] = Path("runs/demo"),
) -> None:
    """Do the whole job on toy data: shard, inspect, train, eval, predict."""
    from unetfast.app.demo import run_demo

    run_demo(dataset=dataset.value, out=out, console=notes_console())
