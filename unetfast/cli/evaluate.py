"""`unetfast eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import EvalSize, Tta, Weights
from unetfast.cli.program import app, notes_console


@app.command("eval", epilog="Example: unetfast eval --shards shards/ --checkpoint runs/mine/best.pt --json")
def evaluate(
    shards: Annotated[Path, typer.Option(metavar="FOLDER", help="Shard folder.")],
    checkpoint: Annotated[Path, typer.Option(metavar="PATH", help="best.pt or last.pt of a run.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")] = "val",
    size: Annotated[
        EvalSize | None, typer.Option(help="Score at training size or at the stored size; default: as trained.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images a batch; default: as trained.")] = None,
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="Loader threads; 0: all cores.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[
        Weights, typer.Option(help="The weights, their moving average, or (auto) those that did better in validation.")
    ] = Weights.auto,
    tta: Annotated[
        Tta, typer.Option(help="Test-time augmentation: the mean over flipped or scaled copies; 2 to 12 times the work.")
    ] = Tta.none,
    post: Annotated[
        str,
        typer.Option(metavar="STEPS", help="Score post-processing beside it, at stored size: crf,islands:64,holes:64."),
    ] = "none",
    submission: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the masks as ADE20K's challenge takes them.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="PATH", help="Also write a row for each class.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a checkpoint on a split: IoU, Dice and accuracy from one confusion matrix."""
    from unetfast.data.manifest import read_manifest
    from unetfast.wholefile import check_checkpoint_file

    # what can be refused without torch, whose import takes seconds, is refused first
    read_manifest(shards)
    check_checkpoint_file(checkpoint)
    from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint

    evaluate_checkpoint(
        shards,
        checkpoint,
        split=split,
        size=None if size is None else size.value,
        batch_size=batch_size,
        threads=threads,
        device=device,
        weights=weights.value,
        tta=tta.value,
        post=post,
        submission=submission,
        csv=csv,
        json=json,
        console=notes_console(),
    )
