"""The command line: one thin function a command. Heavy imports stand inside the functions, so that `--help` is quick.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 done but for what was reported, 2 a mistake that
the user can mend, 130 and 143 stopped by SIGINT and SIGTERM after saving.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from unetfast.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="unetfast",
    help="From a folder of images and masks to a trained U-Net: shard, inspect, train, eval, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dataset(StrEnum):
    auto = "auto"
    carvana = "carvana"
    clevr = "clevr"
    ade20k = "ade20k"
    folder = "folder"
    webdataset = "webdataset"


class ToyDataset(StrEnum):
    carvana = "carvana"
    clevr = "clevr"
    ade20k = "ade20k"


class ImageCodec(StrEnum):
    auto = "auto"
    jpeg = "jpeg"
    png = "png"
    lz4 = "lz4"


class MaskCodec(StrEnum):
    lz4 = "lz4"
    png = "png"


class Exif(StrEnum):
    error = "error"
    apply = "apply"
    ignore = "ignore"


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class EvalSize(StrEnum):
    training = "training"
    source = "source"


def _notes() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _results() -> Console:
    """A console on stdout. Where its reader goes away, rich would exit with 1, which says that something is wrong."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Results(highlight=False)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, times, width = text.lower().partition("x")
    if not times or not height.isdecimal() or not width.isdecimal() or int(height) == 0 or int(width) == 0:
        raise UserError(f"--size {text}: write HEIGHTxWIDTH in pixels, such as 160x240")
    return int(height), int(width)


@app.command(epilog="Example: `unetfast shard --src Data/ --out shards/`")
def shard(
    src: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the data set, as it was downloaded.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Shard folder to write.")] = Path("shards"),
    dataset: Annotated[Dataset, typer.Option(help="Layout of --src; auto detects it.")] = Dataset.auto,
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
    from unetfast.data.pack import PackOptions, pack
    from unetfast.data.sources.base import SourceOptions

    given: dict[str, Any] = {} if shard_mib is None else {"shard_mib": shard_mib}
    if max_bad is not None:
        given["max_bad"] = max_bad
    options = PackOptions(
        val_fraction=val_fraction,
        seed=seed,
        max_side=max_side,
        size_hw=_parse_size(size),
        image_codec=image_codec.value,
        mask_codec=mask_codec.value,
        exif=exif.value,
        on_bad=on_bad.value,
        **given,
    )
    source_options = SourceOptions(
        classes_file=classes, ignore_value=ignore, value_map=parse_value_map(map_ or []), mask_suffix=mask_suffix
    )
    pack(
        src,
        out,
        dataset=dataset.value,
        source_options=source_options,
        options=options,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        console=_notes(),
    )


@app.command(epilog="Example: `unetfast inspect shards/ --verify --sheet sheet.png`")
def inspect(
    shards: Annotated[Path, typer.Argument(metavar="FOLDER", help="Shard folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and decode everything, test every checksum.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write a contact sheet with masks and legend to this PNG.")
    ] = None,
) -> None:
    """Say what a shard folder holds; verify it; draw a contact sheet."""
    from unetfast.app.inspect import inspect_shards

    report = inspect_shards(shards, verify=verify, sheet=sheet, console=_notes(), results=_results())
    if report.problems:
        raise typer.Exit(1)


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

    console = _notes()
    run = resolve_run(shards, config=config, preset=preset, overrides=set_ or [], out=out, resume=resume, console=console)
    result = run_training(shards, run.config, run.out, resume=resume, console=console)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command("eval", epilog="Example: `unetfast eval --shards shards/ --checkpoint runs/mine/best.pt --json`")
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a checkpoint on a split: IoU, Dice and accuracy from one confusion matrix."""
    from unetfast.infer.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        shards,
        checkpoint,
        split=split,
        size=None if size is None else size.value,
        batch_size=batch_size,
        threads=threads,
        device=device,
        json=json,
        console=_notes(),
    )


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
        console=_notes(),
    )
    if report.failures:
        raise typer.Exit(1)


@app.command(epilog="Example: `unetfast demo --dataset clevr`")
def demo(
    dataset: Annotated[ToyDataset, typer.Option(help="Which layout to imitate.")] = ToyDataset.carvana,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the demo; made afresh each time.")] = Path("runs/demo"),
) -> None:
    """Do the whole job on toy data: shard, inspect, train, eval, predict."""
    from unetfast.app.demo import run_demo

    run_demo(dataset=dataset.value, out=out, console=_notes())


@app.command(epilog="Example: `unetfast doctor`")
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is installed, which devices there are, and which loader backend would be used and why."""
    from rich.console import Console

    from unetfast.app.doctor import run_doctor

    report = run_doctor(console=Console(highlight=False), json=json)
    if not report.ok:
        raise typer.Exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"unetfast {version('unetfast')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


# what typer raises for an unknown command or option; it has no public name there, as typer brings its own copy of click
_UsageError: Any = typer.BadParameter.__base__


def _refuse_usage(error: Any) -> NoReturn:
    message = " ".join(error.format_message().split())
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else ""
        hint = " ".join(("unetfast", *command.split(), "--help"))
        sys.stderr.write(f"error: {message.rstrip('.')}; see `{hint}`\n")
    sys.exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; a `UserError` becomes one message on stderr and exit code 2."""
    # read once, when torch is first imported: OpenMP threads that wait must not spin against the loader's threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # what Pillow warns of is either harmless or an error of ours that names the file
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        # the exit code of a command that raised Exit (or of --help), else what the command returned: nothing
        sys.exit(app(arguments, standalone_mode=False))
    except _UsageError as error:
        _refuse_usage(error)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BrokenPipeError:
        # the reader of our output went away (`unetfast inspect shards/ | head`): not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"error: {error.filename or 'the output'}: {error.strerror}; free some space\n")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
