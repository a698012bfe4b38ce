"""What only a GPU can show of the DALI backend: its memory, its streams, its decoders, and that nobody waits for it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_parity import AUGMENTATIONS, LABELS, LEAST_PSNR, check_parity, compare_backends, compare_sample, names_of
from loader_batches import ALL, Kept, keep
from loader_shards import MadeSample, make_sample, write_shards

from unetfast.config import Config, build_config
from unetfast.data.reader import open_shards
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader, choose_backend
from unetfast.loader.dali_install import find_nvcomp_problem
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run
from unetfast.train.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.dali]

SIZE_HW = (192, 256)
JPEG_KINDS = ["jpeg", "jpeg420", "gray", "progressive"]
# what DALI and the driver may keep from one loader to the next, bytes
KEPT_MEMORY = 64 << 20


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of images, of several sizes, in each batch."""
    sizes = [(300, 401), (192, 256), (511, 380), (240, 640)]
    made = [make_sample(i, sizes[i % 4], kind=[*JPEG_KINDS, "lz4", "png"][i % 6]) for i in range(24)]
    return write_shards(tmp_path_factory.mktemp("mixed") / "shards", made)


BuildLoader = Callable[..., Loader]


@pytest.fixture
def build(gpu: torch.device) -> Iterator[BuildLoader]:
    """Build DALI loaders on the GPU: build(folder, training=, augment={}, dali={}, any key of [loader])."""
    with contextlib.ExitStack() as stack:

        def make(folder: Path, *, training: bool = True, augment: Any = None, dali: Any = None, **settings: object) -> Loader:
            config = make_config(augment=augment, dali=dali, **settings)
            reader = stack.enter_context(open_shards(folder).split("train" if training else "val"))
            loader = stack.enter_context(build_loader(reader, config, training=training, device=gpu))
            assert loader.backend == "dali"
            return loader

        yield make


def make_config(*, augment: Any = None, dali: Any = None, **settings: object) -> Config:
    section = {"backend": "dali", "size_hw": list(SIZE_HW), "batch_size": 8, "threads": 2, **settings}
    return build_config({"loader": section, "augment": augment or {}, "dali": dali or {}})


def assert_same(found: list[Kept], expected: list[Kept], what: str) -> None:
    """Compare batches to the pixel, and say where the first difference is."""
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.ids == other.ids, f"{what}: batch {step} has other samples"
        for row, sample_id in enumerate(one.ids):
            num_pixels = int((one.image[row] != other.image[row]).sum())
            assert not num_pixels, f"{what}: batch {step}, sample {sample_id}: {num_pixels} values of the image differ"
            num_pixels = int((one.mask[row] != other.mask[row]).sum())
            assert not num_pixels, f"{what}: batch {step}, sample {sample_id}: {num_pixels} pixels of the mask differ"


def test_auto_takes_dali(mixed: Path, gpu: torch.device) -> None:
    choice = choose_backend(make_config(backend="auto"), gpu)
    assert choice.name == "dali", choice.reason
    with (
        open_shards(mixed).split("train") as reader,
        build_loader(reader, make_config(backend="auto"), training=True, device=gpu) as loader,
    ):
        assert loader.backend == "dali"
        assert next(iter(loader)).image_NCHW.device == gpu


def test_the_same_stream_gives_the_same_pixels(mixed: Path, build: BuildLoader) -> None:
    """Other tests compare two runs on the GPU to the pixel: this one fails first where its decoders are not repeatable."""
    one, other = (keep(build(mixed, augment=ALL, threads=threads), 12) for threads in (1, 4))
    assert_same(other, one, "a second time, with other threads")


@pytest.mark.parametrize("labels", LABELS)
def test_batches_are_dalis_own_memory(
    tmp_path: Path, gpu: torch.device, build: BuildLoader, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    made = [make_sample(i, (200, 260), labels=LABELS[labels]) for i in range(8)]
    loader = build(write_shards(tmp_path / "shards", made, labels=LABELS[labels]), augment=ALL)
    pipe = loader._graph._pipe  # type: ignore[attr-defined]
    original, handed_over = pipe.outputs, []

    def outputs(*arguments: object) -> Any:
        lists = original(*arguments)
        handed_over.append([one.as_tensor().data_ptr() for one in lists])
        return lists

    monkeypatch.setattr(pipe, "outputs", outputs)
    height, width = SIZE_HW
    for step, batch in zip(range(5), loader, strict=False):
        image_NCHW, mask_NHW = batch.image_NCHW, batch.mask_NHW
        assert [image_NCHW.data_ptr(), mask_NHW.data_ptr()] == handed_over[step], "a copy stands between DALI and torch"
        assert (image_NCHW.device, mask_NHW.device) == (gpu, gpu)
        assert tuple(image_NCHW.shape) == (8, 3, height, width)
        assert image_NCHW.stride() == (3 * height * width, 1, 3 * width, 3), "not channels_last"
        assert mask_NHW.stride() == (height * width, width, 1)
        assert image_NCHW.dtype == torch.uint8
        assert mask_NHW.dtype == (torch.uint16 if labels == "16 bits" else torch.uint8)
    assert len(handed_over) == 5


def test_a_training_step_never_waits_for_the_gpu(mixed: Path, gpu: torch.device, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "model": {"base_channels": 8, "depth": 2},
        "train": {"device": "cuda:0", "compile": "off"},
        "log": {"tensorboard": False},
    }
    base = make_config(augment=ALL).model_dump()
    config = build_config({"loader": base["loader"], "augment": base["augment"], **sections})
    with build_run(mixed, config, RunFolder(tmp_path / "run")) as run:
        assert run.loader.backend == "dali"
        batches = iter(run.loader)
        for _ in range(4):  # what is done once: memory, kernels, plans of convolutions
            train_step(run, next(batches))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                train_step(run, next(batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert run.step == 12
        assert torch.isfinite(torch.tensor(run.meter.read_window()))


@pytest.mark.parametrize("reader", ["own stream", "other stream", "side stream"])
def test_memory_is_not_used_again_while_somebody_reads_it(
    mixed: Path, gpu: torch.device, build: BuildLoader, reader: str
) -> None:
    """The GPU is kept so busy that each batch is read long after the host has asked for later ones."""
    num_steps, settings = 24, {"augment": ALL, "prefetch_batches": 1}
    expected = keep(build(mixed, **settings), num_steps)
    loader = build(mixed, **settings)
    sleeper, kept = torch.zeros(4096, 4096, device=gpu), []
    torch.cuda.synchronize(gpu)
    # whose stream is current when batches are asked for, and which one reads them
    asking = torch.cuda.Stream(gpu) if reader == "side stream" else torch.cuda.current_stream(gpu)
    reading = torch.cuda.Stream(gpu) if reader == "other stream" else asking
    with torch.cuda.stream(asking):
        batches = iter(loader)
        for _ in range(num_steps):
            batch = next(batches)
            reading.wait_stream(asking)
            with torch.cuda.stream(reading):
                for _ in range(30):
                    torch.mm(sleeper, sleeper, out=sleeper.new_empty(sleeper.shape))
                kept.append((batch.sample_ids.tolist(), batch.image_NCHW.clone(), batch.mask_NHW.clone()))
            asking.wait_stream(reading)
            del batch  # nobody but the loader holds it now
        is_behind = not asking.query()
    torch.cuda.synchronize(gpu)
    assert is_behind, "the GPU had caught up with the host: nothing was tested; make the sleeper longer"
    found = [Kept(ids, image.cpu(), mask.cpu()) for ids, image, mask in kept]
    assert_same(found, expected, f"read on the {reader}, behind other work")


def test_batches_that_are_held_stay_as_they_are(mixed: Path, build: BuildLoader) -> None:
    loader = build(mixed, augment=ALL)
    held = [batch for _, batch in zip(range(12), loader, strict=False)]
    copies = keep(iter(held))
    keep(loader, 12)
    loader.close()
    gc.collect()
    assert_same(keep(iter(held)), copies, "held over later batches and over close")


@pytest.mark.parametrize("kind", ["jpeg420", "lz4"])
@pytest.mark.parametrize("labels", LABELS)
def test_the_gpu_inflates_what_the_host_inflates(tmp_path: Path, build: BuildLoader, labels: str, kind: str) -> None:
    if problem := find_nvcomp_problem():
        pytest.skip(problem)
    # masks and images of one block of 64 KiB, and of several
    sizes = [(24, 31), (300, 401), (511, 640), (33, 77), (700, 900), (256, 256)]
    made = [make_sample(i, hw, kind=kind, labels=LABELS[labels]) for i, hw in enumerate(sizes)]
    folder = write_shards(tmp_path / "shards", made, labels=LABELS[labels])
    found = {}
    for place in ("host", "gpu"):
        loader = build(folder, augment=ALL, dali={"inflate": place}, batch_size=6)
        is_on_gpu = place == "gpu"
        feed = loader._feed  # type: ignore[attr-defined]
        assert (feed.masks == "blocks", feed.images == "blocks") == (is_on_gpu, is_on_gpu and kind == "lz4")
        found[place] = keep(loader, 6)
    assert_same(found["gpu"], found["host"], "inflated on the GPU")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MadeSample]]:
    """JPEGs of the batch's own size, so that their decoders alone make the difference."""
    made = [make_sample(i, SIZE_HW, kind=JPEG_KINDS[i % 4]) for i in range(16)]
    return write_shards(tmp_path_factory.mktemp("jpegs") / "shards", made), made


def test_the_jpeg_unit_decodes_what_the_kernels_decode(jpegs: tuple[Path, list[MadeSample]], build: BuildLoader) -> None:
    folder, made = jpegs
    batches = {
        load: keep(build(folder, training=False, dali={"hw_decoder_load": load}, batch_size=16), 1)[0]
        for load in (0.0, 0.65, 1.0)
    }
    for load in (0.65, 1.0):
        one, other = batches[0.0], batches[load]
        assert one.ids == other.ids == list(range(16))
        assert torch.equal(one.mask, other.mask)
        files = [compare_sample(i, "jpeg", one.image[i], other.image[i], one.mask[i], other.mask[i]) for i in range(len(made))]
        check_parity(files, [f"hw_decoder_load 0 and {load}: {name}" for name in names_of(made)], masks_equal=True)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_each_jpeg_is_decoded_as_on_the_cpu(
    jpegs: tuple[Path, list[MadeSample]], gpu: torch.device, record_property: Callable[[str, object], None], kind: str
) -> None:
    folder, made = jpegs
    files = compare_backends(folder, SIZE_HW, {}, split="val", training=False, device=gpu)
    wanted = [file for file in files if JPEG_KINDS[file.sample_id % 4] == kind]
    assert len(wanted) == 4
    worst = check_parity(wanted, names_of(made), masks_equal=True, least_psnr=LEAST_PSNR)
    record_property("least_psnr_db", worst.psnr)
    print(f"{kind}: least PSNR {worst.psnr:.1f} dB, {worst.max_difference} levels at most in that file")


@pytest.mark.parametrize("labels", LABELS)
def test_masks_that_are_not_resized_are_equal(tmp_path: Path, gpu: torch.device, labels: str) -> None:
    made = [make_sample(i, (193, 251), kind="lz4", labels=LABELS[labels]) for i in range(8)]
    folder = write_shards(tmp_path / "shards", made, labels=LABELS[labels])
    augment = AUGMENTATIONS["hflip"] | AUGMENTATIONS["brightness"]
    files = compare_backends(folder, (193, 251), augment, device=gpu, num_batches=4)
    assert len(files) == 32
    check_parity(files, names_of(made), masks_equal=True)


def used_memory(gpu: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(gpu)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(gpu)
    return total - free


@pytest.mark.parametrize("end", ["close", "error in the loop", "forgotten"])
def test_memory_does_not_grow_from_loader_to_loader(mixed: Path, gpu: torch.device, end: str) -> None:
    config = make_config(augment=ALL, batch_size=16)

    def use_a_loader() -> None:
        with open_shards(mixed).split("train") as reader:
            loader = build_loader(reader, config, training=True, device=gpu)
            if end == "forgotten":
                keep(loader, 3)
                return
            with loader:
                keep(loader, 3)
                if end == "error in the loop":
                    raise KeyError("mine")

    def run() -> None:
        with contextlib.suppress(KeyError):
            use_a_loader()

    for _ in range(3):
        run()
    before = used_memory(gpu)
    for _ in range(8):
        run()
    grown = used_memory(gpu) - before
    assert grown <= KEPT_MEMORY, (
        f"8 more loaders keep {grown / 2**20:.0f} MiB of the GPU's memory ({before / 2**20:.0f} before)"
    )
