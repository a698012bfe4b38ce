"""Class ids in memory and on disk are the same to whoever reads them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from unetfast.errors import UserError
from unetfast.infer.prediction import Prediction


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
@pytest.mark.parametrize("num_classes", [2, 300])
def test_pieces_in_any_order_become_rows(tmp_path: Path, memory_bytes: int, num_classes: int) -> None:
    dtype = np.uint8 if num_classes == 2 else np.uint16
    ids_HW = np.random.default_rng(0).integers(0, num_classes, (23, 31)).astype(dtype)
    with Prediction((23, 31), num_classes, folder=tmp_path / "out", memory_bytes=memory_bytes) as prediction:
        for left in (20, 0, 10):
            for top in range(0, 23, 5):
                width = 11 if left == 20 else 10
                prediction.write_block(top, left, ids_HW[top : top + 5, left : left + width])
        assert prediction.dtype == dtype
        np.testing.assert_array_equal(prediction.whole(), ids_HW)
        np.testing.assert_array_equal(prediction.whole(3), ids_HW[::3, ::3])
        np.testing.assert_array_equal(prediction.rows(4, 9), ids_HW[4:9])
        np.testing.assert_array_equal(np.concatenate(list(prediction.iter_bands(200))), ids_HW)
        assert len(list(prediction.iter_bands(200))) > 3
    assert list((tmp_path / "out").iterdir()) == [] if memory_bytes == 0 else not (tmp_path / "out").exists()


def test_whole_rows_are_written_at_once(tmp_path: Path) -> None:
    ids_HW = np.arange(60, dtype=np.uint8).reshape(6, 10)
    with Prediction((6, 10), 70, folder=tmp_path, memory_bytes=0) as prediction:
        prediction.write_block(3, 0, ids_HW[3:])
        prediction.write_block(0, 0, ids_HW[:3])
        np.testing.assert_array_equal(prediction.whole(), ids_HW)
        np.testing.assert_array_equal(prediction.whole(), Prediction.of(ids_HW).whole())


def test_a_disk_that_is_full_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Prediction((6, 10), 2, folder=tmp_path, memory_bytes=0) as prediction:
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(UserError, match=r"a temporary file cannot be written .*No space left on device.*free space"):
            prediction.write_block(0, 0, np.zeros((6, 10), np.uint8))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="a temporary file cannot be written"):
        Prediction((6, 10), 2, folder=tmp_path / "file", memory_bytes=0)
