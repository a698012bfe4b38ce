"""What may not be chosen, and how it is told."""

from __future__ import annotations

from typing import Any

import pytest
from plain_source import make_labels

from unetfast.data.options import PackOptions
from unetfast.data.sources.base import SourceOptions
from unetfast.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_fraction": 1.5}, r"--val-fraction 1\.5: give a share"),
        ({"val_fraction": float("nan")}, "--val-fraction nan"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 1 << 63}, "--seed 9223372036854775808"),
        ({"max_side": 0}, "--max-side 0: give pixels"),
        ({"size_hw": (0, 4)}, "--size 0x4: give HEIGHTxWIDTH"),
        ({"size_hw": (99999, 99999)}, r"--size 99999x99999: more than 178,956,970 pixels"),
        ({"size_hw": (4, 4), "max_side": 4}, "exclude each other"),
        ({"shard_mib": 0}, "--shard-mib 0"),
        ({"shard_mib": float("inf")}, "--shard-mib inf"),
        ({"max_bad": -1, "on_bad": "skip"}, "--max-bad -1"),
        ({"max_bad": 3}, "--max-bad counts what --on-bad skip leaves out"),
        ({"image_codec": "webp"}, "--image-codec webp: choose one of auto, jpeg, png, lz4"),
        ({"mask_codec": "jpeg"}, "--mask-codec jpeg: choose one of lz4, png"),
        ({"exif": "turn"}, "--exif turn: choose one of error, apply, ignore"),
        ({"on_bad": "ask"}, "--on-bad ask: choose one of error, skip"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackOptions(**given)


def test_bits_of_stored_masks() -> None:
    two = make_labels(2, ignore=False)
    assert [PackOptions(mask_codec=codec).stored_mask_bits(two) for codec in ("lz4", "png")] == [1, 8]
    assert [PackOptions(mask_codec=codec).stored_mask_bits(make_labels(300)) for codec in ("lz4", "png")] == [16, 16]


def test_allowed_bad() -> None:
    assert PackOptions().allowed_bad(100) == 0
    assert PackOptions(on_bad="skip").allowed_bad(101) == 11
    assert PackOptions(on_bad="skip", max_bad=3).allowed_bad(100) == 3


def test_what_shapes_the_bytes() -> None:
    """`on_bad` and `max_bad` decide whether there are shards, not what is in them."""
    source = SourceOptions(value_map=(((255, 0, 0), 1), (7, None)))
    tree = PackOptions(size_hw=(2, 3)).to_tree(source)
    assert tree == PackOptions(size_hw=(2, 3), on_bad="skip", max_bad=9).to_tree(source)
    assert (tree["size_hw"], tree["value_map"]) == ([2, 3], [[[255, 0, 0], 1], [7, None]])
