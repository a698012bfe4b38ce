"""`unetfast train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetfast.cli.choices import ConfigOption, PresetOption, SetOption, check_settings
from unetfast.cli.program import app, is_one_of_several, notes_console
from unetfast.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@app.command(epilog="Example: unetfast train --shards shards/ --set train.epochs=10 --out runs/mine")
def train(
    shards: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Shard folder; may be left out where --config is a JSON that names its folders."),
    ] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run folder; default: runs/DATASET-NUMBER.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt in the run folder --out.")] = False,
) -> None:
    """Train a U-Net on a shard folder.

    On several GPUs: torchrun --nproc-per-node 4 -m unetfast train --shards shards/ (docs/distributed.md).
    """
    from unetfast.data.manifest import read_manifest

    console = notes_console()
    # what can be refused without torch, whose import takes seconds, is refused first
    if shards is not None:
        read_manifest(shards)
    check_settings(config, preset, set_ or [])
    if resume and out is None:
        raise UserError("--resume: say which run to go on with, by --out runs/NAME")
    folder = None if is_one_of_several() else _find_shards(shards, config, set_ or [], console, resume=resume)
    from unetfast.distributed import join_world
    from unetfast.train.loop import train as run_training
    from unetfast.train.setup import resolve_run

    with join_world() as world:
        # of several processes one decides, so that all have the same settings and the same run folder
        found = folder or world.from_main(lambda: _find_shards(shards, config, set_ or [], console, resume=resume))
        run = world.from_main(
            lambda: resolve_run(
                found, config=config, preset=preset, overrides=set_ or [], out=out, resume=resume, console=console
            )
        )
        result = run_training(found, run.config, run.out, resume=resume, console=console)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _find_shards(shards: Path | None, config: Path | None, overrides: list[str], console: Console, *, resume: bool) -> Path:
    """Take the shards that were given, or pack the folders that a `hyperparams.json` names."""
    from unetfast.config import apply_overrides, build_config, check_initial_checkpoint, is_hyperparams, read_hyperparams

    if config is None or not is_hyperparams(config):
        if shards is None:
            raise UserError("--shards: give the shard folder to train on; `unetfast shard --src DATA --out shards/` makes one")
        return shards
    hyperparams = read_hyperparams(config)
    for note in hyperparams.notes:
        console.print(f"config  {config}: {note}", markup=False, soft_wrap=True)
    if shards is not None:
        if hyperparams.folders:
            console.print(f"config  {config}: its folders have no part, since --shards {shards} is given", soft_wrap=True)
        return shards
    # packing may take minutes: what training would refuse is refused before
    resolved = build_config(apply_overrides(hyperparams.tree, overrides), where=str(config))
    if not resume:
        check_initial_checkpoint(resolved, where=str(config))
    if resolved.train.device.startswith("cuda"):
        from unetfast.device import resolve_device

        resolve_device(resolved.train.device)
    from unetfast.app.autopack import pack_named_folders

    return pack_named_folders(hyperparams, console=console)
