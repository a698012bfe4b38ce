"""What a record tells of its data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetfast.bench import shardfacts
from unetfast.bench.toyshards import TOY_SETS, make_toy_shards


def encode(mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "options", "subsampling", "decoder"),
    [
        ("RGB", {"subsampling": 0}, "4:4:4", "hardware"),
        ("RGB", {"subsampling": 1}, "4:2:2", "hardware"),
        ("RGB", {"subsampling": 2}, "4:2:0", "hardware"),
        ("L", {}, "grey", "hardware"),
        ("RGB", {"progressive": True}, "4:2:0", "cuda"),
        ("CMYK", {}, "4:4:4", "cpu"),
    ],
)
def test_the_header_says_which_decoder_takes_a_jpeg(
    mode: str, options: dict[str, object], subsampling: str, decoder: str
) -> None:
    header = shardfacts.read_jpeg_header(encode(mode, **options))
    assert header.decoder() == decoder
    assert header.bits == 8
    assert header.subsampling == subsampling


def test_rare_subsampling_is_not_for_the_jpeg_unit() -> None:
    header = shardfacts.JpegHeader(0xC0, 8, ((4, 1), (1, 1), (1, 1)), 3)
    assert (header.subsampling, header.decoder()) == ("4:1:1", "cuda")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" * 9, encode()[:100]])
def test_what_is_no_jpeg_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JPEG"):
        shardfacts.read_jpeg_header(data)


@pytest.mark.parametrize("name", TOY_SETS)
def test_toy_shards_are_described(name: str, toy_root: Path) -> None:
    made = make_toy_shards(name, toy_root, small=True)
    facts = shardfacts.describe_shards(made.shards)
    assert facts["dataset"] == name
    assert facts["samples"] >= 16
    assert facts["decodable_by_pct"] == ({"no JPEG": 100.0} if name == "clevr" else {"hardware": 100.0})
    assert set(facts["mask_codecs"]) == {"lz4"}
    for_others = shardfacts.describe_shards(made.png_shards)
    assert set(for_others["mask_codecs"]) == {"png"}
    assert set(for_others["image_codecs"]) == ({"png"} if name == "clevr" else {"jpeg"})
    assert for_others["samples"] == facts["samples"]
