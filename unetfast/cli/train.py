"""`unetfast train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: `unetfast train --shards shards/ --set train.epochs=10 --out runs/mine`")
def train(
    shards: Annotated[Path, typer.Option(metavar="FOLDER", help="Shard folder.")],
    config: Annotated[
        Path | None, typer.Option(metavar="PATH", help="TOML file; keys that it leaves out keep their defaults.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A shipped config; default: that of the shards' data set.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as optimizer.learning_rate=1e-3; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run folder; default: runs/DATASET-NUMBER.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt in the run folder --out.")] = False,
) -> None:
    """Train a U-Net on a shard folder."""
    from unetfast.config import apply_overrides, read_config_tree
    from unetfast.data.manifest import read_manifest

    # what can be refused without torch, whose import takes seconds, is refused first
    read_manifest(shards)
    apply_overrides({} if config is None else read_config_tree(config), set_ or [])
    from unetfast.train.loop import train as run_training
    from unetfast.train.setup import resolve_run

    console = notes_console()
    run = resolve_run(shards, config=config, preset=preset, overrides=set_ or [], out=out, resume=resume, console=console)
    result = run_training(shards, run.config, run.out, resume=resume, console=console)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
