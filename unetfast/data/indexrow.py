"""A row of the index as plain numbers: `numpy` takes ten times as long for one field of a row as this for all of them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from unetfast.data.manifest import INDEX_DTYPE
from unetfast.data.sample import IMAGE_CODECS

_unpack = struct.Struct("<6Q7I4B").unpack_from


class IndexRow(NamedTuple):
    """Where a sample's members lie, and what they are: the fields of `manifest.INDEX_DTYPE`."""

    image_xxh3: int
    mask_xxh3: int
    json_xxh3: int
    image_offset: int
    mask_offset: int
    json_offset: int
    image_length: int
    mask_length: int
    json_length: int
    shard: int
    height: int
    width: int
    group: int
    image_codec: int
    mask_codec: int
    mask_bits: int
    reserved: int

    @property
    def image_codec_name(self) -> str:
        """The image's codec: "jpeg", "png" or "lz4"; "unknown" where the row holds no known one."""
        return IMAGE_CODECS[self.image_codec] if self.image_codec < len(IMAGE_CODECS) else "unknown"


def read_row(rows: memoryview, sample: int) -> IndexRow:
    """Read one row.

    Args:
        rows: the bytes of an array of INDEX_DTYPE.
        sample: its place there, from 0.
    """
    return IndexRow._make(_unpack(rows, sample * INDEX_DTYPE.itemsize))
