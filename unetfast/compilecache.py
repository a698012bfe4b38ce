"""Where torch.compile keeps what it has compiled, so that the next process need not do it again.

torch keeps it by itself, below the folder for temporary files, which a restart of the machine empties and whose name others can
guess. Here it is a folder of the user's cache, for his eyes alone. It may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own; read by it in each compilation


def keep_compiled() -> Path | None:
    """Let this process, and those that it starts, keep what torch compiles in the user's cache.

    Returns:
        The folder: that of TORCHINDUCTOR_CACHE_DIR where the user has set it, else `unetfast/compiled` below XDG_CACHE_HOME or
        ~/.cache. None where that cannot be written: then torch takes its own.
    """
    named = os.environ.get(_VARIABLE)
    if named and named != _torchs_own():
        return Path(named)
    try:
        folder = _user_cache() / "unetfast" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    os.environ[_VARIABLE] = str(folder)
    return folder


def describe_cache(folder: Path | None) -> str:
    """Say to people where compiled code is kept."""
    return "kept in torch's temporary folder" if folder is None else f"kept in {folder}"


def _torchs_own() -> str | None:
    """Return the folder that torch takes by itself: importing its compiler writes it into the variable."""
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # private: there is no other way to ask
    except ImportError:
        return None
    return default_cache_dir()


def _user_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"  # a relative one is to be ignored, says its specification
