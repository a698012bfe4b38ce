"""`unetfast predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetfast.cli.choices import Exif, MaskNpy, Tta, Weights
from unetfast.cli.program import app, notes_console


@app.command(epilog="Example: unetfast predict --checkpoint runs/mine/best.pt photos/ --out pred/ --overlay")
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images, folders, and patterns in quotes such as 'photos/**/*.jpg'.", metavar="IMAGE_OR_FOLDER"),
    ],
    checkpoint: Annotated[Path, typer.Option(metavar="PATH", help="best.pt or last.pt of a run.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write masks into.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also a picture of the mask over the image, with legend.")] = False,
    probs: Annotated[bool, typer.Option("--probs", help="Also the probability of every class, .npy.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also one black-and-white mask a class.")] = False,
    window: Annotated[
        str,
        typer.Option(
            metavar="off|auto|HEIGHTxWIDTH",
            help="Cut images into windows instead of resizing them; auto: of the training size. For large images.",
        ),
    ] = "off",
    overlap: Annotated[
        float, typer.Option(min=0, max=0.9, metavar="SHARE", help="Of a window, that the next one covers again.")
    ] = 0.5,
    scale: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="Cut windows from the image at this size; 1: its own. Masks keep its own size."),
    ] = 1.0,
    tta: Annotated[
        Tta, typer.Option(help="Test-time augmentation: the mean over flipped or scaled copies; 2 to 12 times the work.")
    ] = Tta.none,
    post: Annotated[
        str, typer.Option(metavar="STEPS", help="What to do to the masks, such as crf,islands:64,holes:64.")
    ] = "none",
    submission: Annotated[
        bool, typer.Option("--submission", help="Masks as ADE20K's challenge takes them: grey PNGs of 1..150, its names.")
    ] = False,
    mask_npy: Annotated[
        MaskNpy, typer.Option(help="All masks of a folder's frames in one mask.npy; auto: for videos of CLEVR.")
    ] = MaskNpy.auto,
    weights: Annotated[
        Weights, typer.Option(help="raw, or ema: their moving average; auto: the better ones in validation.")
    ] = Weights.auto,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images, or windows of one image, a batch.")] = 8,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network first (a minute, once): for many images, or one in little time."),
    ] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="That read and write; 0: all cores.")] = 0,
    exif: Annotated[Exif, typer.Option(help="What to do with a rotated image (EXIF orientation).")] = Exif.apply,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Refuse images of more pixels; default: 178,956,970. A small file can claim any size."
        ),
    ] = None,
) -> None:
    """Predict masks of images of any size, in the source's own values and colours."""
    from unetfast.infer.inputs import list_images
    from unetfast.infer.window import parse_windows
    from unetfast.wholefile import check_checkpoint_file

    # what can be refused without torch, whose import takes seconds, is refused first
    list_images(inputs, out)
    parse_windows(window, training_hw=(1, 1), overlap=overlap, scale=scale)
    check_checkpoint_file(checkpoint)
    from unetfast.data.image import DEFAULT_MAX_PIXELS
    from unetfast.infer.predict import predict as run_prediction

    report = run_prediction(
        checkpoint,
        inputs,
        out,
        overlay=overlay,
        probs=probs,
        per_class=per_class,
        window=window,
        overlap=overlap,
        scale=scale,
        tta=tta.value,
        post=post,
        submission=submission,
        mask_npy=mask_npy.value,
        weights=weights.value,
        batch_size=batch_size,
        compiled=compile_,
        device=device,
        threads=threads,
        exif=exif.value,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        console=notes_console(),
    )
    if report.failures:
        raise typer.Exit(1)
