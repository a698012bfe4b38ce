"""The comparison of CPU loaders: what every side makes of the same files, and how bars and records follow from the rounds."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpu_loader
import loader_data
import numpy as np
import peers
import pytest
import quality
import torch
from peers import loading
from peers.loading import LoaderTask, Stream, build_side, choose_knobs, judge
from peers.torch_loader import EndlessShuffle
from PIL import Image
from side import BuiltSide, Taken

from unetfast.errors import UserError
from unetfast.loader.kernels.find import find_kernel

# the peers leave files open, as their projects do, and torchvision's decoder is on its way out
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"),
]

ONE = {"workers": 0, "threads": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def stores(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, loader_data.LoaderData]:
    """Small toy sets in the formats that need no foreign package."""
    work = tmp_path_factory.mktemp("stores")
    made = {}
    for dataset, formats, hw in (
        ("ade20k", ("shards", "png", "wds", "small"), (48, 64)),
        ("carvana", ("shards", "small"), (40, 60)),
    ):
        source = loader_data.draw_toy(dataset, toy_root, small=True)
        pairs = loader_data.list_pairs(source, dataset)
        folders = {name: work / f"{dataset}-{name}" for name in formats}
        for name, folder in folders.items():
            loader_data.write_store(name, folder, pairs, source=source, dataset=dataset, size_hw=hw)
        made[dataset] = loader_data.LoaderData(dataset, False, source, tuple(pairs), {"files": source, **folders})
    return made


def plan(bar: str, name: str, data: loader_data.LoaderData) -> LoaderTask:
    group = replace(cpu_loader.GROUPS[bar], size_hw=(48, 64) if bar == "C4" else (40, 60))
    kinds = cpu_loader.choose_sides(group, is_real=False, names={name}, all_sides=False)
    [made] = cpu_loader.plan_group(group, kinds, data, {}, seed=3, quick=True)
    return made.task


# side, least PSNR to the triangle reference (decibels), share of mask pixels that may be unequal in %; None: makes no masks
QUALITY = [
    ("C4", "ours exact", 50, 0.0),
    ("C4", "ours fast", 35, 0.0),
    ("C4", "ours packed at size", 50, 0.0),
    ("C4", "webdataset + Pillow", 50, 0.0),
    ("C4", "torchvision (image alone)", 50, None),
    ("C5", "ours exact", 50, 0.0),
    ("C5", "ours exact from RAM", 50, 0.0),
    ("C5", "ours packed at size", 50, 0.0),
    ("C5", "milesial at half size", 30, 0.0),
]


@pytest.mark.parametrize(("bar", "name", "least_db", "unequal_pct"), QUALITY)
def test_plain_pixels_of_a_side(
    bar: str, name: str, least_db: float, unequal_pct: float | None, stores: dict[str, loader_data.LoaderData]
) -> None:
    task = plan(bar, name, stores[cpu_loader.GROUPS[bar].dataset])
    judged = judge(importlib.import_module(task.module), task)
    assert judged["images"] == 4
    assert least_db <= judged["triangle_db"]["min"] <= judged["triangle_db"]["median"] <= 99
    assert judged["mask_unequal_pct_max"] == unequal_pct


@pytest.mark.dali
def test_plain_pixels_of_dali(stores: dict[str, loader_data.LoaderData]) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    task = plan("C4", "DALI CPU antialiased", stores["ade20k"])
    judged = judge(importlib.import_module(task.module), task)
    assert judged["triangle_db"]["min"] >= 50
    assert judged["masks_identical"] is True


@pytest.mark.skipif(not peers.FOLDER.is_dir(), reason="no .peers/: make peers")
def test_plain_and_turned_pixels_of_r1(stores: dict[str, loader_data.LoaderData]) -> None:
    task = plan("C5", "R1", stores["carvana"])
    module = importlib.import_module(task.module)
    # resized without antialiasing, masks from the corners of pixels: far from both references, and not by chance
    assert 15 <= judge(module, task)["triangle_db"]["min"] <= 45
    with contextlib.closing(module.open_stream(task, ONE, plain=False)) as stream:
        image_NCHW, mask_NHW = next(stream.batches)
    assert image_NCHW.dtype == mask_NHW.dtype == torch.float32
    assert image_NCHW.shape == (4, 3, 40, 60)
    assert 0 <= image_NCHW.min() <= image_NCHW.max() <= 1
    assert set(mask_NHW.unique().tolist()) <= {0.0, 1.0}
    assert (image_NCHW[:, :, 0, 0] == 0).any()  # a turned image leaves corners


@pytest.mark.skipif(not (peers.FOLDER / "ffcv").is_dir(), reason="no ffcv in .peers/: make peers")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="ffcv takes two threads, of numba's as many as there are cores")
@pytest.mark.slow  # its pipelines are compiled anew each time
@pytest.mark.parametrize(("name", "least_db"), [("FFCV", 20), ("FFCV packed at size", 50)])  # it resizes by the area filter
def test_plain_pixels_of_ffcv(name: str, least_db: float, tmp_path: Path) -> None:
    data = loader_data.make_data(
        "ade20k", None, tmp_path, toy_root=tmp_path, formats={"beton", "beton-small"}, size_hw=(32, 48), small=True
    )
    task = plan("C4", name, data)
    module = importlib.import_module(task.module)
    judged = judge(module, replace(task, size_hw=(32, 48)))
    assert judged["triangle_db"]["min"] >= least_db
    assert judged["masks_identical"] is True
    stream = module.open_stream(replace(task, size_hw=(32, 48)), ONE, plain=False)
    with contextlib.closing(stream):
        sizes = [tuple(image_NCHW.shape) for image_NCHW, _ in itertools.islice(stream.batches, 10)]
    assert sizes == [(4, 3, 32, 48)] * 10


@pytest.mark.parametrize(
    ("bar", "name"), [("C4", "webdataset + Pillow"), ("C4", "torchvision (image alone)"), ("C5", "ours exact from RAM")]
)
def test_streams_never_end(bar: str, name: str, stores: dict[str, loader_data.LoaderData]) -> None:
    task = plan(bar, name, stores[cpu_loader.GROUPS[bar].dataset])
    stream = importlib.import_module(task.module).open_stream(task, ONE, plain=False)
    with contextlib.closing(stream):
        sizes = [len(image_NCHW) for image_NCHW, _ in itertools.islice(stream.batches, 10)]
    assert sizes == [4] * 10  # 16 samples there are


def test_a_shuffle_without_end_sees_all_in_each_epoch() -> None:
    numbers = list(itertools.islice(EndlessShuffle(7, seed=1), 21))
    epochs = [numbers[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert numbers != list(itertools.islice(EndlessShuffle(7, seed=2), 21))


def test_a_side_keeps_its_best_knobs(stores: dict[str, loader_data.LoaderData]) -> None:
    task = replace(plan("C5", "ours packed at size", stores["carvana"]), knobs=(ONE, {"threads": 1, "batch_size": 0}), seed=0)
    side = build_side(task)
    side.close()
    worked, failed = side.facts["sweep"]
    assert worked["images_per_s"] > 0
    assert worked["turns"] == 3
    assert "loader.batch_size = 0" in failed["error"]
    assert side.facts["knobs"] == ONE
    assert side.facts["batch"] == ["uint8 4x3x40x60", "uint8 4x40x60"]
    assert side.facts["config"]["loader"]["size_hw"] == [40, 60]
    steps = side.facts["steps"]
    by_steps = ["image", "rotation", "mask", "mask lookup"]
    at_once = ["packed sample", "rotation"]  # which does widths alone that are multiples of 16
    is_compiled = not find_kernel("packed", np.dtype(np.uint8)).problem
    assert list(steps) == ["all", "read and check", *(at_once if is_compiled else by_steps)]
    assert 0 < sum(figure["median"] for name, figure in steps.items() if name != "all") < 1.2 * steps["all"]["median"]


def test_steps_of_masks_with_many_classes(stores: dict[str, loader_data.LoaderData]) -> None:
    steps = importlib.import_module("ours_loader").measure_steps(plan("C4", "ours exact", stores["ade20k"]))
    assert list(steps) == ["all", "read and check", "image", "resize", "mask", "mask lookup"]


class MadeModule:
    """A side whose every batch holds as many images as its knob says, and takes as long."""

    ONE_AT_A_TIME = False

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.num_open = self.most_open = 0

    def open_stream(self, task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
        self.opened.append(knobs["size"])
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)

        def batches() -> Iterator[tuple[Any, Any]]:
            while True:
                if not knobs["size"]:
                    raise ValueError("no images")
                yield torch.zeros(knobs["size"]), None

        def close() -> None:
            self.num_open -= 1

        return Stream(batches(), close, ())


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_sweep_lets_all_settings_take_turns_and_the_best_again(
    one_at_a_time: bool, monkeypatch: pytest.MonkeyPatch, stores: dict[str, loader_data.LoaderData]
) -> None:
    def take(side: BuiltSide, seconds: float) -> Taken:  # by no clock: the more images, the faster
        return Taken(num_images=len(next(side.batches)[0]), wall_s=seconds, cpu_s=seconds)

    monkeypatch.setattr(loading, "take_batches", take)
    module = MadeModule()
    module.ONE_AT_A_TIME = one_at_a_time
    task = plan("C5", "ours packed at size", stores["carvana"])
    candidates = [{"size": size, "workers": size % 2} for size in (1, 0, 1000, 1_000_000)]
    sweep = loading.sweep_knobs(module, task, candidates)
    assert [tried["knobs"]["size"] for tried in sweep] == [1, 0, 1000, 1_000_000]
    assert [tried["turns"] for tried in sweep] == [1, 0, 3, 3]
    assert sweep[1]["error"] == "ValueError: no images"
    assert choose_knobs(sweep, task.judged_by)["size"] == 1_000_000
    assert module.num_open == 0
    assert module.most_open == (1 if one_at_a_time else 4)
    if not one_at_a_time:
        assert module.opened == [1, 0, 1000, 1_000_000]  # the only one with a worker process first


def test_knobs_are_chosen_by_the_figure_of_the_bar() -> None:
    fast, lean = {"workers": 2}, {"workers": 0}
    sweep = [
        {"knobs": fast, "turns": 3, "images_per_s": 9.0, "images_per_core_s": 4.0},
        {"knobs": lean, "turns": 3, "images_per_s": 5.0, "images_per_core_s": 5.0},
        {"knobs": {"workers": 3}, "turns": 1, "images_per_s": 10.0, "images_per_core_s": 9.0},  # seen once alone
        {"knobs": {"workers": 1}, "turns": 1, "error": "no"},
    ]
    assert choose_knobs(sweep, "images_per_s") == fast
    assert choose_knobs(sweep, "images_per_core_s") == lean
    with pytest.raises(ValueError, match=r"no setting worked; .*: no"):
        choose_knobs(sweep[3:], "images_per_s")


def test_references(tmp_path: Path) -> None:
    # blocks of 4x4 equal pixels: the area's mean is the block, and half as many masks pixels lie at its centre
    blocks = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((4, 4), dtype=np.uint8))
    Image.fromarray(np.stack([blocks] * 3, axis=2)).save(tmp_path / "image.png")
    references = quality.read_reference(tmp_path / "image.png", (3, 4))
    np.testing.assert_array_equal(references["area"][..., 0], blocks[::4, ::4])
    assert not np.array_equal(references["triangle"], references["area"])
    np.testing.assert_array_equal(quality.nearest(blocks, (3, 4)), blocks[::4, ::4])
    # 3 stored columns to 2: centres at 0.75 and 2.25
    np.testing.assert_array_equal(quality.nearest(np.array([[5, 6, 7]]), (1, 2)), [[5, 7]])
    np.testing.assert_array_equal(quality.map_values(np.array([[0, 1, 150]]), "ade20k"), [[255, 0, 149]])
    np.testing.assert_array_equal(quality.map_values(np.array([[0, 255]]), "carvana"), [[0, 1]])


def test_psnr() -> None:
    black, grey = np.zeros((2, 2, 3)), np.full((2, 2, 3), 25.5)
    assert quality.psnr_db(black, black) == 99
    assert quality.psnr_db(black, grey) == pytest.approx(20)


def made_side(rounds: list[float], core_ms: list[float], *, db: float = 57.0, identical: bool | None = True) -> dict[str, Any]:
    judged = {"triangle_db": {"min": db}, "masks_identical": identical}
    return {"images_per_s": {"rounds": rounds}, "core_ms_per_image": {"rounds": core_ms}, "quality": judged}


def test_bars_are_ratios_of_rounds_and_need_the_quality() -> None:
    data = loader_data.LoaderData("ade20k", False, Path(), (), {})
    sides = {"ours exact": made_side([8.0, 8.0], [1.0, 2.0]), "webdataset + Pillow": made_side([2.0, 1.0], [4.0, 4.0])}
    [bar] = cpu_loader.make_bars(cpu_loader.C4, data, sides)
    assert bar["what"] == "loader, ade20k toy: ours exact / webdataset + Pillow, images/core-s at 256x256"
    assert bar["ratio"]["rounds"] == [4.0, 2.0]  # per core-second
    assert (bar["bar"], bar["floor"], bar["goal"], bar["verdict"]) == ("C4", 3, 5, "pass")
    assert "images/s 6x; PSNR at least 57.0 dB, theirs 57.0; masks identical" in bar["note"]
    for broken in ({"db": 40.0}, {"identical": False}):
        [bar] = cpu_loader.make_bars(cpu_loader.C4, data, sides | {"ours exact": made_side([8.0, 8.0], [1.0, 1.0], **broken)})
        assert bar["verdict"] == "short"
    [bar] = cpu_loader.make_bars(cpu_loader.C4, data, sides | {"webdataset + Pillow": {"error": "crashed"}})
    assert (bar["verdict"], bar["note"]) == ("failed", "webdataset + Pillow: crashed")


def test_the_carvana_bars_are_on_the_clock() -> None:
    data = loader_data.LoaderData("carvana", True, Path(), (), {})
    sides = {"ours fast": made_side([20.0], [1.0], db=36.0), "R1": made_side([2.0], [5.0], db=29.0, identical=False)}
    [bar] = cpu_loader.make_bars(cpu_loader.C5, data, sides)
    assert bar["ratio"]["rounds"] == [10.0]
    assert bar["verdict"] == "pass"
    assert "per core-second 5x" in bar["note"]
    [bar] = cpu_loader.make_bars(cpu_loader.C5, data, sides | {"ours fast": made_side([20.0], [1.0], db=34.9)})
    assert bar["verdict"] == "short"  # fast, but not the pixels


def test_a_bar_says_what_our_time_goes_to() -> None:
    data = loader_data.LoaderData("ade20k", True, Path(), (), {})
    steps = {"all": {"median": 2.0}, "image": {"median": 1.0}, "resize": {"median": 0.5}}
    sides = {"ours fast": made_side([8.0], [2.0], db=36.0) | {"steps": steps}, "webdataset + Pillow": made_side([2.0], [6.0])}
    [bar] = cpu_loader.make_bars(cpu_loader.C4, data, sides)
    assert (
        "2 core-ms an image on one thread: image 1, resize 0.5 (with nothing but the image: 6x per core-second)" in bar["note"]
    )
    assert bar["verdict"] == "pass"  # 35 dB suffice for the fast decode


def test_each_of_our_three_ways_meets_each_peer() -> None:
    ours = ("ours exact", "ours fast", "ours packed at size")
    for group, num_peers in ((cpu_loader.C4, 3), (cpu_loader.C5, 1)):
        met = [(kind.ours, kind.peer) for kind in group.bars]
        assert len(met) == len(set(met)) == 3 * num_peers
        assert {name for name, _ in met} == set(ours)
        assert {kind.name for kind in group.sides if not kind.extra} == {name for pair in met for name in pair}


def test_sides_without_a_bar_are_asked_for() -> None:
    def choose(*, is_real: bool, all_sides: bool) -> int:
        return len(cpu_loader.choose_sides(cpu_loader.C5, is_real=is_real, names=None, all_sides=all_sides))

    assert choose(is_real=True, all_sides=True) == len(cpu_loader.C5.sides)
    assert choose(is_real=True, all_sides=False) == choose(is_real=False, all_sides=True) == 4


def test_groups_by_name() -> None:
    choose = cpu_loader.choose_groups
    assert choose("", has_real=True, quick=False) == [("C4", True), ("C4", False), ("C5", True), ("C5", False)]
    assert choose("", has_real=True, quick=True) == [("C4", False), ("C5", False)]
    assert choose("C5:toy,C4", has_real=False, quick=False) == [("C5", False), ("C4", False)]
    for name in ("C6", "C5:cat"):
        with pytest.raises(UserError, match=f"--only {name}: give C4 or C5"):
            choose(name, has_real=True, quick=False)
    with pytest.raises(UserError, match="no real sample files"):
        choose("C4:real", has_real=False, quick=False)


def test_sides_can_be_named_in_a_list() -> None:
    names = [kind.name for group in cpu_loader.GROUPS.values() for kind in group.sides]
    assert not [name for name in names if "," in name]
    assert {name for group in cpu_loader.GROUPS.values() for kind in group.bars for name in (kind.ours, kind.peer)} <= set(
        names
    )


def test_mistakes_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_loader.main(["--sides", "theirs"]) == 2
    assert capsys.readouterr().err.startswith("error: --sides theirs: no such side; there are DALI CPU antialiased, ")
    assert cpu_loader.main(["--real", "/no/such/folder"]) == 2


@pytest.mark.slow
def test_two_sides_in_turn(toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    names = "ours exact,webdataset + Pillow"
    assert cpu_loader.main(["--quick", "--only", "C4", "--sides", names, "--data", str(toy_root), "--json", str(out)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert (record["benchmark"], record["rounds"]) == ("cpu_loader", 2)
    assert record["data"]["ade20k toy"]["samples"] == 16
    assert set(record["data"]["ade20k toy"]["kib_per_sample"]) == {"files", "shards", "wds"}
    [bar] = record["bars"]
    own, other = (record["sides"][f"C4 ade20k toy: {name}"] for name in names.split(","))
    ratio = other["core_ms_per_image"]["rounds"][0] / own["core_ms_per_image"]["rounds"][0]
    assert bar["ratio"]["rounds"][0] == pytest.approx(ratio, rel=1e-3)
    assert own["quality"]["masks_identical"] is other["quality"]["masks_identical"] is True
