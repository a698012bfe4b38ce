"""Limits of this machine are measured once, and are numbers that a machine can have."""

from __future__ import annotations

import json

import pytest
import torch

from unetfast.bench import machine as machine_module
from unetfast.bench.machine import measure_machine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(machine_module, "_TRY_S", 0.01)
    monkeypatch.setitem(machine_module._SIDES, "cpu", (64, 256))
    monkeypatch.setitem(machine_module._COPY_MIB, "cpu", 4)
    for measured in (machine_module._measure_matrix_rate, machine_module._measure_copy_rate):
        measured.cache_clear()


def test_each_dtype_has_a_rate_and_float32_always() -> None:
    found = measure_machine(CPU, [torch.bfloat16])
    assert set(found.matrix_flop_per_s) == {torch.bfloat16, torch.float32}
    assert all(rate > 1e6 for rate in found.matrix_flop_per_s.values())
    assert all(side in (64, 128, 256) for side in found.matrix_side.values())
    assert found.copy_bytes_per_s > 1e6


def test_second_question_is_answered_by_the_first_measurement() -> None:
    first = measure_machine(CPU)
    assert measure_machine(CPU) == first
    assert measure_machine(CPU, [torch.float32, torch.int64]) == first  # integers have no matrix rate


def test_rate_is_operations_over_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_best_time", lambda device, work: 0.001)
    found = measure_machine(CPU)
    assert found.matrix_flop_per_s[torch.float32] == pytest.approx(2 * 256**3 / 0.001)
    assert found.matrix_side[torch.float32] == 256
    assert found.copy_bytes_per_s == pytest.approx(2 * 4 * 2**20 / 0.001)


def test_long_product_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_best_time", lambda device, work: 1.0)
    assert measure_machine(CPU).matrix_side[torch.float32] == 64


def test_convolution_that_stands_for_a_product_is_one() -> None:
    left, right = torch.randn(8, 5), torch.randn(5, 6)
    torch.testing.assert_close(machine_module._convolve_as_product(left, right)(), left @ right)


def test_json_names_dtypes_and_units() -> None:
    told = json.loads(json.dumps(measure_machine(CPU, [torch.bfloat16]).to_json()))
    assert set(told["matrix_gflop_per_s"]) == {"float32", "bfloat16"}
    assert told["copy_gb_per_s"] > 0
