"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# laws are tried on the same examples each time, however slow the machine: a failure is of the change that brought it.
# `pytest --hypothesis-profile=default` draws others
with contextlib.suppress(ImportError):  # the tests for a GPU need no hypothesis
    from hypothesis import HealthCheck, settings

    settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real sample files, from UNETFAST_REAL_DATA or ../shared/data; skips where neither exists."""
    named = os.environ.get("UNETFAST_REAL_DATA")
    if named and not Path(named).is_dir():
        pytest.fail(f"UNETFAST_REAL_DATA={named}: no such folder")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real sample files: set UNETFAST_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds small toy shards of all three sets, drawn and packed once."""
    from unetfast.bench.toyshards import TOY_SETS, make_toy_shards

    root = tmp_path_factory.mktemp("toy")
    for name in TOY_SETS:
        make_toy_shards(name, root, small=True)
    return root


@pytest.fixture(scope="session", autouse=True)
def _compiled_code_in_a_folder_of_the_tests() -> Iterator[None]:
    """Leave the user's cache alone, in the processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"unetfast-tests-{os.getuid()}"))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, as beside other tests it should."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
