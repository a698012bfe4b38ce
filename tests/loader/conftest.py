"""What loader tests share. Tests that take `make_loader` run against every backend of `BACKENDS`, unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loader_backends import BACKENDS, find_backend
from loader_faults import write_bad
from loader_shards import MadeSample, make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader

SIZE_HW = (24, 32)

KINDS = ["jpeg", "jpeg420", "gray", "progressive", "lz4", "png"]


@pytest.fixture(scope="session")
def made() -> list[MadeSample]:
    """Samples of all codecs and several sizes, among them the batch's own size."""
    sizes = [(40, 56), (24, 32), (61, 47), (20, 90), (130, 170), (24, 32), (33, 35)]
    return [
        make_sample(i, sizes[i % len(sizes)], kind=KINDS[i % len(KINDS)], mask_codec="png" if i % 5 == 4 else "lz4")
        for i in range(13)
    ]


@pytest.fixture(scope="session")
def shards(made: list[MadeSample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), made)


@pytest.fixture(scope="session")
def bad_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Find the folder with a fault in one sample, bad_shards(fault, sample); made once, so nobody may change it."""
    folders: dict[tuple[str, int], Path] = {}

    def find(fault: str, bad: int) -> Path:
        if (fault, bad) not in folders:
            folders[fault, bad] = write_bad(tmp_path_factory.mktemp("bad") / "shards", fault, bad)
        return folders[fault, bad]

    return find


@pytest.fixture(params=BACKENDS)
def backend_and_device(request: pytest.FixtureRequest) -> tuple[str, torch.device]:
    return find_backend(*request.param)


@pytest.fixture
def backend(backend_and_device: tuple[str, torch.device]) -> str:
    return backend_and_device[0]


@pytest.fixture
def device(backend_and_device: tuple[str, torch.device]) -> torch.device:
    return backend_and_device[1]


MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader(backend_and_device: tuple[str, torch.device], shards: Path) -> Iterator[MakeLoader]:
    """Build loaders: make_loader(training=, folder=, augment={}, order={}, dali={}, seed=, rank=, world_size=, device=, any key
    of [loader]); the backend and device are those that the test runs for, unless they are given.
    """
    with contextlib.ExitStack() as stack:

        def make(
            *,
            training: bool = True,
            folder: Path = shards,
            augment: dict[str, object] | None = None,
            order: dict[str, object] | None = None,
            dali: dict[str, object] | None = None,
            device: torch.device = backend_and_device[1],
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
            **settings: object,
        ) -> Loader:
            sections = {
                "loader": {"backend": backend_and_device[0], "size_hw": SIZE_HW, "batch_size": 4, "threads": 2, **settings},
                "augment": augment or {},
                "order": order or {},
                "dali": dali or {},
                "train": {"seed": seed},
            }
            config = build_config(sections)
            reader = open_shards(folder).split("train" if training else "val", checksum=config.loader.checksum)
            stack.callback(reader.close)
            loader = build_loader(reader, config, training=training, device=device, rank=rank, world_size=world_size)
            return stack.enter_context(loader)

        yield make
