"""The screen of `unetfast bench`, on made records."""

from __future__ import annotations

from typing import Any

import pytest

from unetfast.bench.harness import spread
from unetfast.bench.table import align, format_memory, format_number, format_plain, format_rungs
from unetfast.bench.verdict import judge


def rung(images_per_s: float, core_s: float, device_mib: float | None = None, **facts: Any) -> dict[str, Any]:
    return {
        "images_per_s": spread([0.99 * images_per_s, images_per_s, 1.01 * images_per_s]),
        "core_s_per_image": spread([core_s]),
        "host_peak_mib": 512.0,
        "device_peak_mib": device_mib,
        "facts": facts,
    }


def make_rungs() -> dict[str, Any]:
    return {
        "read": rung(60_000, 1.6e-5, hash_gb_per_s=12.0, bytes_per_image=96_000, mib_per_s=spread([5722.0])),
        "loader": rung(4_000, 0.001, backend="cpu", threads=4, cache="off", decode_images_per_core_s=1250.0, device="cuda:0"),
        "model": rung(
            2_000,
            0.0004,
            9318.4,
            gflop_step_per_image=200.0,
            matrix_tflop_per_s=800.0,
            roofline_images_per_s=2_500.0,
            device="cuda:0",
        ),
        "train": rung(1_980, 0.0014, 9318.4, data_wait_pct=spread([0.6])),
        "shard": rung(1_930, 0.0009, dataset="carvana", source_mib_per_s=spread([210.0]), workers_peak_mib=spread([90.0])),
    }


def test_each_rung_has_a_line_with_its_limit_and_how_much_of_it_was_reached() -> None:
    rungs = make_rungs()
    lines = format_rungs(rungs, judge(rungs)).splitlines()
    cells = {line.split()[0]: " ".join(line.split()) for line in lines}
    assert cells["rung"] == "rung img/s (min..max) core-ms/img memory limit of it"
    assert cells["read"] == "read 60,000 (59,400..60,600) 0.016 512 MiB 12 GB/core-s hash 50 % 6 GB/s on one core"
    assert cells["loader"] == "loader 4,000 (3,960..4,040) 1.0 512 MiB 1,250 img/core-s decode 80 % cpu, 4 threads"
    assert cells["model"] == (
        "model 2,000 (1,980..2,020) 0.40 512 MiB + GPU 9.10 GiB 2,500 img/s roofline 80 % "
        "200 GFLOP an image, 50 % of 800 TFLOP/s"
    )
    assert cells["train"] == "train 1,980 (1,960..2,000) 1.4 512 MiB + GPU 9.10 GiB model 99 % data-wait 0.6 %"
    assert (
        cells["shard"] == "shard 1,930 (1,911..1,949) 0.90 512 MiB - - toy carvana, 210 MiB/s of source files, workers 90 MiB"
    )
    assert cells["verdict"].startswith("verdict the model is the limit; the loader feeds 2.00x what it eats")


def test_what_is_not_known_is_a_dash() -> None:
    rungs = {
        "read": rung(60_000, 1.6e-5, hash_gb_per_s=None, mib_per_s=spread([5722.0])),
        "loader": rung(4_000, 0.001, backend="resident", threads=4, cache="gpu", decode_images_per_core_s=None),
        "train": rung(1_980, 0.0014, data_wait_pct=spread([0.6])),
    }
    lines = format_rungs(rungs, judge(rungs)).splitlines()
    assert " ".join(lines[1].split()).endswith("512 MiB - - 6 GB/s on one core, not checked")
    assert " ".join(lines[2].split()).endswith("- - resident, 4 threads, cache gpu")
    assert " ".join(lines[3].split()).endswith("- - data-wait 0.6 %")
    assert " ".join(format_rungs({"model": rung(10, 0.1)}, judge({})).splitlines()[1].split()).endswith("512 MiB - -")


@pytest.mark.parametrize(
    ("value", "text"), [(61_234.4, "61,234"), (100, "100"), (99.96, "100.0"), (12.345, "12.3"), (0.0123, "0.0123")]
)
def test_numbers_have_three_digits_and_thousands_commas(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0000163, "0.000016"), (0.31, "0.31"), (1.26, "1.3"), (0, "0"), (145.2, "145")])
def test_small_numbers_are_no_powers_of_ten(value: float, text: str) -> None:
    assert format_plain(value) == text


def test_memory_is_told_for_host_and_gpu() -> None:
    assert format_memory(512.3, None) == "512 MiB"
    assert format_memory(2048.0, 9318.4) == "2.00 GiB + GPU 9.10 GiB"


def test_columns_stand_in_line() -> None:
    assert align([("a", "1", "x"), ("bbb", "22", "yy")], left=(0, 2)) == "a     1  x\nbbb  22  yy"
