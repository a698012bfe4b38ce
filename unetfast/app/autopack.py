"""Shards for a run that names its images rather than shards: a `hyperparams.json` with its folders."""

from __future__ import annotations

from pathlib import Path

import xxhash
from rich.console import Console

from unetfast.config.hyperparams import Hyperparams
from unetfast.data.pack import pack_folders
from unetfast.errors import UserError

CACHE_FOLDER = Path("shards")  # below the working folder, as runs/ is


def pack_named_folders(hyperparams: Hyperparams, *, cache: Path = CACHE_FOLDER, console: Console | None = None) -> Path:
    """Pack the folders that a `hyperparams.json` names into a shard folder of the cache, or take it as it is if it holds them.

    The shard folder is called after the config file and a hash of the folders' paths; it is packed anew when a file in them was
    added, removed or has another size.

    Args:
        hyperparams: names the folders.
        cache: where the shard folder stands.
        console: for progress and notes; None is silent.

    Returns:
        The shard folder.

    Raises:
        UserError: the file names no folders, one is not there, or a pair in them is bad.
    """
    if not hyperparams.folders:
        raise UserError(
            f"{hyperparams.path}: names no folders of images and masks to pack; give --shards FOLDER, or name them in it "
            "(docs/coming-from.md)"
        )
    places = [str(place.resolve()) for pair in hyperparams.folders.values() for place in pair]
    name = f"{hyperparams.path.stem}-{xxhash.xxh3_64_hexdigest(chr(0).join(places).encode())[:8]}"
    out = cache / name
    folders = hyperparams.folders if "val" in hyperparams.folders else {"": hyperparams.folders["train"]}
    if console is not None:
        console.print(
            f"shards  {out} (no --shards given: packed from the folders that {hyperparams.path} names)", soft_wrap=True
        )
    pack_folders(folders, out, overwrite=True, console=console)
    return out
