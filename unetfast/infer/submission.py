"""Masks as ADE20K's scene parsing challenge takes them.

After the README of its development kit (github.com/CSAILVision/sceneparsing): a PNG a picture, under the picture's name, one
channel, at the picture's own size, values 1..150 in the order of the official list. 0, "other", is what the annotations have
for pixels that are not scored; a prediction never holds it, as it would count as wrong wherever there is a class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from unetfast.data.labels import LabelTable
from unetfast.data.sources.ade20k import build_labels
from unetfast.errors import UserError
from unetfast.infer.outputs import MaskFormat

_NAME = re.compile(r"ADE_(train|val|test)_\d{8}")


def choose_submission_format(labels: LabelTable) -> MaskFormat:
    """Return the format of a submission: grey PNG of the values 1..150.

    Raises:
        UserError: the classes are not the benchmark's 150; names the first that differs.
    """
    official = build_labels()
    for class_id, info in enumerate(official.classes):
        found = labels.classes[class_id] if class_id < labels.num_classes else None
        if found is None or (found.name, found.value) != (info.name, info.value):
            said = "there is none" if found is None else f"it is {found.name!r} with value {found.value}"
            raise UserError(
                f"--submission: the model's classes are not the 150 of ADE20K's benchmark: class {class_id} there is "
                f"{info.name!r} with value {info.value}, here {said}; train on shards of ADE20K"
            )
    if labels.num_classes > official.num_classes:
        raise UserError(
            f"--submission: the model has {labels.num_classes} classes, ADE20K's benchmark 150; train on its shards"
        )
    return MaskFormat("grey", np.array([info.value for info in official.classes], dtype=np.uint8))


def check_submission_names(names: Iterable[str]) -> None:
    """Prove that each picture has a name of the challenge, and stands in no folder of its own.

    Args:
        names: of the results, without suffix, as a path below the output folder.

    Raises:
        UserError: one has not.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--submission: {name} is no name of the challenge, such as ADE_val_00000001 or ADE_test_00000001; "
                "give the folder with those pictures itself, such as ADEChallengeData2016/images/validation"
            )


def check_original_sizes(options: Mapping[str, Any]) -> None:
    """Prove that a shard folder holds pictures in their original sizes.

    Args:
        options: of its manifest.

    Raises:
        UserError: they were resized when they were packed.
    """
    for name, flag in (("max_side", "--max-side"), ("size_hw", "--size")):
        if options.get(name):
            raise UserError(
                f"--submission: the shards hold pictures that were resized ({flag} {options[name]}), and the challenge scores "
                "original sizes; use `unetfast predict PICTURES --submission`, or pack again without it"
            )


def submission_name(source_path: str) -> str:
    """Return the name of a picture's mask in a submission, with suffix.

    Raises:
        UserError: the picture's own is none of the challenge.
    """
    stem = PurePosixPath(source_path).stem
    check_submission_names([stem])
    return f"{stem}.png"
