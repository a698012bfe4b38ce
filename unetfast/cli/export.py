"""`unetfast export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import ExportFormat, Weights, parse_size
from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: unetfast export --checkpoint runs/mine/best.pt --format onnx --out mine.onnx")
def export(
    checkpoint: Annotated[Path, typer.Option(metavar="PATH", help="best.pt or last.pt of a run.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="File to write: .onnx, .pt2 or .safetensors.")],
    format_: Annotated[
        ExportFormat | None,
        typer.Option(
            "--format", help="onnx and pt2: from pixels to class ids; safetensors: the weights. Default: by the suffix."
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="Of ONNX alone; 18 or more. Default: 18.")] = None,
    weights: Annotated[Weights, typer.Option(help="auto: those that the run's best validation scored.")] = Weights.auto,
    size: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="At which the net works; default: the training size.")
    ] = None,
) -> None:
    """Write a checkpoint for other programs: ONNX, torch.export's pt2, or safetensors."""
    from unetfast.wholefile import check_checkpoint_file

    # what can be refused without torch, whose import takes seconds, is refused first
    size_hw = parse_size(size)
    check_checkpoint_file(checkpoint)
    from unetfast.infer.export.command import export as run_export

    run_export(
        checkpoint,
        out,
        format=None if format_ is None else format_.value,
        opset=opset,
        weights=weights.value,
        size_hw=size_hw,
        console=notes_console(),
    )
