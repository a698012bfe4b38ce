"""The scatter of sizes: a marker where each size belongs, the training size, and nothing clipped."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from unetfast.viz.scatter import draw_size_scatter


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """What was drawn: widths, heights, label."""
    calls: list[tuple[np.ndarray, np.ndarray, str]] = []
    scatter = Axes.scatter

    def record(self: Axes, x: object, y: object, **settings: object) -> object:
        calls.append((np.asarray(x), np.asarray(y), str(settings["label"])))
        return scatter(self, x, y, **settings)

    monkeypatch.setattr(Axes, "scatter", record)
    return calls


def edges_are_paper(picture: np.ndarray) -> bool:
    return all((edge == 255).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))


def test_each_size_once_by_split(drawn: list[tuple[np.ndarray, np.ndarray, str]]) -> None:
    sizes = {"train": np.array([[100, 200], [300, 150], [100, 200]]), "val": np.array([[100, 200]])}
    picture = draw_size_scatter(sizes, training_hw=(160, 240), training_name="training size of preset x")
    assert picture.size == (580, 480)
    assert edges_are_paper(np.asarray(picture))
    train, val, training = drawn
    assert sorted(zip(train[0].tolist(), train[1].tolist(), strict=True)) == [(150, 300), (200, 100)]
    assert train[2] == "train: 3 samples, 2 sizes"
    assert val[2] == "val: 1 sample, 200 x 100"
    assert (training[0].tolist(), training[1].tolist()) == ([240], [160])
    assert training[2] == "training size of preset x: 240 x 160"


@pytest.mark.parametrize("span", [(50, 900), (10, 20_000), (256, 256)])
@pytest.mark.parametrize("training_hw", [None, (128, 128), (4000, 16)])
def test_any_spread_of_sizes_fits(span: tuple[int, int], training_hw: tuple[int, int] | None) -> None:
    sizes = np.random.default_rng(0).integers(span[0], span[1] + 1, (500, 2))
    picture = np.asarray(draw_size_scatter({"train": sizes, "val": sizes[:40], "odd": sizes[:2]}, training_hw=training_hw))
    assert edges_are_paper(picture)
    # markers of train are there, in their colour or lighter
    blue = (picture[..., 2].astype(int) - picture[..., 0]) > 40
    assert blue.sum() > 50


def test_the_training_size_is_marked_in_black() -> None:
    sizes = {"train": np.array([[100, 100]])}
    with_mark, without = (np.asarray(draw_size_scatter(sizes, training_hw=hw)) for hw in ((50, 50), None))
    middle = slice(200, 400), slice(250, 400)
    assert (with_mark[middle].sum(axis=2) < 60).sum() > 60  # a cross
    assert (without[middle].sum(axis=2) < 60).sum() == 0


def test_no_sample_is_said() -> None:
    assert edges_are_paper(np.asarray(draw_size_scatter({})))
    assert edges_are_paper(np.asarray(draw_size_scatter({"train": np.zeros((0, 2), int)})))
