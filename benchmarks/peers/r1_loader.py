"""R1's loader: our re-creation of the steps that this project states, in our own code; none of it is that project's program.

Pillow decodes image and mask in full, albumentations resizes, rotates within 35 degrees, flips (0.5 left to right, 0.1 top to
bottom), divides by 255; a torch DataLoader makes batches of 16. albumentations is the real package.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from peers import use_peers
from peers.loading import LoaderTask, Pair, Stream
from peers.torch_loader import KNOBS as OF_WORKERS
from peers.torch_loader import stream_dataset

KNOBS = (*OF_WORKERS, {"workers": 2, "batch_size": 4})


class R1Dataset(Dataset[Any]):
    """Image float32 in 0..1, (3, H, W), and mask float32 of 0 and 1, (H, W).

    Args:
        pairs: of Carvana.
        size_hw: height and width, pixels.
        turned: rotate and flip; else only resize.
    """

    def __init__(self, pairs: Sequence[Pair], size_hw: tuple[int, int], *, turned: bool) -> None:
        self._pairs = pairs
        self._transform = build_transform(size_hw, turned=turned)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        pair = self._pairs[number]
        image = np.array(Image.open(pair.image).convert("RGB"))
        mask = np.array(Image.open(pair.mask).convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        changed = self._transform(image=image, mask=mask)
        return changed["image"], changed["mask"]


def build_transform(size_hw: tuple[int, int], *, turned: bool, area_for_downscale: str | None = None) -> Any:
    """Compose R1's changes; `area_for_downscale` is albumentations' own, which R1 leaves out."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for newer versions
    use_peers()
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    resize: dict[str, Any] = {} if area_for_downscale is None else {"area_for_downscale": area_for_downscale}
    turns = [A.Rotate(limit=35, p=1.0), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.1)] if turned else []
    return A.Compose(
        [
            A.Resize(height=size_hw[0], width=size_hw[1], **resize),
            *turns,
            A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0),
            ToTensorV2(),
        ]
    )


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    dataset = R1Dataset(task.pairs, task.size_hw, turned=task.turned and not plain)
    return stream_dataset(dataset, task, knobs, plain=plain, arrange=tuple)
