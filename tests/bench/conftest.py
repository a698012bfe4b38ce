"""Six toy cars, packed, and a run that trains a very small U-Net on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from small_config import make_config

from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy
from unetfast.train.run import Run


@pytest.fixture(scope="session")
def car_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cars") / "source"
    write_toy(root, "carvana", num_groups=2, seed=0, images_per_group=3, size_hw=(64, 96))
    return root


@pytest.fixture(scope="session")
def car_shards(car_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cars") / "shards"
    pack(car_source, out, options=PackOptions(val_fraction=0.0), workers=1)
    return out


@pytest.fixture
def build_small_run(car_shards: Path, tmp_path: Path, one_thread: None) -> Iterator[Callable[..., Run]]:
    """Build a run of `make_config`; closed when the test ends."""
    from unetfast.train.runfolder import RunFolder
    from unetfast.train.setup import build_run

    with ExitStack() as stack:

        def build(**sections: dict[str, Any]) -> Run:
            return stack.enter_context(build_run(car_shards, make_config(**sections), RunFolder(tmp_path)))

        yield build
