"""`unetfast shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unetfast.cli.choices import Dataset, Exif, ImageCodec, MaskCodec, OnBad, parse_size
from unetfast.cli.program import app, notes_console
from unetfast.errors import UserError


@app.command(epilog="Example: unetfast shard --src Data/ --out shards/")
def shard(
    src: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder of the data set, as it was downloaded.")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Shard folder to write.")] = Path("shards"),
    dataset: Annotated[Dataset, typer.Option(help="Layout of --src; auto detects it.")] = Dataset.auto,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead of --src: a folder of images, with --masks.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The folder of their masks.")] = None,
    val_images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images for validation; else a part of --images is held back.")
    ] = None,
    val_masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The folder of their masks.")] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes; 0: all cores.")] = 0,
    val_fraction: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Share held back for validation where the source has no splits; by group."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the split and of the order inside the shards.")] = 0,
    max_side: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Shrink images whose longer side exceeds this, pixels.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Resize every image, such as 160x240.")] = None,
    image_codec: Annotated[
        ImageCodec, typer.Option(help="auto: JPEG files as they are, all others lossless raw RGB in LZ4.")
    ] = ImageCodec.auto,
    mask_codec: Annotated[MaskCodec, typer.Option(help="png: for programs that read no LZ4.")] = MaskCodec.lz4,
    shard_mib: Annotated[float | None, typer.Option(min=0.01, metavar="MIB", help="Size of a tar file to aim at, MiB.")] = None,
    exif: Annotated[Exif, typer.Option(help="What to do with a rotated image (EXIF orientation).")] = Exif.error,
    on_bad: Annotated[OnBad, typer.Option(help="skip: leave bad samples out and list them in skipped.jsonl.")] = OnBad.error,
    max_bad: Annotated[int | None, typer.Option(min=0, metavar="N", help="With --on-bad skip: stop above this many.")] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="PATH", help="File with a class name (and colour) a line; folder layout.")
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(metavar="VALUE", help="Mask value of pixels that have no class; folder layout.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="VALUE=CLASS", help="Mask value to class id: 255=1, #ff0000=2, 7=ignore; repeatable."),
    ] = None,
    mask_suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a mask's name adds to its image's, such as _mask; folder layout.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a shard folder that holds something else.")] = False,
) -> None:
    """Pack a folder of images and masks into WebDataset tar shards."""
    from unetfast.data.masks import parse_value_map
    from unetfast.data.pack import PackOptions, pack, pack_folders
    from unetfast.data.sources.base import SourceOptions

    given: dict[str, Any] = {} if shard_mib is None else {"shard_mib": shard_mib}
    if max_bad is not None:
        given["max_bad"] = max_bad
    options = PackOptions(
        val_fraction=val_fraction,
        seed=seed,
        max_side=max_side,
        size_hw=parse_size(size),
        image_codec=image_codec.value,
        mask_codec=mask_codec.value,
        exif=exif.value,
        on_bad=on_bad.value,
        **given,
    )
    source_options = SourceOptions(
        classes_file=classes, ignore_value=ignore, value_map=parse_value_map(map_ or []), mask_suffix=mask_suffix
    )
    common: dict[str, Any] = {
        "source_options": source_options,
        "options": options,
        "workers": workers,
        "dry_run": dry_run,
        "overwrite": overwrite,
        "console": notes_console(),
    }
    if src is not None:
        if images or masks or val_images or val_masks:
            raise UserError(f"--src {src}: names the whole data set; drop it, or drop --images, --masks and their like")
        pack(src, out, dataset=dataset.value, **common)
        return
    folders = _named_folders(images, masks, val_images, val_masks)
    if dataset is not Dataset.auto:
        raise UserError(f"--dataset {dataset.value}: needs --src; named folders are images and masks alone")
    pack_folders(folders, out, **common)


def _named_folders(
    images: Path | None, masks: Path | None, val_images: Path | None, val_masks: Path | None
) -> dict[str, tuple[Path, Path]]:
    if images is None and masks is None:
        raise UserError(
            "nothing to pack: give --src FOLDER, or --images FOLDER and --masks FOLDER; see `unetfast shard --help`"
        )
    if images is None or masks is None:
        raise UserError("--images and --masks belong together: give both")
    if (val_images is None) != (val_masks is None):
        raise UserError("--val-images and --val-masks belong together: give both")
    if val_images is None or val_masks is None:
        return {"": (images, masks)}
    return {"train": (images, masks), "val": (val_images, val_masks)}
