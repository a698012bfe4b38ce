"""Shard folders of any number of samples without their bytes: an index whose rows point again and again into few real tars.

What costs with the number of samples (opening, order, seek) is as in a folder that was packed of so many: a row a sample, and a
shard in the manifest for every 64 MiB of 80 KB samples. Presence is not synthesised, so the balanced sampler has none to read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from unetfast.data.manifest import INDEX_DTYPE, INDEX_NAME, MANIFEST_NAME, manifest_to_json, read_manifest
from unetfast.data.reader import open_shards

_SHARD_SAMPLES = 800
_CHUNK_ROWS = 1 << 18


def make_large_index(shards: Path, out: Path, num_samples: int) -> Path:
    """Make a shard folder of `num_samples` training samples out of those of a small one.

    Args:
        shards: packed by `unetfast shard`; its training tars are linked, not copied.
        out: made; must not be there.
        num_samples: rows of the index.

    Returns:
        `out`.
    """
    manifest = read_manifest(shards)
    split = manifest.splits["train"]
    with open_shards(shards).split("train") as reader:
        base = np.array(reader.rows)
    num_tars = len(split.shards)
    # rows that one round of the tars takes, a whole number of times all base rows
    turn = len(base) * max(1, _SHARD_SAMPLES * num_tars // len(base))
    num_turns = -(-num_samples // turn)
    (out / "train").mkdir(parents=True)
    for info in split.shards:
        (out / "train" / info.file).symlink_to((shards / "train" / info.file).resolve())
    digest = _write_rows(out / "train" / INDEX_NAME, base, num_tars, turn, num_samples)
    large = split.model_copy(update={"samples": num_samples, "shards": split.shards * num_turns, "index_xxh3": digest})
    (out / MANIFEST_NAME).write_text(
        manifest_to_json(manifest.model_copy(update={"splits": {"train": large}})), encoding="utf-8"
    )
    return out


def _write_rows(path: Path, base: np.ndarray, num_tars: int, turn: int, num_samples: int) -> str:
    """Write the index piece by piece; returns its hash."""
    digest = xxhash.xxh3_64()
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX_DTYPE, shape=(num_samples,), version=(1, 0))
    header = rows.offset
    for start in range(0, num_samples, _CHUNK_ROWS):
        numbers = np.arange(start, min(start + _CHUNK_ROWS, num_samples))
        part = base[numbers % len(base)]
        part["shard"] += (numbers // turn * num_tars).astype(np.uint32)
        rows[start : start + len(part)] = part
    rows.flush()
    del rows
    with path.open("rb") as file:
        digest.update(file.read(header))
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
