"""`unetfast predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import Exif
from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: `unetfast predict --checkpoint runs/mine/best.pt photos/ --out pred/ --overlay`")
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Images and folders of images.", metavar="IMAGE_OR_FOLDER")],
    checkpoint: Annotated[Path, typer.Option(metavar="PATH", help="best.pt or last.pt of a run.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write masks into.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also a picture of the mask over the image, with legend.")] = False,
    probs: Annotated[bool, typer.Option("--probs", help="Also the probability of every class, .npy.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also one black-and-white mask a class.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images a batch.")] = 8,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    exif: Annotated[Exif, typer.Option(help="What to do with a rotated image (EXIF orientation).")] = Exif.apply,
) -> None:
    """Predict masks of images of any size, in the source's own values and colours."""
    from unetfast.infer.inputs import list_images

    list_images(inputs, out)  # a path that is not there is said before torch is imported
    from unetfast.infer.predict import predict as run_prediction

    report = run_prediction(
        checkpoint,
        inputs,
        out,
        overlay=overlay,
        probs=probs,
        per_class=per_class,
        batch_size=batch_size,
        device=device,
        exif=exif.value,
        console=notes_console(),
    )
    if report.failures:
        raise typer.Exit(1)
