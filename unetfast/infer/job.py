"""What a prediction is asked for, and what becomes of one image's logits: class ids, probabilities, files.

Logits come in blocks (a stripe of a small image, a finished piece of a large one); only what is read off a block is kept.

Axis legend: N batch, K classes, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unetfast.data.labels import LabelTable
from unetfast.errors import UserError
from unetfast.infer.fullsize import iter_stripes
from unetfast.infer.inputs import ImageInput
from unetfast.infer.load import TrainedModel
from unetfast.infer.outputs import (
    MaskFormat,
    ProbsWriter,
    class_file_names,
    encode_overlay,
    open_whole,
    write_class_masks,
    write_file,
)
from unetfast.infer.prediction import Prediction
from unetfast.infer.reading import Prepared
from unetfast.infer.tiling import Block, choose_batch_size, count_windows, iter_blocks
from unetfast.infer.window import Windows, lay_grid

# of the probabilities of a whole image, which post-processing needs at once
MAX_POST_BYTES = 2 * 2**30

# from an image (uint8, (H, W, 3)) and its probabilities (float32, (K, H, W)) to class ids (H, W)
Post = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ImageError(Exception):
    """One image cannot be predicted, and others can; the text says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for, and the files that each image leaves.

    Args:
        trained: the checkpoint and where it runs.
        model: its net, or that net with test-time augmentation; uint8 images (N, 3, H, W) to logits (N, K, H, W).
        out: folder of the results.
        mask_format: of the masks.
        windows: how images are cut; None resizes each to the training size.
        overlay: draw overlays.
        probs: write probabilities.
        per_class: write a mask by class.
        post: refines the classes of an image that is held whole; None takes the most likely class.
    """

    trained: TrainedModel
    model: nn.Module
    out: Path
    mask_format: MaskFormat
    windows: Windows | None = None
    overlay: bool = False
    probs: bool = False
    per_class: bool = False
    post: Post | None = None

    @property
    def labels(self) -> LabelTable:
        return self.trained.checkpoint.labels

    @property
    def needs_pixels(self) -> bool:
        """Whether an image's own pixels are needed after it was read."""
        return self.overlay or self.windows is not None or self.post is not None

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
            paths += [folder / name for name in class_file_names(self.labels)]
        return paths

    def run_model(self, image_NHWC: np.ndarray) -> Tensor:
        """Ask the net about uint8 pixels (N, H, W, 3).

        Raises:
            UserError: the device's memory is too small for them.
        """
        device = self.trained.device
        try:
            # NHWC memory seen as NCHW is what channels_last means
            image_NCHW = torch.from_numpy(image_NHWC).to(device).permute(0, 3, 1, 2)
            with torch.no_grad(), self.trained.amp.autocast(device):
                logits_NKHW: Tensor = self.model(image_NCHW)
        except torch.OutOfMemoryError:
            num, height, width, _ = image_NHWC.shape
            raise UserError(
                f"{device}: its memory is too small for {num} x {height}x{width} pixels at once; "
                f"take {'a smaller --batch-size' if num > 1 else 'smaller windows, such as --window 256x256'}"
            ) from None
        return logits_NKHW

    def iter_whole(self, logits_KHW: Tensor, size_hw: tuple[int, int]) -> Iterator[Block]:
        """Bring the logits of a resized image to the image's own size."""
        return (Block(top, 0, stripe_KHW) for top, stripe_KHW in iter_stripes(logits_KHW, size_hw))

    def iter_windows(self, rgb_HWC: np.ndarray, batch_size: int, on_share: Callable[[float], None]) -> Iterator[Block]:
        """Predict an image window by window; `on_share` is told the share that is done."""
        assert self.windows is not None
        grid = lay_grid((rgb_HWC.shape[0], rgb_HWC.shape[1]), self.windows)
        num_classes, device = self.labels.num_classes, self.trained.device
        num_windows = count_windows(grid, num_classes)
        return iter_blocks(
            rgb_HWC,
            grid,
            self.run_model,
            num_classes=num_classes,
            device=device,
            batch_size=choose_batch_size(batch_size, grid.window_hw, num_classes, device),
            on_windows=lambda num_done: on_share(num_done / num_windows),
        )

    def settle(self, prepared: Prepared, blocks: Iterable[Block]) -> Prediction:
        """Take the class of the largest logit of each pixel; write the probabilities on the way, if asked.

        Raises:
            ImageError: the model's numbers are not finite, or the image is too large for post-processing.
            UserError: a file cannot be written.
        """
        height, width = prepared.size_hw
        num_classes = self.labels.num_classes
        probs_KHW: np.ndarray | None = None
        if self.post is not None:
            probs_KHW = _make_room_for_post((num_classes, height, width))
        with ExitStack() as stack:
            writer = None
            if self.probs:
                file = stack.enter_context(open_whole(self.probs_path(prepared.image)))
                writer = ProbsWriter(file, (num_classes, height, width))
            # its file, if it has one, is wanted after this block; a failure in it lets go of it
            prediction = Prediction(prepared.size_hw, num_classes, folder=self.mask_path(prepared.image).parent)
            try:
                for block in blocks:
                    prediction.write_block(block.top, block.left, _best_classes(block))
                    if writer is not None or probs_KHW is not None:
                        probs = block.logits_KHW.softmax(dim=0)
                        if writer is not None:
                            writer.write_block(block.top, block.left, probs.to(torch.float16).cpu().numpy())
                        if probs_KHW is not None:
                            rows, columns = probs.shape[1:]
                            part = (slice(block.top, block.top + rows), slice(block.left, block.left + columns))
                            probs_KHW[:, *part] = probs.cpu().numpy()
                if self.post is not None and probs_KHW is not None and prepared.whole_HWC is not None:
                    prediction.write_block(0, 0, self.post(prepared.whole_HWC, probs_KHW))
            except BaseException:
                prediction.close()
                raise
        return prediction

    def write(self, prepared: Prepared, prediction: Prediction) -> None:
        """Write an image's files and let go of its prediction.

        Raises:
            UserError: a file cannot be written.
        """
        with prediction:
            with open_whole(self.mask_path(prepared.image)) as file:
                self.mask_format.write(file, prediction)
            if self.overlay and prepared.whole_HWC is not None:
                data = encode_overlay(prepared.whole_HWC, prediction, self.labels)
                write_file(self.overlay_path(prepared.image), data)
            if self.per_class:
                write_class_masks(self.class_folder(prepared.image), prediction, self.labels)


def _best_classes(block: Block) -> np.ndarray:
    best = block.logits_KHW.max(dim=0)
    if not bool(torch.isfinite(best.values).all()):
        raise ImageError("the model's numbers are not finite (a damaged or diverged checkpoint?)")
    if len(block.logits_KHW) <= 256:
        return best.indices.to(torch.uint8).cpu().numpy()  # an eighth of the bytes comes over from a GPU
    return best.indices.to(torch.int32).cpu().numpy().astype(np.uint16)


def _make_room_for_post(shape_KHW: tuple[int, int, int]) -> np.ndarray:
    num_classes, height, width = shape_KHW
    num_bytes = 4 * num_classes * height * width
    if num_bytes > MAX_POST_BYTES:
        raise ImageError(
            f"--post needs the probabilities of the whole image at once: {num_classes} classes x {height} x {width} are "
            f"{num_bytes / 2**30:.1f} GiB, the limit is {MAX_POST_BYTES / 2**30:.0f} GiB; predict it without --post, or smaller"
        )
    return np.empty(shape_KHW, dtype=np.float32)
