"""Shard folders for loader tests, written member by member, so that a test can hold any kind of sample or fault."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from unetfast.data.codecs import encode_image, encode_mask
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.manifest import (
    FORMAT_VERSION,
    INDEX_NAME,
    MANIFEST_NAME,
    PRESENCE_NAME,
    Manifest,
    ShardInfo,
    SplitInfo,
    manifest_to_json,
)
from unetfast.data.sample import Sample
from unetfast.data.shard import ShardWriter

NUM_CLASSES = 6


@dataclass(frozen=True)
class MadeSample:
    """A sample and the pixels it was made from; a JPEG's are its decoded ones."""

    sample: Sample
    image: np.ndarray
    mask: np.ndarray


def make_image(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth shapes and some noise: what a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def make_labels(num_classes: int = NUM_CLASSES, *, has_ignore: bool = True) -> LabelTable:
    classes = tuple(ClassInfo(name=f"class {i}", color=(i % 256, i // 256, 9), value=i) for i in range(num_classes))
    return LabelTable(classes=classes, ignore_value=999_999 if has_ignore else None)


def make_sample(
    number: int, hw: tuple[int, int], *, kind: str = "jpeg", mask_codec: str = "lz4", labels: LabelTable | None = None
) -> MadeSample:
    """Make one sample.

    Args:
        number: seeds the pixels and names the key.
        hw: height and width.
        kind: of the image: jpeg (4:4:4), jpeg420, gray, progressive, restarts (markers in a JPEG), lz4 or png.
        mask_codec: lz4 or png.
        labels: the classes.
    """
    labels = labels or make_labels()
    height, width = hw
    image = make_image(height, width, number)
    if kind == "jpeg420":
        data = simplejpeg.encode_jpeg(image, quality=95, colorspace="RGB", colorsubsampling="420")
    elif kind == "gray":
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image[:, :, :1]), quality=95, colorspace="GRAY")
    elif kind in ("progressive", "restarts"):
        stream = io.BytesIO()
        settings = {"progressive": True} if kind == "progressive" else {"restart_marker_blocks": 1}
        Image.fromarray(image).save(stream, "JPEG", quality=95, **settings)
        data = stream.getvalue()
    else:
        data = encode_image(image, kind)
    codec = kind if kind in ("lz4", "png") else "jpeg"
    if codec == "jpeg":
        image = simplejpeg.decode_jpeg(data, "RGB")
    rng = np.random.default_rng(1000 + number)
    blocks = rng.integers(0, labels.num_classes, (height // 4 + 1, width // 4 + 1)).astype(labels.mask_dtype)
    if labels.has_ignore:
        blocks[rng.random(blocks.shape) < 0.05] = labels.ignore_index
    mask = np.ascontiguousarray(blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])
    sample = Sample(
        key=f"sample{number:03}",
        image=data,
        image_codec=codec,
        mask=encode_mask(mask, mask_codec, labels.mask_bits),
        mask_codec=mask_codec,
        height=height,
        width=width,
        mask_bits=labels.mask_bits,
        source_path=f"sample{number:03}.{kind}",
    )
    return MadeSample(sample, image, mask)


def write_shards(
    folder: Path, made: Sequence[MadeSample], *, samples_per_shard: int = 4, labels: LabelTable | None = None
) -> Path:
    """Write a shard folder with the same samples as train and val split."""
    labels = labels or make_labels()
    presence = np.array([[(one.mask == i).any() for i in range(labels.num_classes)] for one in made])
    splits = {name: _write_split(folder / name, made, samples_per_shard, presence) for name in ("train", "val")}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset="folder",
        layout="made by code",
        labels=labels,
        num_classes=labels.num_classes,
        ignore_index=labels.ignore_index,
        mask_bits=labels.mask_bits,
        options={},
        split_rule="source",
        source_xxh3="0" * 16,
        splits=splits,
    )
    (folder / MANIFEST_NAME).write_text(manifest_to_json(manifest), encoding="utf-8")
    return folder


def _write_split(folder: Path, made: Sequence[MadeSample], samples_per_shard: int, presence: np.ndarray) -> SplitInfo:
    folder.mkdir(parents=True)
    shards, rows = [], []
    for number, start in enumerate(range(0, len(made), samples_per_shard)):
        path = folder / f"{number:06}.tar"
        with ShardWriter(path) as writer:
            for one in made[start : start + samples_per_shard]:
                writer.add(one.sample)
            content = writer.finish()
        path.with_suffix(".idx").write_text(content.idx)
        rows.append(content.rows.copy())
        rows[-1]["shard"] = number
        idx_xxh3 = xxhash.xxh3_64_hexdigest(content.idx.encode())
        shards.append(
            ShardInfo(file=path.name, samples=len(content.rows), bytes=content.num_bytes, xxh3=content.xxh3, idx_xxh3=idx_xxh3)
        )
    index = np.concatenate(rows)
    return SplitInfo(
        samples=len(made),
        groups=0,
        shards=tuple(shards),
        index_xxh3=_save(folder / INDEX_NAME, index),
        presence_xxh3=_save(folder / PRESENCE_NAME, np.packbits(presence, axis=1, bitorder="little")),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_pixels=(1,) * presence.shape[1],
        class_images=tuple(presence.sum(axis=0).tolist()),
        ignored_pixels=0,
        min_hw=(int(index["height"].min()), int(index["width"].min())),
        max_hw=(int(index["height"].max()), int(index["width"].max())),
    )


def _save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def change_index(folder: Path, split: str, change: object) -> None:
    """Rewrite a split's index rows by `change(rows)`, with the manifest's hash of it."""
    rows = np.load(folder / split / INDEX_NAME)
    change(rows)
    xxh3 = _save(folder / split / INDEX_NAME, rows)
    path = folder / MANIFEST_NAME
    manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    info = manifest.splits[split].model_copy(update={"index_xxh3": xxh3})
    manifest = manifest.model_copy(update={"splits": {**manifest.splits, split: info}})
    path.write_text(manifest_to_json(manifest), encoding="utf-8")
