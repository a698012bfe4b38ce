"""Where compiled code is kept, and that the next process finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetfast.compilecache import describe_cache, keep_compiled

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's; what the code under test sets is taken back."""
    monkeypatch.setenv(VARIABLE, "")  # what it was is put back behind the test
    monkeypatch.delenv(VARIABLE)
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def test_compiled_code_is_kept_in_the_users_cache(cache_home: Path) -> None:
    folder = keep_compiled()
    assert folder == cache_home / "unetfast" / "compiled"
    assert folder.stat().st_mode & 0o077 == 0
    assert os.environ[VARIABLE] == str(folder)
    assert keep_compiled() == folder
    assert describe_cache(folder) == f"kept in {folder}"


def test_a_folder_of_the_users_own_is_taken(cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert keep_compiled() == tmp_path / "mine"
    assert not cache_home.exists()


def test_a_relative_cache_folder_is_ignored(cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert keep_compiled() == tmp_path / "home" / ".cache" / "unetfast" / "compiled"


def test_a_cache_that_cannot_be_written_is_left_alone(cache_home: Path) -> None:
    cache_home.write_text("a file stands in the way")
    assert keep_compiled() is None
    assert VARIABLE not in os.environ
    assert describe_cache(None) == "kept in torch's temporary folder"


def test_the_folder_that_torch_takes_by_itself_is_not_the_users_wish(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch's compiler writes it into the variable."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv(VARIABLE, default_cache_dir())
    assert keep_compiled() == cache_home / "unetfast" / "compiled"


COMPILES = """
import json, torch, torch._dynamo
from unetfast.compilecache import keep_compiled
keep_compiled()
layer = torch.nn.Conv2d(3, 4, 3)
layer.compile(fullgraph=True, dynamic=False)
with torch.no_grad():
    layer(torch.zeros(1, 3, 8, 8))
from torch._dynamo.utils import counters
print(json.dumps({name: counters["inductor"][name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss")}))
"""


@pytest.mark.slow
def test_the_next_process_finds_what_was_compiled(cache_home: Path) -> None:
    counts = []
    for _ in range(2):
        told = subprocess.run(
            [sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True, env=os.environ.copy()
        )
        counts.append(json.loads(told.stdout.splitlines()[-1]))
    assert counts == [{"fxgraph_cache_hit": 0, "fxgraph_cache_miss": 1}, {"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 0}]
    assert any((cache_home / "unetfast" / "compiled" / "fxgraph").iterdir())
