"""Random states come back exactly, and a run leaves its caller's settings alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from unetfast.train.randomness import capture_rng, numeric_settings, restore_rng

CPU = torch.device("cpu")


def draw() -> tuple[list[float], list[float], list[float]]:
    return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), [random.random(), random.gauss(0, 1)]


def test_state_survives_a_file_read_without_code(tmp_path: Path) -> None:
    with numeric_settings(seed=1, deterministic=False, device=CPU):
        np.random.normal()  # leaves half a pair behind
        random.gauss(0, 1)
        torch.save(capture_rng(), tmp_path / "rng.pt")
        wanted = draw()
        draw()
        restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
        assert draw() == wanted


def test_seed_decides_every_generator() -> None:
    found = []
    for seed in (5, 5, 6, 2**40):
        with numeric_settings(seed=seed, deterministic=False, device=CPU):
            found.append(draw())
    assert found[0] == found[1]
    assert all(found[0][place] != found[2][place] for place in range(3))


def test_callers_state_and_settings_come_back() -> None:
    torch.manual_seed(9)
    before = capture_rng()
    with numeric_settings(seed=1, deterministic=True, device=CPU):
        assert torch.are_deterministic_algorithms_enabled()
        draw()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), before["torch"])
