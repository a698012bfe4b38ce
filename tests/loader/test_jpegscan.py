"""Markers of a JPEG in order or not, without a decoder."""

from __future__ import annotations

from collections.abc import Callable

import loader_faults as faults
import numpy as np
import pytest
import simplejpeg
from loader_shards import make_sample

from unetfast.data.codecs import encode_image
from unetfast.loader.jpegscan import is_well_formed

KINDS = ["jpeg", "jpeg420", "gray", "progressive", "restarts"]
HW = (97, 131)  # 221 blocks: restart markers come round several times
SOI, EOI, COMMENT = b"\xff\xd8", b"\xff\xd9", b"\xff\xfe\x00\x05abc"


@pytest.fixture(scope="module")
def jpegs() -> dict[str, bytes]:
    return {kind: make_sample(0, HW, kind=kind).sample.image for kind in KINDS}


def behind_scan_header(jpeg: bytes) -> int:
    start = jpeg.index(b"\xff\xda")
    return start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")


SOUND: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda jpeg: jpeg,
    "comment": lambda jpeg: jpeg[:2] + COMMENT + jpeg[2:],
    "fill bytes before a marker": lambda jpeg: jpeg[:2] + b"\xff\xff" + jpeg[2:],
    "fill bytes before the end": lambda jpeg: jpeg[:-2] + b"\xff\xff" + EOI,
    "zeros behind the end": lambda jpeg: jpeg + bytes(512),
    "text behind the end": lambda jpeg: jpeg + b"a camera's own data",
    "another picture behind the end": lambda jpeg: jpeg + jpeg,
    "a picture in a segment": lambda jpeg: jpeg[:2] + b"\xff\xe1" + (len(jpeg) + 2).to_bytes(2, "big") + jpeg + jpeg[2:],
}

BAD: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "two bytes": lambda _: SOI,
    "begin and end alone": lambda _: SOI + EOI,
    "no begin": lambda jpeg: jpeg[2:],
    "another byte before": lambda jpeg: b"\0" + jpeg,
    "garbage behind the begin": lambda jpeg: jpeg[:2] + b"garbage" + jpeg[2:],
    "cut in the header": lambda jpeg: jpeg[:100],
    "cut behind the scan's header": lambda jpeg: jpeg[: behind_scan_header(jpeg)],
    "header alone": lambda jpeg: jpeg[: jpeg.index(b"\xff\xda")] + EOI,
    "cut in the pixels": faults.cut_half,
    "cut by a byte": lambda jpeg: jpeg[:-1],
    "no end": faults.cut_end_marker,
    "end zeroed": faults.zero_end_marker,
    "another begin in the pixels": faults.begin_in_the_middle,
    "odd marker in the header": faults.insert_odd_marker,
    "odd marker in the pixels": lambda jpeg: jpeg[:-2] + b"\xff\x01" + EOI,
    "restart marker in the header": lambda jpeg: jpeg[:2] + b"\xff\xd0" + jpeg[2:],
    "segment longer than the file": lambda jpeg: jpeg[:2] + b"\xff\xfe\xff\xff" + jpeg[2:],
    "two frames": lambda jpeg: jpeg[:2] + b"\xff\xc0" + jpeg[jpeg.index(b"\xff\xdb") + 2 :],
    "no frame": lambda jpeg: jpeg.replace(b"\xff\xc0", b"\xff\xe5", 1).replace(b"\xff\xc2", b"\xff\xe5", 1),
    "all 0xFF": lambda jpeg: SOI + b"\xff" * len(jpeg),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", SOUND)
def test_what_every_decoder_reads_is_well_formed(jpegs: dict[str, bytes], kind: str, change: str) -> None:
    data = SOUND[change](jpegs[kind])
    assert simplejpeg.decode_jpeg(data, "RGB").shape == (*HW, 3)
    assert is_well_formed(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", BAD)
def test_markers_out_of_order_are_found(jpegs: dict[str, bytes], kind: str, change: str) -> None:
    assert not is_well_formed(BAD[change](jpegs[kind]))


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_other_processes_than_baseline_and_progressive_are_left_to_the_decoder(jpegs: dict[str, bytes], marker: int) -> None:
    assert not is_well_formed(jpegs["jpeg"].replace(b"\xff\xc0", bytes([0xFF, marker]), 1))


def test_restart_markers_have_an_order(jpegs: dict[str, bytes]) -> None:
    jpeg = jpegs["restarts"]
    start = behind_scan_header(jpeg)
    places = [i for i in range(start, len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7]
    assert len(places) > 16
    for place in (places[0], places[9], places[-1]):
        number = jpeg[place + 1] - 0xD0
        for other in set(range(8)) - {number}:
            assert not is_well_formed(jpeg[: place + 1] + bytes([0xD0 + other]) + jpeg[place + 2 :])
    without_one = jpeg[: places[9]] + jpeg[places[9] + 2 :]
    assert not is_well_formed(without_one)


def test_other_formats_are_no_jpegs() -> None:
    pixels = make_sample(0, (20, 30)).image
    assert not is_well_formed(encode_image(pixels, "png"))
    assert not is_well_formed(encode_image(pixels, "lz4"))


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_at_all_are_answered(jpegs: dict[str, bytes], kind: str) -> None:
    """Destroyed bytes, in the header as well, raise nothing and end; what a sound file says is not said of most of them."""
    rng = np.random.default_rng(7)
    header = behind_scan_header(jpegs[kind])
    answers = []
    for _ in range(500):
        values = np.frombuffer(jpegs[kind], dtype=np.uint8).copy()
        start = int(rng.integers(2, header))
        stop = start + int(rng.integers(1, 200))
        values[start:stop] = rng.integers(0, 256, len(values[start:stop]))
        answers.append(is_well_formed(values.tobytes()))
    assert {bool(answer) for answer in answers} == {False, True}
    assert np.mean(answers) < 0.5


def test_a_file_of_more_scans_than_any_real_one_is_left_to_the_decoder(jpegs: dict[str, bytes]) -> None:
    jpeg = jpegs["gray"]
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    assert is_well_formed(jpeg[:-2] + scan * 20 + EOI)
    assert not is_well_formed(jpeg[:-2] + scan * 600 + EOI)
