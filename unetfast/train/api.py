"""`unetfast.train`, for scripts and notebooks: the same run as the command's, from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from unetfast.distributed import join_world
from unetfast.train.loop import TrainResult
from unetfast.train.loop import train as run_training
from unetfast.train.setup import ResolvedRun, resolve_run


def train(
    shards: Path | str,
    out: Path | str | None = None,
    *,
    preset: str | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a U-Net on a shard folder, as `unetfast train` does.

    Args:
        shards: shard folder.
        out: run folder, new or empty unless `resume`; None takes the next free `runs/<data set>-<number>`.
        preset: name of a shipped config; None takes that of the shards' data set, for this machine.
        config: a TOML file or a hyperparams.json, instead of a preset.
        settings: single keys on top, such as {"train.epochs": 3, "loader.size_hw": [96, 144]}; docs/config.md lists all.
        resume: go on from `out/last.pt`.
        console: for progress and notes; None takes stderr.

    Returns:
        Run folder, steps, metrics of the last and the best validation pass.

    Raises:
        UserError: a file, key or value is wrong, the folder holds something else, or the shards do not fit; says what to do.
    """
    overrides = [f"{key}={_to_toml(value)}" for key, value in (settings or {}).items()]
    console = console or Console(stderr=True, highlight=False)

    def resolve() -> ResolvedRun:
        return resolve_run(
            Path(shards),
            config=None if config is None else Path(config),
            preset=preset,
            overrides=overrides,
            out=None if out is None else Path(out),
            resume=resume,
            console=console,
        )

    with join_world() as world:  # several processes only where torchrun started this script
        run = world.from_main(resolve)
        return run_training(Path(shards), run.config, run.out, resume=resume, console=console)


def _to_toml(value: Any) -> str:
    """Write a value as `--set` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_to_toml(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{key}" = {_to_toml(entry)}' for key, entry in value.items()) + "}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
