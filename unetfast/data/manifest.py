"""Contract 2, the shard folder: what `manifest.json` says and how an index row is laid out.

Formats are described for other programs in docs/formats.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unetfast.data.labels import LabelTable
from unetfast.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLIT_NAMES = ("train", "val", "test")

# One row a sample; little-endian, 80 bytes. Offsets are of a member's data in its tar. `group` numbers the split's
# groups from 1 in sorted order, 0 is none. Codecs are places in sample.IMAGE_CODECS and sample.MASK_CODECS.
INDEX_DTYPE = np.dtype(
    [
        ("image_xxh3", "<u8"),
        ("mask_xxh3", "<u8"),
        ("json_xxh3", "<u8"),
        ("image_offset", "<u8"),
        ("mask_offset", "<u8"),
        ("json_offset", "<u8"),
        ("image_length", "<u4"),
        ("mask_length", "<u4"),
        ("json_length", "<u4"),
        ("shard", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("group", "<u4"),
        ("image_codec", "u1"),
        ("mask_codec", "u1"),
        ("mask_bits", "u1"),
        ("reserved", "u1"),
    ]
)
INDEX_NAME = "index.npy"  # (samples,) of INDEX_DTYPE
# which classes occur in each sample: uint8 (samples, ceil(num_classes / 8)), np.packbits(..., bitorder="little")
PRESENCE_NAME = "presence.npy"

_quote = json.encoder.encode_basestring

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # xxh3_64, 16 hex digits


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardInfo(_Part):
    """One tar file of a split."""

    file: str  # relative to the split's folder
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    xxh3: Hex64
    idx_xxh3: Hex64  # of the .idx file beside it


class SplitInfo(_Part):
    """One split: its shards and what was counted on its samples."""

    samples: int = Field(gt=0)
    groups: int = Field(ge=0)  # number of distinct groups, 0 where samples stand alone
    shards: tuple[ShardInfo, ...]
    index_xxh3: Hex64
    presence_xxh3: Hex64
    mean: tuple[float, float, float]  # per channel, of values scaled to [0, 1]
    std: tuple[float, float, float]
    class_pixels: tuple[int, ...]  # per class id
    class_images: tuple[int, ...]  # samples in which the class occurs
    ignored_pixels: int = Field(ge=0)
    min_hw: tuple[int, int]  # smallest height and smallest width, pixels
    max_hw: tuple[int, int]


class Manifest(_Part):
    """What a shard folder holds."""

    format_version: int
    dataset: str
    layout: str
    labels: LabelTable
    num_classes: int
    ignore_index: int
    mask_bits: int
    options: dict[str, Any]  # what shapes the bytes: codecs, sizes, seed, ...
    split_rule: str  # "source", or how it was split
    source_xxh3: Hex64  # over names and sizes of the source's files
    splits: dict[str, SplitInfo]

    def digest(self) -> str:
        """Hash that names this folder's content, 16 hex digits; equal manifests have equal digests."""
        return xxhash.xxh3_64_hexdigest(manifest_to_json(self).encode())


def manifest_to_json(manifest: Manifest) -> str:
    """Write the manifest as JSON, byte for byte the same for equal manifests.

    It is `json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False)`, whose indenting encoder is slow, and each opening of
    a loader hashes this text: there may be thousands of shards.
    """
    tree = manifest.model_dump(mode="json", exclude={"splits": {name: {"shards"} for name in manifest.splits}})
    for name, split in manifest.splits.items():
        tree["splits"][name]["shards"] = split.shards
    return _to_json(tree, "\n") + "\n"


def _to_json(value: Any, line: str) -> str:
    """Write a tree; `line` begins a line of its own depth."""
    if isinstance(value, int) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return _quote(value)
    inner = line + " "
    if isinstance(value, dict) and value:
        entries = [f"{_quote(name)}: {_to_json(value[name], inner)}" for name in sorted(value)]
        return f"{{{inner}{f',{inner}'.join(entries)}{line}}}"
    if isinstance(value, list | tuple) and value:
        # pydantic's classes are slow to ask for their instances
        parts = [_shard_to_json(part) if type(part) is ShardInfo else _to_json(part, inner) for part in value]
        return f"[{inner}{f',{inner}'.join(parts)}{line}]"
    return json.dumps(value)


assert set(ShardInfo.model_fields) == {"bytes", "file", "idx_xxh3", "samples", "xxh3"}, "write a shard's other fields too"


def _shard_to_json(shard: ShardInfo) -> str:
    """Write a shard at the depth at which all stand; thousands cost a loader's start, so the lines are put together here."""
    return (
        f'{{\n     "bytes": {shard.bytes},\n     "file": {_quote(shard.file)},\n     "idx_xxh3": "{shard.idx_xxh3}",\n'
        f'     "samples": {shard.samples},\n     "xxh3": "{shard.xxh3}"\n    }}'
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UserError: the folder or manifest is missing, is of a newer format, or is not valid.
    """
    path = folder / MANIFEST_NAME
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give the shard folder, which holds {MANIFEST_NAME}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `unetfast shard --src DATA --out {folder}` makes one")
    if not path.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST_NAME} in it. A data set's own folder is packed first: `unetfast shard --src {folder}`. "
            f"A packing that was interrupted goes on when its command is repeated; "
            f"tar files made by others are taken in with `unetfast shard --src {folder} --dataset webdataset --out NEW`"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); pack the folder again") from None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        _check_version(path, data)
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a valid manifest: {key}: {first['msg']}; pack the folder again") from None
    if manifest.format_version != FORMAT_VERSION:
        _check_version(path, data)
    return manifest


def _check_version(path: Path, data: bytes) -> None:
    """Refuse what is no JSON, or of another version."""
    try:
        tree = json.loads(data.decode())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); pack the folder again") from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version!r}, this unetfast reads {FORMAT_VERSION}; pack the folder again")
