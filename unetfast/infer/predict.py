"""Masks of images of any size: `unetfast predict`.

Images are read on threads, ahead and in order (reading.py). Each is either resized to the training size and predicted in a
batch with others, its logits brought back to its own size in stripes (fullsize.py), or cut into windows whose logits are
blended (window.py, tiling.py). What is read off the logits becomes files on threads (job.py, outputs.py). A bad image is
reported and the rest done (predict_run.py).

Axis legend: H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from unetfast.compilecache import describe_cache, keep_compiled
from unetfast.config import Config
from unetfast.data.image import DEFAULT_MAX_PIXELS, EXIF_CHOICES
from unetfast.device import num_usable_cores
from unetfast.errors import UserError
from unetfast.infer.augmented import Tta, build_augmented, parse_tta
from unetfast.infer.compiled import StaticModel, build_static
from unetfast.infer.inputs import ImageInput, check_outputs, list_images
from unetfast.infer.job import Job, Post
from unetfast.infer.load import TrainedModel, load_model
from unetfast.infer.outputs import choose_mask_format
from unetfast.infer.post.process import parse_post
from unetfast.infer.predict_run import PredictFailure, PredictRun
from unetfast.infer.reading import ReadAhead, ReadOptions
from unetfast.infer.show import build_bar
from unetfast.infer.submission import check_submission_names, choose_submission_format
from unetfast.infer.tiling import choose_batch_size
from unetfast.infer.videos import MASK_NPY_CHOICES, VideoMasks, check_format, find_videos
from unetfast.infer.window import Windows, parse_windows

__all__ = ["PredictFailure", "PredictReport", "predict"]
CLEVR = "clevr"


@dataclass(frozen=True, slots=True)
class PredictReport:
    """What a prediction did.

    Args:
        num_done: images whose results were written.
        num_replaced: masks of a former run that were replaced.
        failures: images that could not be predicted.
        num_pixels: of the images that were done.
        seconds: from the first image's reading to the last one's writing, seconds.
        num_videos: videos whose mask.npy was written.
    """

    num_done: int
    num_replaced: int
    failures: list[PredictFailure] = field(default_factory=list)
    num_pixels: int = 0
    seconds: float = 0.0
    num_videos: int = 0


def predict(
    checkpoint: Path | str,
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    overlay: bool = False,
    probs: bool = False,
    per_class: bool = False,
    window: str = "off",
    overlap: float = 0.5,
    scale: float = 1.0,
    tta: str = "none",
    mask_npy: str = "auto",
    post: Post | str | None = None,
    submission: bool = False,
    weights: str = "auto",
    batch_size: int = 8,
    compiled: bool = False,
    device: str = "auto",
    threads: int = 0,
    exif: str = "apply",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    console: Console | None = None,
) -> PredictReport:
    """Predict masks of images and write them below `out`: `unetfast predict`.

    An image is resized to the checkpoint's training size by the loader's filter; the logits are brought back to the image's
    own size bilinearly, and the largest one names the pixel's class. With windows the image is not resized (but for `scale`):
    overlapping windows are predicted and their logits blended. Written for an image `NAME.jpg`:

    - `NAME.png`: the mask, in the values and colours of the source's own masks (see `MaskFormat`);
    - `NAME_overlay.jpg` (`overlay`): the mask over the image, with a legend;
    - `NAME_probs.npy` (`probs`): probability of each class, float16, (K, H, W);
    - `NAME_classes/ID_CLASS.png` (`per_class`): 0 and 255 for each class that occurs;
    - `mask.npy` (`mask_npy`): for a folder of numbered frames, all of their masks, uint8, (frames, H, W).

    Files of a former run are replaced, and counted; no image is ever replaced. Folders are read as `list_images` says.

    Args:
        checkpoint: best.pt or last.pt of a run.
        inputs: image files, folders of images, and patterns such as "photos/**/*.jpg"; one of them, or several.
        out: folder for the results; made if need be.
        overlay: also draw overlays.
        probs: also write probabilities.
        per_class: also write a mask by class.
        window: "off" resizes whole images; "auto" cuts windows of the training size; or HEIGHTxWIDTH, pixels.
        overlap: share of a window that the next one covers again.
        scale: windows are cut from the image resized by this factor; masks keep the image's own size.
        tta: test-time augmentation, one of "none", "flips", "scales", "flips+scales".
        mask_npy: "auto" writes mask.npy for a checkpoint of CLEVR and folders named as its videos, "on" for every folder.
        post: refines the classes of each image from its pixels and probabilities: the text of `--post`, such as
            "crf,islands:64", or a function; see `Job`.
        submission: write masks as ADE20K's challenge takes them: grey PNGs of the values 1..150, under its names.
        weights: "raw", "ema" or "auto"; see `load_model`.
        batch_size: images, or windows of one image, a batch; of windows fewer where they would take too much memory.
        compiled: compile the network first, one static graph for batches of `batch_size`, on a GPU replayed as a CUDA graph:
            for many images, or for one image in little time. Takes a minute, and seconds once the compiler's work is kept. The
            masks are the same but for rounding.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: that read and write; 0 takes all cores.
        exif: "apply" predicts a turned photo (EXIF orientation) as viewers show it, and so is its mask; "ignore" takes the
            pixels as stored; "error" counts such a photo as a failure.
        max_pixels: larger images count as failures: a file of a few kilobytes can claim to be any size.
        console: for progress and notes; None is silent.

    Raises:
        UserError: no image, no checkpoint, an option that is none, results that would replace each other or an image, a file
            that cannot be written, a network that cannot be compiled.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_options(exif=exif, mask_npy=mask_npy, max_pixels=max_pixels)
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    images = list_images([Path(path) for path in inputs], out)
    trained = load_model(checkpoint, device=device, weights=weights, folded=True, console=console)
    config, labels = trained.checkpoint.config, trained.checkpoint.labels
    tta_copies = parse_tta(tta, vertical=config.augment.vflip.prob > 0)
    windows = parse_windows(window, training_hw=config.loader.size_hw, overlap=overlap, scale=scale)
    if submission:
        check_submission_names(image.name for image in images)
    most = batch_size if windows is not None else min(batch_size, len(images))
    static = _compile(trained, windows, tta_copies, most) if compiled else None
    job = Job(
        trained=trained,
        model=build_augmented(static or trained.model, tta_copies),
        out=out,
        mask_format=choose_submission_format(labels) if submission else choose_mask_format(labels),
        windows=windows,
        overlay=overlay,
        probs=probs,
        per_class=per_class,
        post=parse_post(post, labels.names) if isinstance(post, str) else post,
    )
    if console is not None:
        _print_ways(job, tta_copies, static, console)
    options = ReadOptions(
        exif=exif,
        max_pixels=max_pixels,
        small_hw=None if windows is not None else config.loader.size_hw,
        keep_whole=job.needs_pixels,
    )
    videos, notes = _find_videos(job, images, mask_npy)
    report = _predict_all(job, images, videos, options, batch_size, threads or num_usable_cores(), console)
    if console is not None:
        _print_summary(report, job, [*notes, *videos.notes, *_note_uncompiled(static)], console, compiled=compiled)
    return report


def _check_options(*, exif: str, mask_npy: str, max_pixels: int) -> None:
    _check_choice("--exif", exif, EXIF_CHOICES)
    _check_choice("--mask-npy", mask_npy, MASK_NPY_CHOICES)
    if max_pixels < 1:
        raise UserError(f"--max-pixels {max_pixels}: give a number of pixels, at least 1")


def _predict_all(
    job: Job,
    images: Sequence[ImageInput],
    videos: VideoMasks,
    options: ReadOptions,
    batch_size: int,
    num_threads: int,
    console: Console | None,
) -> PredictReport:
    check_outputs(images, map(job.all_paths, images))
    num_replaced = sum(job.mask_path(image).exists() for image in images)
    start = time.perf_counter()
    with (
        ReadAhead(images, options, batch_size=1 if job.windows else batch_size, num_threads=num_threads) as ahead,
        build_bar("predict", len(images), console) as advance_to,
        PredictRun(job, ahead, videos, num_threads=num_threads, advance_to=advance_to, console=console) as run,
    ):
        for batch in ahead:
            if job.windows is None:
                run.do_batch(batch)
            else:
                run.do_windows(batch, batch_size)
        run.finish()
    seconds = time.perf_counter() - start
    return PredictReport(run.num_done, num_replaced, run.failures, run.num_pixels, seconds, videos.num_written)


def _compile(trained: TrainedModel, windows: Windows | None, tta: Tta | None, batch_size: int) -> StaticModel:
    """Compile the network for the batches that images, or windows of them, will come in."""
    size_hw = trained.checkpoint.config.loader.size_hw
    if windows is not None:
        size_hw = windows.size_hw
        batch_size = choose_batch_size(batch_size, size_hw, trained.checkpoint.labels.num_classes, trained.device)
    return build_static(trained, size_hw, batch_size=batch_size, tta=tta)


def _check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{flag} {value}: give one of {', '.join(choices)}")


def _find_videos(job: Job, images: Sequence[ImageInput], mask_npy: str) -> tuple[VideoMasks, list[str]]:
    asked_for = mask_npy == "on"
    if asked_for:
        check_format(job.mask_format)
    if not asked_for and (mask_npy == "off" or job.trained.checkpoint.dataset != CLEVR or job.mask_format.kind != "palette"):
        return VideoMasks([], job.mask_path), []
    videos, notes = find_videos(images, job.out, asked_for=asked_for)
    return VideoMasks(videos, job.mask_path), notes


def _print_ways(job: Job, tta: Tta | None, static: StaticModel | None, console: Console) -> None:
    """Say how the network is asked, where that is not the plain way."""
    if job.windows is not None:
        console.print(_describe_windows(job.windows, job.trained.checkpoint.config), markup=False, soft_wrap=True)
    if tta is not None:
        console.print(f"tta     {tta.describe()}", markup=False, soft_wrap=True)
    if static is not None:
        console.print(f"compile {static.describe()}, {describe_cache(keep_compiled())}", markup=False, soft_wrap=True)


def _note_uncompiled(static: StaticModel | None) -> list[str]:
    if static is None or not static.num_uncompiled:
        return []
    return [f"{static.num_uncompiled:,} images or windows of another size went through the network as it is, uncompiled"]


def _describe_windows(windows: Windows, config: Config) -> str:
    """Say what a window sees, and how that differs from what the net saw in training."""
    height, width = windows.size_hw
    seen_height, seen_width = (round(side / windows.scale) for side in windows.size_hw)
    line = f"window  {height}x{width}, overlap {windows.overlap:g}"
    whole = ", at the image's own resolution"
    line += whole if windows.scale == 1 else f", sees {seen_height}x{seen_width} pixels of the image"
    if config.augment.crop.prob > 0:
        return line
    training_height, training_width = config.loader.size_hw
    return line + (
        f"\n        the net was trained on whole images resized to {training_height}x{training_width}; "
        "--scale shows it things as large as there"
    )


def _print_summary(report: PredictReport, job: Job, notes: Sequence[str], console: Console, *, compiled: bool) -> None:
    """Say what was written: one line a kind of file, NAME standing for an image's name."""
    kinds = {
        "palette": "palette PNG in the source's values",
        "grey": "grey PNG in the source's values",
        "rgb": "RGB PNG in the source's colours",
        "png16": "16-bit PNG in the source's values",
        "npy": "int32 in the source's values, height x width",
    }
    images = "1 image" if report.num_done == 1 else f"{report.num_done:,} images"
    rate = ""
    if report.num_done and report.seconds:
        megapixels = report.num_pixels / 1e6
        rate = (
            f", {megapixels:,.1f} megapixels in {report.seconds:,.1f} s: {report.num_done / report.seconds:,.1f} images/s, "
            f"{megapixels / report.seconds:,.1f} megapixels/s, {'compiling, ' * compiled}reading and writing included"
        )
    lines = [f"{job.out}/  {images} done{rate}"]
    if report.num_done:
        lines.append(f"  NAME{job.mask_format.suffix}: {kinds[job.mask_format.kind]}")
        lines += ["  NAME_overlay.jpg: the mask over the image, with a legend"] * job.overlay
        lines += ["  NAME_probs.npy: probabilities, float16, classes x height x width"] * job.probs
        lines += ["  NAME_classes/ID_CLASS.png: 0 and 255, for each class that occurs"] * job.per_class
    if report.num_videos:
        videos = "1 video" if report.num_videos == 1 else f"{report.num_videos:,} videos"
        lines.append(f"  mask.npy of {videos}: uint8, frames x height x width, as CLEVR has them")
    if report.num_replaced:
        files = "1 mask was" if report.num_replaced == 1 else f"{report.num_replaced:,} masks were"
        lines.append(f"  {files} there already, and replaced")
    lines += [f"  note: {note}" for note in notes]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if report.failures:
        images = "1 image" if len(report.failures) == 1 else f"{len(report.failures):,} images"
        console.print(f"{images} failed, see above", style="red")
