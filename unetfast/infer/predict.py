"""Masks of images of any size: `unetfast predict`.

Images are read on threads, ahead and in order (reading.py). Each is either resized to the training size and predicted in a
batch with others, its logits brought back to its own size in stripes (fullsize.py), or cut into windows whose logits are
blended (window.py, tiling.py). What is read off the logits becomes files on threads (job.py, outputs.py). A bad image is
reported and the rest done.

Axis legend: H height, W width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from unetfast.config import Config
from unetfast.data.image import DEFAULT_MAX_PIXELS, EXIF_CHOICES
from unetfast.device import num_usable_cores
from unetfast.errors import UserError
from unetfast.infer.augmented import build_augmented, parse_tta
from unetfast.infer.inputs import ImageInput, check_outputs, list_images
from unetfast.infer.job import ImageError, Job, Post
from unetfast.infer.load import load_model
from unetfast.infer.outputs import choose_mask_format
from unetfast.infer.post.process import parse_post
from unetfast.infer.prediction import Prediction
from unetfast.infer.reading import Prepared, ReadAhead, ReadOptions, Unread
from unetfast.infer.show import build_bar
from unetfast.infer.submission import check_submission_names, choose_submission_format
from unetfast.infer.tiling import Block
from unetfast.infer.videos import MASK_NPY_CHOICES, VideoMasks, check_format, find_videos
from unetfast.infer.window import Windows, parse_windows

CLEVR = "clevr"
_PENDING_PIXELS = 2**27  # of images that wait to be written


@dataclass(frozen=True, slots=True)
class PredictFailure:
    """An image that could not be predicted.

    Args:
        file: the image, as it was given or found.
        reason: why.
    """

    file: str
    reason: str


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
    device: str = "auto",
    threads: int = 0,
    exif: str = "apply",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    console: Console | None = None,
) -> PredictReport:
    """Predict masks of images and write them below `out`: `unetfast predict`.

    An image is resized to the checkpoint's training size as the loader does it; the logits are brought back to the image's
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
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: that read and write; 0 takes all cores.
        exif: "apply" predicts a turned photo (EXIF orientation) as viewers show it, and so is its mask; "ignore" takes the
            pixels as stored; "error" counts such a photo as a failure.
        max_pixels: larger images count as failures: a file of a few kilobytes can claim to be any size.
        console: for progress and notes; None is silent.

    Raises:
        UserError: no image, no checkpoint, an option that is none, results that would replace each other or an image, a file
            that cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_choice("--exif", exif, EXIF_CHOICES)
    _check_choice("--mask-npy", mask_npy, MASK_NPY_CHOICES)
    if max_pixels < 1:
        raise UserError(f"--max-pixels {max_pixels}: give a number of pixels, at least 1")
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    images = list_images([Path(path) for path in inputs], out)
    trained = load_model(checkpoint, device=device, weights=weights, folded=True, console=console)
    config = trained.checkpoint.config
    augmentation = parse_tta(tta, vertical=config.augment.vflip.prob > 0)
    windows = parse_windows(window, training_hw=config.loader.size_hw, overlap=overlap, scale=scale)
    labels = trained.checkpoint.labels
    if submission:
        check_submission_names(image.name for image in images)
    job = Job(
        trained=trained,
        model=build_augmented(trained.model, augmentation),
        out=out,
        mask_format=choose_submission_format(labels) if submission else choose_mask_format(labels),
        windows=windows,
        overlay=overlay,
        probs=probs,
        per_class=per_class,
        post=parse_post(post, labels.names) if isinstance(post, str) else post,
    )
    if console is not None:
        if windows is not None:
            console.print(_describe_windows(windows, config), markup=False, soft_wrap=True)
        if augmentation is not None:
            console.print(f"tta     {augmentation.describe()}", markup=False, soft_wrap=True)
    videos, notes = _find_videos(job, images, mask_npy)
    check_outputs(images, map(job.all_paths, images))
    num_replaced = sum(job.mask_path(image).exists() for image in images)
    options = ReadOptions(
        exif=exif,
        max_pixels=max_pixels,
        small_hw=None if windows is not None else config.loader.size_hw,
        keep_whole=job.needs_pixels,
    )
    num_threads = threads or num_usable_cores()
    start = time.perf_counter()
    with (
        ReadAhead(images, options, batch_size=1 if windows else batch_size, num_threads=num_threads) as ahead,
        build_bar("predict", len(images), console) as advance_to,
        _Run(job, ahead, videos, num_threads=num_threads, advance_to=advance_to, console=console) as run,
    ):
        for batch in ahead:
            if windows is None:
                run.do_batch(batch)
            else:
                run.do_windows(batch, batch_size)
        run.finish()
    report = PredictReport(
        run.num_done, num_replaced, run.failures, run.num_pixels, time.perf_counter() - start, videos.num_written
    )
    if console is not None:
        _print_summary(report, job, [*notes, *videos.notes], console)
    return report


class _Run:
    """The work on all images, and what came of it. A context manager: on leaving it, its threads end."""

    def __init__(
        self,
        job: Job,
        ahead: ReadAhead,
        videos: VideoMasks,
        *,
        num_threads: int,
        advance_to: Callable[[float, float], None],
        console: Console | None,
    ) -> None:
        self._job = job
        self._ahead = ahead
        self._videos = videos
        self._writers = ThreadPoolExecutor(num_threads, "write")
        self._num_threads = num_threads
        self._pending: deque[tuple[Future[None], Prepared, Prediction]] = deque()
        self._pending_pixels = 0
        self._advance_to = advance_to
        self._console = console
        self.num_done = 0
        self.num_pixels = 0
        self.failures: list[PredictFailure] = []

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._writers.shutdown(wait=True, cancel_futures=True)
        for _future, _prepared, prediction in self._pending:
            prediction.close()

    def do_batch(self, batch: Sequence[Prepared | Unread]) -> None:
        """Predict images that were resized to the training size."""
        good = [(result, result.small_HWC) for result in self._take_good(batch) if result.small_HWC is not None]
        if not good:
            return
        logits_NKHW = self._job.run_model(np.stack([small_HWC for _, small_HWC in good]))
        for (prepared, _), logits_KHW in zip(good, logits_NKHW, strict=True):
            try:
                prediction = self._job.settle(prepared, self._job.iter_whole(logits_KHW, prepared.size_hw))
            except ImageError as error:
                self._fail(prepared, error)
            else:
                self._write(prepared, prediction)

    def do_windows(self, batch: Sequence[Prepared | Unread], batch_size: int) -> None:
        """Predict images window by window."""
        for prepared in self._take_good(batch):
            try:
                prediction = self._job.settle(prepared, self._iter_windows(prepared, batch_size))
            except ImageError as error:
                self._fail(prepared, error)
            else:
                self._write(prepared, prediction)

    def _iter_windows(self, prepared: Prepared, batch_size: int) -> Iterator[Block]:
        def show(share: float) -> None:
            self._show(share, share * prepared.num_pixels)

        assert prepared.whole_HWC is not None
        return self._job.iter_windows(prepared.whole_HWC, batch_size, show)

    def finish(self) -> None:
        """Wait for what is still being written."""
        while self._pending:
            self._wait_for_oldest()

    def _take_good(self, batch: Sequence[Prepared | Unread]) -> list[Prepared]:
        good = []
        for result in batch:
            if isinstance(result, Prepared):
                good.append(result)
                continue
            self._count_failure(result.image, PredictFailure(str(result.image.path), result.reason))
        return good

    def _fail(self, prepared: Prepared, error: ImageError) -> None:
        self._ahead.release(prepared)
        self._count_failure(prepared.image, PredictFailure(str(prepared.image.path), str(error)))

    def _count_failure(self, image: ImageInput, failure: PredictFailure) -> None:
        self.failures.append(failure)
        self._videos.frame_done(image, None)
        if self._console is not None:
            self._console.print(f"failed: {failure.file}: {failure.reason}", style="red", markup=False, soft_wrap=True)
        self._show()

    def _write(self, prepared: Prepared, prediction: Prediction) -> None:
        self._pending.append((self._writers.submit(self._write_one, prepared, prediction), prepared, prediction))
        self._pending_pixels += prepared.num_pixels
        self.num_done += 1
        self.num_pixels += prepared.num_pixels
        self._show()
        while len(self._pending) > 2 * self._num_threads or (self._pending and self._pending_pixels > _PENDING_PIXELS):
            self._wait_for_oldest()

    def _write_one(self, prepared: Prepared, prediction: Prediction) -> None:
        try:
            self._job.write(prepared, prediction)
        finally:
            self._ahead.release(prepared)
        self._videos.frame_done(prepared.image, prepared.size_hw)

    def _wait_for_oldest(self) -> None:
        future, prepared, _prediction = self._pending.popleft()
        self._pending_pixels -= prepared.num_pixels
        future.result()

    def _show(self, share: float = 0.0, num_pixels: float = 0.0) -> None:
        self._advance_to(self.num_done + len(self.failures) + share, (self.num_pixels + num_pixels) / 1e6)


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


def _print_summary(report: PredictReport, job: Job, notes: Sequence[str], console: Console) -> None:
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
            f"{megapixels / report.seconds:,.1f} megapixels/s, reading and writing included"
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
