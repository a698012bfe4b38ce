"""Compiled steps: where they cannot be had the loader says so, and does without; masks are the same, images to one level."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_batches import ALL, assert_close, keep

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader
from unetfast.loader.kernels.find import find_kernel, forget_kernels
from unetfast.loader.masklookup import gather_mask

UINT8 = np.dtype(np.uint8)


@pytest.fixture
def found_anew() -> Iterator[None]:
    """What was found of numba before is forgotten, and so is what the test finds."""
    forget_kernels()
    yield
    forget_kernels()


def make(folder: Path, augment: dict[str, Any]) -> Loader:
    config = build_config({"loader": {"size_hw": [24, 32], "batch_size": 4, "backend": "cpu"}, "augment": augment})
    return build_loader(open_shards(folder).split("train"), config, training=True, device=torch.device("cpu"))


@pytest.mark.parametrize("augment", [{"resized_crop": {"prob": 0.7}, "hflip": {"prob": 0.5}}, ALL])
@pytest.mark.usefixtures("found_anew")
def test_without_numba_masks_are_the_same_images_nearly_and_the_loader_says_so(
    shards: Path, augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    with make(shards, augment) as loader:
        compiled = keep(loader, 6)
        if not find_kernel("warp").problem:  # which wants a processor and an OpenCV of its kind
            assert loader.facts == ""
    forget_kernels()
    monkeypatch.setitem(sys.modules, "numba", None)
    with make(shards, augment) as loader:
        found = keep(loader, 6)
        assert loader.facts.startswith("without compiled steps, so samples take longer: ")
    assert_close(found, compiled)  # the same samples and masks
    if augment is not ALL:  # colours and rotation may make more of one level
        for one, other in zip(found, compiled, strict=True):
            assert (one.image.int() - other.image.int()).abs().max() <= 1


def fail(dtype: np.dtype[Any]) -> Callable[..., None]:
    raise ImportError("Numba needs NumPy 2.0 or less. Got NumPy 2.4.\nand more lines")


@pytest.mark.usefixtures("found_anew")
def test_why_there_is_no_kernel_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from unetfast.loader.kernels import mask

    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        assert find_kernel("mask", UINT8).problem == "NUMBA_DISABLE_JIT is set"
    forget_kernels()
    with monkeypatch.context() as patch:
        patch.setattr(mask, "build_kernel", fail)
        state = find_kernel("mask", UINT8)
    assert state.call is None
    assert state.problem == "numba cannot be used (ImportError: Numba needs NumPy 2.0 or less. Got NumPy 2.4.)"


@pytest.mark.usefixtures("found_anew")
def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotThere:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "numba":
                raise ModuleNotFoundError("No module named 'numba'", name="numba")

    for name in [name for name in sys.modules if name == "numba" or name.startswith("numba.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotThere(), *sys.meta_path])
    assert find_kernel("mask", UINT8).problem == "numba is not installed"


# numba is told to keep code in a folder that cannot be made; a process of its own, since numba reads that when it is imported
TRIAL = """
import os, sys
os.environ["NUMBA_CACHE_DIR"] = sys.argv[1]
import numpy as np
from unetfast.loader.kernels.find import find_kernel, forget_kernels
from unetfast.loader.masklookup import gather_mask
state = find_kernel("mask", np.dtype(np.uint8))
assert state.problem == "", state.problem
found = np.empty((2, 2), np.uint8)
gather_mask(np.array([[1, 2], [3, 4]], np.uint8), np.array([[-1.0, 0, 2], [0, 1, 0]]), (0, 0, 2, 2), 255, found)
print(found.tolist())
"""


def test_a_kernel_that_cannot_be_kept_is_compiled_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    file = tmp_path / "file"
    file.write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", TRIAL, str(file / "below")], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[[2, 1], [4, 3]]", done.stderr


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 5, 4), (0, 0, 4, 5), (2, 0, 2, 4)])
@pytest.mark.parametrize("turned", [0.0, 0.1])
def test_the_kernel_reads_nothing_outside_of_a_mask(box: tuple[int, ...], turned: float) -> None:
    pytest.importorskip("numba")
    matrix = np.array([[1.0, turned, 0], [-turned, 1.0, 0]])
    with pytest.raises(ValueError, match="the crop box is not inside the mask"):
        gather_mask(np.zeros((4, 4), UINT8), matrix, box, 255, np.empty((4, 4), UINT8))
