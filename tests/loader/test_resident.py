"""The resident backend in Triton's interpreter, held against the CPU backend and the plain reference."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import loader_reference as reference
import numpy as np
import pytest
import torch
from loader_batches import ALL, keep
from loader_faults import write_bad
from loader_shards import MadeSample, make_labels, make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.augment import boxes_are_fixed, draw_augmentation
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader, choose_backend
from unetfast.loader.cpu import CpuLoader
from unetfast.loader.order import Order
from unetfast.loader.stream import SampleStream

pytest.importorskip("triton", reason="PyTorch brings Triton on Linux alone")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIZE_HW = (16, 24)
FLIPS = {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}}
COLOR = {name: {"prob": 0.7} for name in ("brightness", "contrast", "saturation", "hue")}
MODULES = ("unetfast.loader.resident", "unetfast.loader.resident_kernel")


@pytest.fixture(scope="module")
def resident() -> Iterator[ModuleType]:
    """The backend's module with its kernels interpreted, whatever was imported before."""
    versions = [tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy")]
    if versions[0] < (3, 8) and versions[1] >= (2, 4):
        pytest.skip("Triton before 3.8 does not interpret loops together with NumPy 2.4")  # it takes int() of an array of one
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    former = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        module = importlib.import_module("unetfast.loader.resident")
        sys.modules["unetfast.loader.resident_kernel"]._BLOCK_PX = 512  # a program takes the interpreter as long as a small one
        yield module
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if former is not None:
            os.environ["TRITON_INTERPRET"] = former
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.fixture(scope="module")
def few() -> list[MadeSample]:
    """Samples of several codecs and sizes, smaller and larger than the batch, and of its very size."""
    kinds = ["jpeg", "lz4", "jpeg420", "png"]
    sizes = [(30, 41), (16, 24), (61, 37), (12, 50), (16, 24), (25, 70)]
    return [make_sample(i, hw, kind=kinds[i % 4], mask_codec="png" if i == 3 else "lz4") for i, hw in enumerate(sizes)]


@pytest.fixture(scope="module")
def folder(few: list[MadeSample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("resident"), few)


MakeBoth = Callable[..., tuple[Loader, Loader]]


@pytest.fixture
def make_both(resident: ModuleType, folder: Path, one_thread: None) -> Iterator[MakeBoth]:
    """Build the resident loader and the CPU loader of one stream: make_both(augment={}, training=, any key of [loader])."""
    opened: list[Any] = []

    def make(
        augment: dict[str, Any] | None = None, *, training: bool = True, shards: Path = folder, **settings: Any
    ) -> tuple[Loader, Loader]:
        section = {"size_hw": SIZE_HW, "batch_size": 4, "threads": 1, **settings}
        config = build_config({"loader": section, "augment": augment or {}})
        reader = open_shards(shards).split("train" if training else "val")
        loaders: list[Any] = []
        for backend in ("resident", "cpu"):
            stream = SampleStream(reader, config, training=training, target_hw=SIZE_HW, batch_size=config.loader.batch_size)
            if backend == "resident":
                loaders.append(resident.ResidentLoader(stream, config, num_threads=1, device=CPU))
            else:
                loaders.append(CpuLoader(stream, config.loader, num_threads=1, device=CPU))
            opened.append(loaders[-1])
        opened.append(reader)
        return loaders[0], loaders[1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("augment", "most"),
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param(FLIPS, 0, id="flips"),
        pytest.param({**FLIPS, "rotation": {"prob": 0.7}}, 1, id="rotation"),
        pytest.param(COLOR, 1, id="color"),
        pytest.param({**FLIPS, "crop": {"prob": 0.8}}, 1, id="crop"),
        pytest.param({**FLIPS, "resized_crop": {"prob": 0.9, "area": [0.2, 1.0]}}, 1, id="resized_crop"),
    ],
)
def test_batches_are_those_of_the_cpu_backend(make_both: MakeBoth, augment: dict[str, Any], most: int) -> None:
    found, expected = (keep(loader, 1)[0] for loader in make_both(augment))
    assert found.ids == expected.ids
    assert torch.equal(found.mask, expected.mask)
    assert (found.image.shape, found.image.dtype) == (expected.image.shape, torch.uint8)
    difference = (found.image.int() - expected.image.int()).abs().max()
    assert difference <= most


def test_pixels_are_what_the_reference_says(make_both: MakeBoth, few: list[MadeSample]) -> None:
    augment = {**ALL, "scale": {"prob": 1.0, "range": [0.6, 1.7]}}
    loader = make_both(augment, batch_size=6)[0]
    places = Order(len(few), seed=0).locate(np.arange(6))
    stored_hw = np.array([few[i].mask.shape for i in places.sample_ids])
    numbers = draw_augmentation(build_config({"augment": augment}).augment, places, stored_hw, seed=0, target_hw=SIZE_HW)
    batch = keep(loader, 1)[0]
    assert batch.ids == places.sample_ids.tolist()
    for row, sample_id in enumerate(batch.ids):
        one = few[sample_id]
        assert np.array_equal(batch.mask[row].numpy(), reference.render_mask(one.mask, numbers, row, SIZE_HW, 255))
        image = reference.render_image(one.image, numbers, row, SIZE_HW, "cpu")
        assert reference.psnr(batch.image[row].permute(1, 2, 0).numpy(), image) >= 45, one.sample.source_path


@pytest.mark.real
def test_real_files_are_within_a_level(make_both: MakeBoth, real_data: Path, tmp_path: Path) -> None:
    pack(real_data / "ade20k", tmp_path / "shards", dataset="ade20k", workers=1)
    for augment in ({**FLIPS, "rotation": {"prob": 1.0}}, {"crop": {"prob": 1.0, "size_hw": [40, 60]}}):
        found, expected = (keep(loader, 1)[0] for loader in make_both(augment, shards=tmp_path / "shards", batch_size=2))
        assert torch.equal(found.mask, expected.mask)
        assert (found.image.int() - expected.image.int()).abs().max() <= 1


@pytest.mark.parametrize("decode", ["exact", "fast", "full"])
def test_images_that_never_change_their_box_are_decoded_as_the_cpu_backend_does(
    make_both: MakeBoth, tmp_path: Path, decode: str
) -> None:
    made = [make_sample(0, (150, 210), kind="jpeg420"), make_sample(1, (131, 170), kind="gray")]  # decoded at 1/2 or less
    shards = write_shards(tmp_path / "shards", made)
    found, expected = (keep(loader, 1)[0] for loader in make_both(FLIPS, shards=shards, batch_size=2, decode=decode))
    assert found == expected


@pytest.mark.parametrize("num_classes", [2, 300])
def test_masks_of_one_bit_and_of_sixteen(make_both: MakeBoth, tmp_path: Path, num_classes: int) -> None:
    labels = make_labels(num_classes, has_ignore=num_classes > 2)
    made = [make_sample(i, (21, 19 + i), kind="lz4", labels=labels) for i in range(3)]
    shards = write_shards(tmp_path / "shards", made, labels=labels)
    found, expected = (keep(loader, 1)[0] for loader in make_both({"rotation": {"prob": 1.0}}, shards=shards))
    assert found.mask.dtype == expected.mask.dtype == (torch.uint8 if num_classes == 2 else torch.uint16)
    assert torch.equal(found.mask, expected.mask)
    assert (found.mask.int() == labels.ignore_index).any()  # the corners that turned in


def test_masks_choose_their_crops(make_both: MakeBoth) -> None:
    augment = {"crop": {"prob": 1.0, "size_hw": [8, 12]}, "max_class_share": 0.3}
    found, expected = (keep(loader, 1)[0] for loader in make_both(augment))
    assert torch.equal(found.mask, expected.mask)


def test_a_stopped_stream_goes_on_with_the_next_batch(make_both: MakeBoth) -> None:
    whole, cpu = make_both(FLIPS)
    batches = iter(whole)
    keep(batches, 2)
    state = whole.state_dict()
    rest = keep(batches, 2)
    for _ in itertools.islice(cpu, 2):
        pass
    assert state == cpu.state_dict()  # so a run may change its cache when it is resumed
    resumed = make_both(FLIPS)[0]
    resumed.load_state_dict(state)
    assert keep(resumed, 2) == rest


def test_a_validation_pass_ends_with_its_last_sample(make_both: MakeBoth, few: list[MadeSample]) -> None:
    loader, cpu = make_both(training=False)
    for _ in range(2):
        found = keep(loader)
        assert [batch.ids for batch in found] == [[0, 1, 2, 3], [4, 5]]
    assert found == keep(cpu)


@pytest.mark.parametrize(
    ("fault", "words"), [("zeroed bytes", "xxh3 differs"), ("bomb with its index row", "the manifest at most")]
)
def test_a_bad_sample_stops_it_or_is_left_out(make_both: MakeBoth, tmp_path: Path, fault: str, words: str) -> None:
    shards = write_bad(tmp_path / "shards", fault, 2)
    with pytest.raises(CorruptShardError, match=words):
        make_both(shards=shards)
    loader, cpu = make_both(shards=shards, on_bad="skip", training=False)
    found, expected = keep(loader), keep(cpu)
    assert [batch.ids for batch in found] == [batch.ids for batch in expected]
    assert loader.skipped == cpu.skipped != []


def test_images_are_kept_at_batch_size_where_no_box_is_ever_drawn(resident: ModuleType, make_both: MakeBoth) -> None:
    pixels = importlib.import_module("unetfast.loader.resident_pixels")

    def is_fixed(augment: dict[str, Any]) -> bool:
        return boxes_are_fixed(build_config({"augment": augment}).augment)

    assert boxes_are_fixed(None)
    assert is_fixed({"rotation": {"prob": 1.0}, "scale": {"prob": 1.0, "range": [0.5, 1.0]}})
    for drawn in ({"crop": {"prob": 0.1}}, {"resized_crop": {"prob": 0.1}}, {"scale": {"prob": 0.1, "range": [1.0, 1.1]}}):
        assert not is_fixed(drawn)
    stored_hw = np.array([[10, 9], [4, 17]])
    assert pixels.lay_out(stored_hw, 1, None).num_bytes == 3 * (90 + 68) + 10 * 2 + 4 * 3
    assert pixels.lay_out(stored_hw, 16, (8, 8)).num_bytes == 2 * 3 * 64 + 2 * (90 + 68)
    fixed, drawn = make_both()[0], make_both({"crop": {"prob": 1.0}})[0]
    assert ("at batch size" in fixed.facts, "at stored size" in drawn.facts) == (True, True)


def test_filling_in_many_pieces_gives_the_same(make_both: MakeBoth, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = keep(make_both()[0], 2)
    monkeypatch.setattr("unetfast.loader.resident_pixels._STAGE_BYTES", 1)
    assert keep(make_both()[0], 2) == whole


def test_pieces_are_no_larger_than_is_said_masks_with_them() -> None:
    pixels = importlib.import_module("unetfast.loader.resident_pixels")
    stored_hw = np.full((3000, 2), 1200)  # 1.4 MB of mask beside 115 KB of image
    for layout in (pixels.lay_out(stored_hw, 8, (160, 240)), pixels.lay_out(stored_hw, 16, None)):
        parts = list(pixels._cut(layout))
        assert list(itertools.chain.from_iterable(parts)) == list(range(3000))
        sizes = [layout.byte_starts[part.stop] - layout.byte_starts[part.start] for part in parts]
        assert max(sizes) <= 128 << 20
        assert sum(sizes) == layout.num_bytes


def test_kernels_that_cannot_be_made_are_told_before_pixels_are_decoded(
    resident: ModuleType, make_both: MakeBoth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    def decode(*_: Any, **__: Any) -> None:
        pytest.fail("pixels are decoded before the kernels were tried")

    monkeypatch.setattr(resident, "render_batch", fail)
    monkeypatch.setattr(resident, "ResidentPixels", decode)
    with pytest.raises(UserError, match=r"Triton cannot make its kernels here \(Failed to find C compiler\.\); take --set"):
        make_both()


@pytest.mark.parametrize(
    ("free_gib", "cache_mib", "words"),
    [
        (5, 0, ["takes 3.00 GiB", "5.00 GiB are free on cuda:0", "half of that", "--set loader.cache_mib=3072", "cache=ram"]),
        (5, 1024, ["loader.cache_mib allows 1.00 GiB", "--set loader.cache_mib=3072"]),
        (2, 4096, ["2.00 GiB are free", "--set loader.cache=ram"]),
    ],
)
def test_a_split_that_does_not_fit_is_refused(resident: ModuleType, free_gib: int, cache_mib: int, words: list[str]) -> None:
    check_room = importlib.import_module("unetfast.loader.resident_pixels").check_room
    check_room(1 << 30, free_gib << 30, cache_mib, device=GPU, what="split train")
    with pytest.raises(UserError) as caught:
        check_room(3 << 30, free_gib << 30, cache_mib, device=GPU, what="split train")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert ("loader.cache_mib=3072" in str(caught.value)) == (free_gib > 3)  # not where more room would not help


def test_the_cache_decides_before_the_backend_and_in_training_alone(folder: Path) -> None:
    def config(cache: str, backend: str = "auto") -> Any:
        return build_config({"loader": {"cache": cache, "backend": backend, "size_hw": SIZE_HW, "batch_size": 4}})

    assert choose_backend(config("gpu"), GPU, training=True).name == "resident"
    assert choose_backend(config("gpu", "cpu"), GPU).name == "cpu"
    assert choose_backend(config("ram"), GPU, training=True).name == "cpu"
    with pytest.raises(UserError, match=r'loader\.cache = "gpu" needs a GPU, and this run is on cpu'):
        build_loader(open_shards(folder).split("train"), config("gpu"), training=True, device=CPU)
    with pytest.raises(UserError, match=r'loader\.backend is "dali"'):
        choose_backend(config("ram", "dali"), GPU, training=True)


def test_a_machine_without_triton_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Triton"):
        choose_backend(build_config({"loader": {"cache": "gpu"}}), GPU, training=True)
