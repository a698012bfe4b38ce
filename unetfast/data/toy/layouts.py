"""Writes small true-to-life copies of the data sets' folder layouts, for the demo, the tests and the benchmarks.

File names, formats, palettes, class numbers and groups are those of the real sets; the pictures are drawn by the modules
beside this one. A picture depends on the seed and its own number alone, not on how many others are written.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unetfast.data.toy import cars, scenes
from unetfast.data.toy.canvas import Grain
from unetfast.errors import UserError

TOY_LAYOUTS = {
    "carvana": ("kaggle", "four-folders"),
    "clevr": ("splits", "flat"),
    "ade20k": ("challenge",),
    "folder": ("splits", "flat"),
}
NUM_CARVANA_ANGLES = 16
NUM_CLEVR_FRAMES = 22
ADE_SIDES = (0.8, 1.3)  # shortest and longest, as shares of the size asked for
# of the demo: noise and texture that keep a threshold from finding the objects
DEMO_GRAIN = {
    "carvana": Grain(noise=4.0, texture=0.06, quality=92),
    "clevr": Grain(noise=2.0, texture=0.0, quality=92),
    "ade20k": Grain(noise=3.0, texture=0.05, quality=92),
    "folder": Grain(noise=4.0, texture=0.0, quality=92),
}


@dataclass(frozen=True, slots=True)
class _Order:
    """What to write, and where."""

    root: Path
    layout: str
    num_groups: int
    num_val_groups: int
    images_per_group: int
    size_hw: tuple[int, int]
    seed: int
    grain: Grain

    def rng(self, *place: int | str) -> np.random.Generator:
        """Return the generator of one thing; independent of how much else is written."""
        return np.random.default_rng([self.seed, *(zlib.crc32(str(part).encode()) for part in place)])


def write_toy(
    root: Path,
    dataset: str,
    *,
    num_groups: int,
    seed: int,
    images_per_group: int | None = None,
    size_hw: tuple[int, int] | None = None,
    layout: str | None = None,
    val_fraction: float = 0.25,
    grain: Grain | None = None,
) -> list[Path]:
    """Write a toy data set; the same arguments give the same bytes (with the same Pillow).

    Args:
        root: folder to write into; made when missing, files of the same names are replaced.
        dataset: "carvana", "clevr", "ade20k" or "folder".
        num_groups: cars, videos, or single images (ade20k and folder), over train and val together.
        seed: names the pictures.
        images_per_group: angles a car (default 4, at most 16), frames a video (default 22); ade20k and folder have 1.
        size_hw: height and width, pixels; default 160x240, for ade20k sizes that vary around it.
        layout: one of `TOY_LAYOUTS[dataset]`, the first by default. carvana: "kaggle" (no splits) or "four-folders";
            clevr: "splits" (train/ val/ unlabeled/, with one video without mask) or "flat"; folder: "splits" or "flat".
        grain: noise and detail of the pictures; None is the demo's.
        val_fraction: share of groups that go to val where the layout has splits; at least one group on each side.

    Returns:
        All files written, sorted.

    Raises:
        UserError: the data set or layout is unknown, or a number is out of range.
    """
    if dataset not in TOY_LAYOUTS:
        raise UserError(f"no toy data set {dataset!r}; there are: {', '.join(TOY_LAYOUTS)}")
    layouts = TOY_LAYOUTS[dataset]
    if layout is not None and layout not in layouts:
        raise UserError(f"toy {dataset} has no layout {layout!r}; there are: {', '.join(layouts)}")
    layout = layout or layouts[0]
    has_splits = layout not in ("kaggle", "flat")
    if num_groups < 1 + has_splits:
        raise UserError(f"num_groups = {num_groups}: layout {layout!r} needs at least {1 + has_splits}")
    if images_per_group is None:
        images_per_group = {"carvana": 4, "clevr": NUM_CLEVR_FRAMES}.get(dataset, 1)
    highest = {"carvana": NUM_CARVANA_ANGLES, "clevr": 999}.get(dataset, 1)
    if not 1 <= images_per_group <= highest:
        raise UserError(f"images_per_group = {images_per_group}: toy {dataset} takes 1 to {highest}")
    if min(size_hw or (160, 240)) < 16:
        raise UserError(f"size_hw = {size_hw}: at least 16x16 pixels")
    num_val_groups = min(num_groups - 1, max(1, round(num_groups * val_fraction))) if has_splits else 0
    order = _Order(
        root, layout, num_groups, num_val_groups, images_per_group, size_hw or (160, 240), seed, grain or DEMO_GRAIN[dataset]
    )
    return sorted(_WRITERS[dataset](order))


def _write_carvana(order: _Order) -> list[Path]:
    folders = {"kaggle": ("train", "train_masks")}.get(order.layout, ("train_images", "train_masks"))
    files: list[Path] = []
    for group in range(order.num_groups):
        rng = order.rng("carvana", group)
        car_id, car = rng.bytes(6).hex(), cars.draw_car_shape(rng)
        is_val = group >= order.num_groups - order.num_val_groups
        image_folder, mask_folder = ("val_images", "val_masks") if is_val else folders
        start = float(rng.uniform(0, 2 * np.pi))
        for place in range(order.images_per_group):
            # a quarter of the angles is spread over the whole turn, as all 16 are
            angle = 1 + place * NUM_CARVANA_ANGLES // order.images_per_group
            turn = start + 2 * np.pi * angle / NUM_CARVANA_ANGLES
            image_HWC, mask_HW = cars.draw_car(order.rng("carvana", group, angle), car, turn, order.size_hw, order.grain)
            stem = f"{car_id}_{angle:02d}"
            files.append(_save(order.root / image_folder / f"{stem}.jpg", Image.fromarray(image_HWC), order.grain))
            files.append(
                _save(order.root / mask_folder / f"{stem}_mask.gif", _palette_image(mask_HW, [(0, 0, 0), (255, 255, 255)]))
            )
    return files


def _write_clevr(order: _Order) -> list[Path]:
    files: list[Path] = []
    for group in range(order.num_groups + (order.layout == "splits")):
        is_unlabeled = group == order.num_groups
        is_val = group >= order.num_groups - order.num_val_groups
        # the real set numbers val videos from 1000, unlabelled ones from 2000
        split, first = ("unlabeled", 2000) if is_unlabeled else ("val", 1000) if is_val else ("train", 0)
        number = first + (0 if is_unlabeled else group - order.num_groups + order.num_val_groups if is_val else group)
        folder = order.root / (split if order.layout == "splits" else "") / f"video_{number}"
        blocks = scenes.draw_blocks(order.rng("clevr", split, group))
        masks = []
        for frame in range(order.images_per_group):
            rng = order.rng("clevr", split, group, frame)
            image_HWC, mask_HW = scenes.draw_clevr_frame(rng, blocks, frame, order.size_hw, order.grain)
            files.append(_save(folder / f"image_{frame}.png", Image.fromarray(image_HWC)))
            masks.append(mask_HW)
        if not is_unlabeled:
            np.save(folder / "mask.npy", np.stack(masks))
            files.append(folder / "mask.npy")
    return files


def _write_ade20k(order: _Order) -> list[Path]:
    files: list[Path] = []
    for group in range(order.num_groups):
        is_val = group >= order.num_groups - order.num_val_groups
        split, short = ("validation", "val") if is_val else ("training", "train")
        number = 1 + (group - order.num_groups + order.num_val_groups if is_val else group)
        rng = order.rng("ade20k", split, number)
        height, width = (round(side * float(rng.uniform(*ADE_SIDES))) for side in order.size_hw)
        image_HWC, mask_HW = scenes.draw_ade_scene(rng, (height, width), order.grain)
        stem = f"ADE_{short}_{number:08d}"
        files.append(_save(order.root / "images" / split / f"{stem}.jpg", Image.fromarray(image_HWC), order.grain))
        files.append(_save(order.root / "annotations" / split / f"{stem}.png", Image.fromarray(mask_HW)))
    return files


def _write_folder(order: _Order) -> list[Path]:
    palette = [(0, 0, 0), (230, 120, 180), (90, 40, 160), *[(0, 0, 0)] * 252, (224, 224, 192)]
    files: list[Path] = []
    for group in range(order.num_groups):
        is_val = group >= order.num_groups - order.num_val_groups
        top = order.root / ("" if order.layout == "flat" else "val" if is_val else "train")
        image_HWC, mask_HW = scenes.draw_cells(order.rng("folder", group), order.size_hw, order.grain)
        files.append(_save(top / "images" / f"cells_{group:03d}.png", Image.fromarray(image_HWC)))
        files.append(_save(top / "masks" / f"cells_{group:03d}.png", _palette_image(mask_HW, palette)))
    return files


def _palette_image(mask_HW: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(mask_HW).convert("L")
    image.putpalette([channel for color in colors for channel in color])
    return image


def _save(path: Path, image: Image.Image, grain: Grain | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if grain is not None and path.suffix == ".jpg":
        image.save(path, quality=grain.quality)
    elif path.suffix == ".gif":
        image.save(path, optimize=False)  # keep index 0 black and 1 white, even where one is absent
    else:
        image.save(path)
    return path


_WRITERS: dict[str, Callable[[_Order], list[Path]]] = {
    "carvana": _write_carvana,
    "clevr": _write_clevr,
    "ade20k": _write_ade20k,
    "folder": _write_folder,
}
