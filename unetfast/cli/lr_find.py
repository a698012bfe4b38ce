"""`unetfast lr-find`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import ConfigOption, PresetOption, SetOption, check_settings
from unetfast.cli.program import app, notes_console


@app.command("lr-find", epilog="Example: unetfast lr-find --shards shards/ --set optimizer.name=sgd --out lr-find.png")
def lr_find(
    shards: Annotated[Path, typer.Option(metavar="FOLDER", help="Shard folder.")],
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Optimizer steps of the test.")] = 100,
    from_: Annotated[float, typer.Option("--from", metavar="RATE", help="Learning rate of the first step.")] = 1e-7,
    to: Annotated[float, typer.Option("--to", metavar="RATE", help="Learning rate of the last step.")] = 1.0,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Picture to write.")] = Path("lr-find.png"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Find a learning rate: a short training in which it grows; nothing of it is kept but a picture."""
    from unetfast.data.manifest import read_manifest

    # what can be refused without torch, whose import takes seconds, is refused first
    read_manifest(shards)
    check_settings(config, preset, set_ or [])
    from unetfast.train.lrfind import run_lr_find

    found = run_lr_find(
        shards,
        config=config,
        preset=preset,
        overrides=set_ or [],
        num_steps=steps,
        first=from_,
        last=to,
        picture=out,
        json=json,
        console=notes_console(),
    )
    if not found:
        raise typer.Exit(1)
