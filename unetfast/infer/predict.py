"""Masks of images of any size: `unetfast predict`.

Images are read and resized on threads, predicted in batches at the training size, and their logits brought to each image's own
size in stripes; results are encoded and written on threads. A bad image is reported and the rest done.

Axis legend: N batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unetfast.data.image import EXIF_CHOICES, load_image
from unetfast.device import num_usable_cores
from unetfast.errors import BadSampleError, UserError
from unetfast.infer.fullsize import iter_stripes
from unetfast.infer.inputs import ImageInput, check_outputs, list_images
from unetfast.infer.load import TrainedModel, load_model
from unetfast.infer.outputs import (
    MaskFormat,
    ProbsWriter,
    choose_mask_format,
    class_file_names,
    encode_overlay,
    open_whole,
    write_class_masks,
    write_file,
)
from unetfast.infer.show import build_bar
from unetfast.loader.pixels import resize_box


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
    """

    num_done: int
    num_replaced: int
    failures: list[PredictFailure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An image that was read: small for the model, whole only where an overlay will show it."""

    image: ImageInput
    small_HWC: np.ndarray
    size_hw: tuple[int, int]
    whole_HWC: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Job:
    """What is asked for, and the files that each image leaves."""

    trained: TrainedModel
    out: Path
    mask_format: MaskFormat
    overlay: bool
    probs: bool
    per_class: bool
    exif: str

    def mask_path(self, image: ImageInput) -> Path:
        return self.out / f"{image.name}{self.mask_format.suffix}"

    def overlay_path(self, image: ImageInput) -> Path:
        return self.out / f"{image.name}_overlay.jpg"

    def probs_path(self, image: ImageInput) -> Path:
        return self.out / f"{image.name}_probs.npy"

    def class_folder(self, image: ImageInput) -> Path:
        return self.out / f"{image.name}_classes"

    def all_paths(self, image: ImageInput) -> list[Path]:
        paths = [self.mask_path(image)]
        if self.overlay:
            paths.append(self.overlay_path(image))
        if self.probs:
            paths.append(self.probs_path(image))
        if self.per_class:
            folder = self.class_folder(image)
            paths += [folder / name for name in class_file_names(self.trained.checkpoint.labels)]
        return paths

    def read(self, image: ImageInput) -> _Prepared | PredictFailure:
        try:
            loaded = load_image(image.path.read_bytes(), file=str(image.path), exif=self.exif)
        except OSError as error:
            return PredictFailure(str(image.path), f"cannot be read ({error.strerror or error})")
        except BadSampleError as error:
            # the remedies of a bad sample speak of packing
            return PredictFailure(str(image.path), error.reason)
        rgb_HWC = loaded.rgb_HWC
        height, width = rgb_HWC.shape[:2]
        small_HWC = np.empty((*self.trained.checkpoint.config.loader.size_hw, 3), dtype=np.uint8)
        # Pillow's arrays are read-only, and torch takes no such memory
        resize_box(np.require(rgb_HWC, requirements=["C", "W"]), np.array([0.0, 0.0, height, width]), small_HWC)
        return _Prepared(image, small_HWC, (height, width), rgb_HWC if self.overlay else None)

    def run_model(self, batch: Sequence[_Prepared]) -> Tensor:
        device = self.trained.device
        image_NHWC = torch.from_numpy(np.stack([prepared.small_HWC for prepared in batch])).to(device)
        # NHWC memory seen as NCHW is what channels_last means
        with torch.no_grad(), self.trained.amp.autocast(device):
            logits_NKHW: Tensor = self.trained.model(image_NHWC.permute(0, 3, 1, 2))
        return logits_NKHW

    def predict_mask(self, logits_KHW: Tensor, prepared: _Prepared) -> np.ndarray:
        """Take the class of the largest logit at the image's own size; write the probabilities on the way, if asked."""
        height, width = prepared.size_hw
        num_classes = len(logits_KHW)
        pred_HW = np.empty((height, width), dtype=np.uint8 if num_classes <= 256 else np.uint16)
        if not self.probs:
            for top, stripe_KHW in iter_stripes(logits_KHW, prepared.size_hw):
                pred_HW[top : top + stripe_KHW.shape[1]] = stripe_KHW.max(dim=0).indices.cpu().numpy()
            return pred_HW
        with open_whole(self.probs_path(prepared.image)) as file:
            writer = ProbsWriter(file, (num_classes, height, width))
            for top, stripe_KHW in iter_stripes(logits_KHW, prepared.size_hw):
                pred_HW[top : top + stripe_KHW.shape[1]] = stripe_KHW.max(dim=0).indices.cpu().numpy()
                writer.write_rows(top, stripe_KHW.softmax(dim=0).to(torch.float16).cpu().numpy())
        return pred_HW

    def write(self, prepared: _Prepared, pred_HW: np.ndarray) -> None:
        labels = self.trained.checkpoint.labels
        write_file(self.mask_path(prepared.image), self.mask_format.encode(pred_HW))
        if prepared.whole_HWC is not None:
            write_file(self.overlay_path(prepared.image), encode_overlay(prepared.whole_HWC, pred_HW, labels))
        if self.per_class:
            write_class_masks(self.class_folder(prepared.image), pred_HW, labels)


def predict(
    checkpoint: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probs: bool = False,
    per_class: bool = False,
    batch_size: int = 8,
    device: str = "auto",
    threads: int = 0,
    exif: str = "apply",
    console: Console | None = None,
) -> PredictReport:
    """Predict masks of images and write them below `out`: `unetfast predict`.

    An image is resized to the checkpoint's training size as the loader does it; the logits are brought back to the image's
    own size bilinearly, and the largest one names the pixel's class. Written for an image `NAME.jpg`:

    - `NAME.png`: the mask, in the values and colours of the source's own masks (see `MaskFormat`);
    - `NAME_overlay.jpg` (`overlay`): the mask over the image, with a legend;
    - `NAME_probs.npy` (`probs`): probability of each class, float16, (K, H, W);
    - `NAME_classes/ID_CLASS.png` (`per_class`): 0 and 255 for each class that occurs.

    Files of a former run are replaced, and counted; no image is ever replaced. Folders are read as `list_images` says.

    Args:
        checkpoint: best.pt or last.pt of a run.
        inputs: image files and folders of images.
        out: folder for the results; made if need be.
        overlay: also draw overlays.
        probs: also write probabilities.
        per_class: also write a mask by class.
        batch_size: images a batch.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: that read and write; 0 takes all cores.
        exif: "apply" predicts a turned photo (EXIF orientation) as viewers show it, and so is its mask; "ignore" takes the
            pixels as stored; "error" counts such a photo as a failure.
        console: for progress and notes; None is silent.

    Raises:
        UserError: no image, no checkpoint, results that would replace each other or an image, a file that cannot be written.
    """
    if exif not in EXIF_CHOICES:
        raise UserError(f"--exif {exif}: give one of {', '.join(EXIF_CHOICES)}")
    images = list_images(inputs, out)
    trained = load_model(checkpoint, device=device, console=console)
    mask_format = choose_mask_format(trained.checkpoint.labels)
    job = _Job(trained, out, mask_format, overlay, probs, per_class, exif)
    check_outputs(images, map(job.all_paths, images))
    num_replaced = sum(job.mask_path(image).exists() for image in images)
    num_threads = threads or num_usable_cores()
    failures: list[PredictFailure] = []
    writing: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(num_threads, "read") as readers,
        ThreadPoolExecutor(num_threads, "write") as writers,
        build_bar("predict", len(images), console) as advance_to,
    ):
        good = _good_ones(_read_ahead(readers, job, images, batch_size + num_threads), failures, console)
        num_done = 0
        while batch := list(islice(good, batch_size)):
            for prepared, logits_KHW in zip(batch, job.run_model(batch), strict=True):
                writing.append(writers.submit(job.write, prepared, job.predict_mask(logits_KHW, prepared)))
                while len(writing) > batch_size + num_threads:
                    writing.popleft().result()
            num_done += len(batch)
            advance_to(num_done + len(failures))
        for future in writing:
            future.result()
    report = PredictReport(num_done, num_replaced, failures)
    if console is not None:
        _print_summary(report, job, console)
    return report


def _read_ahead(
    readers: ThreadPoolExecutor, job: _Job, images: Sequence[ImageInput], num_ahead: int
) -> Iterator[_Prepared | PredictFailure]:
    rest = iter(images)
    reading = deque(readers.submit(job.read, image) for image in islice(rest, num_ahead))
    while reading:
        result = reading.popleft().result()
        reading.extend(readers.submit(job.read, image) for image in islice(rest, 1))
        yield result


def _good_ones(
    results: Iterator[_Prepared | PredictFailure], failures: list[PredictFailure], console: Console | None
) -> Iterator[_Prepared]:
    for result in results:
        if isinstance(result, _Prepared):
            yield result
            continue
        failures.append(result)
        if console is not None:
            console.print(f"failed: {result.file}: {result.reason}", style="red", markup=False, soft_wrap=True)


def _print_summary(report: PredictReport, job: _Job, console: Console) -> None:
    """Say what was written: one line a kind of file, NAME standing for an image's name."""
    kinds = {
        "palette": "palette PNG in the source's values",
        "rgb": "RGB PNG in the source's colours",
        "png16": "16-bit PNG in the source's values",
        "npy": "int32 in the source's values, height x width",
    }
    images = "1 image" if report.num_done == 1 else f"{report.num_done:,} images"
    lines = [f"{job.out}/  {images} done"]
    if report.num_done:
        lines.append(f"  NAME{job.mask_format.suffix}: {kinds[job.mask_format.kind]}")
        lines += ["  NAME_overlay.jpg: the mask over the image, with a legend"] * job.overlay
        lines += ["  NAME_probs.npy: probabilities, float16, classes x height x width"] * job.probs
        lines += ["  NAME_classes/ID_CLASS.png: 0 and 255, for each class that occurs"] * job.per_class
    if report.num_replaced:
        files = "1 mask was" if report.num_replaced == 1 else f"{report.num_replaced:,} masks were"
        lines.append(f"  {files} there already, and replaced")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if report.failures:
        images = "1 image" if len(report.failures) == 1 else f"{len(report.failures):,} images"
        console.print(f"{images} failed, see above", style="red")
