"""Which mask belongs to which image, by file names alone.

A mask is called like its image, plus a tail such as `_mask`; some data sets give images a tail too. Names are compared whole:
`car_1` never takes the mask of `car_10`. What does not pair one to one is a problem with its name, never a guess.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from unetfast.data.sources.base import ScanProblem
from unetfast.data.sources.listing import FoundFile

MASK_TAILS = (
    *(
        "_mask",
        "-mask",
        ".mask",
        "_masks",
        "_Mask",
        "_MASK",
        "_label",
        "-label",
        "_labels",
        "_lbl",
        "_seg",
        "-seg",
        "_segmentation",
    ),
    *("_gt", "_GT", "-gt", "_groundtruth", "_ground_truth", "_annotation", "_anno", "_manual1", "_1stHO", "_L", "_target"),
)
IMAGE_TAILS = ("_image", "_img", "_training", "_test", "_rgb", "_sat", "_leftImg8bit")
_LOSSY = frozenset({".jpg", ".jpeg"})


@dataclass(slots=True)
class Pairs:
    """Image files with their masks, and what did not pair."""

    pairs: list[tuple[FoundFile, FoundFile]] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    num_other_masks: int = 0  # mask files without the suffix that the user named


def pair_folders(
    images: Sequence[FoundFile], masks: Sequence[FoundFile], *, image_prefix: str, mask_prefix: str, mask_suffix: str | None
) -> Pairs:
    """Pair the files of an image folder with those of a mask folder.

    Args:
        images: files of the image folder.
        masks: files of the mask folder.
        image_prefix: what stands before an image's relative path in messages, such as "train/images/".
        mask_prefix: the same of masks.
        mask_suffix: what a mask's stem adds to its image's; None tries no tail and the usual ones.
    """
    result = Pairs()
    tails = ("", *MASK_TAILS) if mask_suffix is None else (mask_suffix,)
    masks_of_stem: dict[str, list[FoundFile]] = defaultdict(list)
    for mask in masks:
        if mask_suffix and not mask.stem.endswith(mask_suffix):
            result.num_other_masks += 1
        else:
            masks_of_stem[mask.stem].append(mask)
    taken: dict[str, str] = {}  # mask -> image that has it
    lone, clashing = _part_clashes(images, image_prefix, result)
    for image in lone:
        found = _find_masks(image, masks_of_stem, tails)
        name = image_prefix + image.relative
        if not found:
            looked = f"{mask_prefix}{image.stem}{tails[0]}.*" + (
                ", nor with _mask, _label or another usual ending" if len(tails) > 1 else ""
            )
            result.problems.append(
                ScanProblem(
                    name,
                    f"has no mask; there is no {looked}",
                    "add the mask, or remove the image; --mask-suffix names another ending",
                )
            )
        elif len(found) > 1:
            names = ", ".join(mask_prefix + mask.relative for mask in found)
            result.problems.append(
                ScanProblem(
                    name,
                    f"has {len(found)} masks: {names}",
                    "keep one of them, or name the ending that counts with --mask-suffix",
                )
            )
            taken |= {mask.relative: name for mask in found}
        elif found[0].relative in taken:
            other = taken[found[0].relative]
            result.problems.append(
                ScanProblem(name, f"wants the mask of {other}, {found[0].relative}", "give each image its own mask")
            )
        else:
            taken[found[0].relative] = name
            result.pairs.append((image, found[0]))
    # the mask of images that clash has an image: one problem is told, not two
    taken |= {mask.relative: image.relative for image in clashing for mask in _find_masks(image, masks_of_stem, tails)}
    for mask in (mask for same in masks_of_stem.values() for mask in same):
        if mask.relative not in taken:
            reason = "is a mask without an image of its name"
            result.problems.append(ScanProblem(mask_prefix + mask.relative, reason, "add the image, or remove the mask"))
    return result


def pair_lone_folder(files: Sequence[FoundFile], *, prefix: str, mask_suffix: str | None) -> Pairs:
    """Pair images and masks that lie in one folder: by a mask's tail, else a JPEG with the PNG or .npy of its name."""
    tails = MASK_TAILS if mask_suffix is None else (mask_suffix,)
    stems = {file.stem for file in files if file.suffix != ".npy"}
    masks = [file for file in files if _without_tail(file.stem, tails, stems) is not None]
    if not masks and mask_suffix is None:
        photos = {file.stem for file in files if file.suffix in _LOSSY}
        masks = [file for file in files if file.suffix not in _LOSSY and file.stem in photos]
    taken = {mask.relative for mask in masks}
    images = [file for file in files if file.relative not in taken and file.suffix != ".npy"]
    masks += [file for file in files if file.suffix == ".npy" and file.relative not in taken]
    if not masks:
        return Pairs()
    return pair_folders(images, masks, image_prefix=prefix, mask_prefix=prefix, mask_suffix=mask_suffix)


def _without_tail(stem: str, tails: Sequence[str], stems: set[str]) -> str | None:
    for tail in tails:
        base = stem.removesuffix(tail)
        if base != stem and (base in stems or any(base + image_tail in stems for image_tail in IMAGE_TAILS)):
            return base
    return None


def _part_clashes(images: Sequence[FoundFile], prefix: str, result: Pairs) -> tuple[list[FoundFile], list[FoundFile]]:
    """Part images from those that have one name and different suffixes, which would share one mask and one key."""
    same: dict[str, list[FoundFile]] = defaultdict(list)
    for image in images:
        same[image.stem].append(image)
    clashing = [file for files in same.values() if len(files) > 1 for file in files]
    for file in clashing:
        others = ", ".join(prefix + other.relative for other in same[file.stem] if other is not file)
        result.problems.append(ScanProblem(prefix + file.relative, f"has the same name as {others}", "keep one of them"))
    return [files[0] for files in same.values() if len(files) == 1], clashing


def _find_masks(image: FoundFile, masks_of_stem: dict[str, list[FoundFile]], tails: Sequence[str]) -> list[FoundFile]:
    """Find the masks of an image: by its whole name, else by its file name (`a.jpg.png`), else by its name without its tail."""
    bare = [image.stem.removesuffix(tail) for tail in IMAGE_TAILS if image.stem.endswith(tail)]
    for base in (image.stem, str(PurePosixPath(image.relative)), *bare):
        found = [mask for tail in tails for mask in masks_of_stem.get(base + tail, ())]
        if found:
            return found
    return []
