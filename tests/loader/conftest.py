"""What loader tests share. Tests that take `make_loader` run against every backend of `BACKENDS`, unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loader_shards import MadeSample, make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader

BACKENDS = ["cpu"]
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


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader(backend: str, shards: Path) -> Iterator[MakeLoader]:
    """Build loaders: make_loader(training=, folder=, augment={}, order={}, seed=, rank=, world_size=, any key of [loader])."""
    with contextlib.ExitStack() as stack:

        def make(
            *,
            training: bool = True,
            folder: Path = shards,
            augment: dict[str, object] | None = None,
            order: dict[str, object] | None = None,
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
            **settings: object,
        ) -> Loader:
            section = {"backend": backend, "size_hw": SIZE_HW, "batch_size": 4, "threads": 2, **settings}
            config = build_config({"loader": section, "augment": augment or {}, "order": order or {}, "train": {"seed": seed}})
            reader = open_shards(folder).split("train" if training else "val", checksum=config.loader.checksum)
            stack.callback(reader.close)
            loader = build_loader(
                reader, config, training=training, device=torch.device("cpu"), rank=rank, world_size=world_size
            )
            return stack.enter_context(loader)

        yield make
