"""A `hyperparams.json` of another U-Net program as the config of a run.

Such a file is a flat list of settings ("Learning Rate", LEARNING_RATE, "batch_size", ...) and of the four folders of images and
masks. Keys are compared without case, spaces, `_` and `-`; `ACCEPTED` is the whole list, which docs/coming-from.md repeats. The
settings lie over the preset `r2`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetfast.config.reading import read_config_tree, read_preset_tree
from unetfast.errors import UserError

PRESET = "r2"
DEFAULT_CHECKPOINT = "my_checkpoint.pth.tar"  # what such programs load when only told to load

# what a setting is called elsewhere, in `normalize_key`'s form -> ours; "" is accepted, has no counterpart, and is reported
ACCEPTED: dict[str, str] = {
    **dict.fromkeys(("learningrate", "lr"), "optimizer.learning_rate"),
    **dict.fromkeys(("optimizer", "optim"), "optimizer.name"),
    "weightdecay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum",
    **dict.fromkeys(("batchsize", "batch"), "loader.batch_size"),
    **dict.fromkeys(("epochs", "numepochs", "numberofepochs", "nepochs", "maxepochs"), "train.epochs"),
    **dict.fromkeys(("workers", "numworkers", "numberofworkers"), "loader.threads"),
    **dict.fromkeys(("imageheight", "imgheight", "height"), "height"),
    **dict.fromkeys(("imagewidth", "imgwidth", "width"), "width"),
    **dict.fromkeys(("imagesize", "imgsize"), "size"),
    "device": "train.device",
    **dict.fromkeys(("seed", "randomseed"), "train.seed"),
    **dict.fromkeys(("loadcheckpoint", "loadmodel", "load"), "load"),
    **dict.fromkeys(
        ("checkpoint", "checkpointpath", "checkpointfile", "loadmodelfile", "modelpath", "modelfile"), "checkpoint"
    ),
    **dict.fromkeys(("pinmemory", "pinnedmemory"), ""),
}
_FOLDER = re.compile(
    r"(?P<split>train|training|val|valid|validation)(?P<role>im(?:a)?g(?:e)?s?|masks?)(?:dir|directory|folder|path)?"
)


@dataclass(frozen=True, slots=True)
class Hyperparams:
    """What such a file says.

    Args:
        path: of the file.
        tree: nested config, the preset's settings below the file's.
        folders: split ("train", "val") -> folder of images, folder of masks; empty where the file names none.
        notes: a line for each setting whose meaning changed on the way, for people.
    """

    path: Path
    tree: dict[str, Any]
    folders: dict[str, tuple[Path, Path]]
    notes: list[str] = field(default_factory=list)


def is_hyperparams(path: Path) -> bool:
    """Say whether a config file is such a list: JSON by its name."""
    return path.suffix.lower() == ".json"


def read_any_config(path: Path) -> dict[str, Any]:
    """Read a config file into a nested dict: TOML, or a `hyperparams.json`.

    Raises:
        UserError: as of `read_config_tree` and `read_hyperparams`.
    """
    return read_hyperparams(path).tree if is_hyperparams(path) else read_config_tree(path)


def normalize_key(key: str) -> str:
    """Bring a key into the form in which keys are compared: no case, no spaces, `_` or `-`."""
    return re.sub(r"[\s_-]+", "", key).casefold()


def read_hyperparams(path: Path) -> Hyperparams:
    """Read a `hyperparams.json`; relative paths in it are those of the working folder, else of the file's.

    Raises:
        UserError: the file is missing or no JSON object; an unknown key, two keys for one setting, a value of a wrong kind.
    """
    settings = _collect(path, _read_object(path))
    folders = {key: value for key, value in settings.items() if key.startswith("folder.")}
    tree = read_preset_tree(PRESET)
    notes: list[str] = []
    for key, (name, value) in settings.items():
        if key in _SPECIAL or key in folders:
            continue
        if key == "":
            notes.append(f"{name} = {json.dumps(value)}: accepted; batches for a GPU are always pinned")
            continue
        section, _, last = key.partition(".")
        tree[section] = {**tree.get(section, {}), last: _CONVERT.get(key, _as_given)(path, name, value)}
        if key == "loader.threads":
            notes.append(f"{name} = {value}: threads, not processes" + (" (0: all cores)" if value == 0 else ""))
    _set_size(path, settings, tree)
    checkpoint = _checkpoint(path, settings)
    if checkpoint:
        tree["train"] = {**tree.get("train", {}), "init_checkpoint": checkpoint}
    return Hyperparams(path, tree, _pair_folders(path, folders), notes)


_SPECIAL = frozenset({"height", "width", "size", "load", "checkpoint"})


def _read_object(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold one JSON object of settings, not a {type(tree).__name__}")
    return tree


def _collect(path: Path, tree: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Map our keys to (key as written, value); settings inside nested objects count like those outside."""
    found: dict[str, tuple[str, Any]] = {}
    unknown: list[str] = []
    for name, value in _leaves(tree):
        key = _known(name)
        if key is None:
            unknown.append(name)
        elif key in found and found[key][1] != value:
            raise UserError(f"{path}: {found[key][0]!r} and {name!r} mean the same and differ; keep one of them")
        else:
            found[key] = (name, value)
    if unknown:
        named = ", ".join(f"{name!r}{_did_you_mean(name)}" for name in unknown)
        plural = "s" if len(unknown) > 1 else ""
        raise UserError(f"{path}: unknown key{plural} {named}; docs/coming-from.md lists what such a file may hold")
    return found


def _leaves(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """List (key, value) at any depth; a key that means something only below another ("train": {"images": ...}) has both."""
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, name)
        else:
            both = f"{above} {name}"
            leaves.append((both if above and _known(name) is None and _known(both) is not None else name, value))
    return leaves


def _known(name: str) -> str | None:
    key = normalize_key(name)
    match = _FOLDER.fullmatch(key)
    if match:
        split = "train" if match["split"].startswith("train") else "val"
        return f"folder.{split}.{'masks' if match['role'].startswith('mask') else 'images'}"
    return ACCEPTED.get(key)


def _did_you_mean(name: str) -> str:
    names = [*ACCEPTED, "trainimages", "trainmasks", "valimages", "valmasks"]
    near = difflib.get_close_matches(normalize_key(name), names, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def _as_given(_path: Path, _name: str, value: Any) -> Any:
    return value


def _float(path: Path, name: str, value: Any) -> float:
    return float(_number(path, name, value))


def _whole(path: Path, name: str, value: Any) -> int:
    number = _number(path, name, value)
    if number != int(number):
        raise UserError(f"{path}: {name} = {json.dumps(value)}: must be a whole number")
    return int(number)


def _number(path: Path, name: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{path}: {name} = {json.dumps(value)}: must be a number") from None
    return number


def _lower(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}: {name} = {json.dumps(value)}: must be a text")
    return value.strip().lower()


def _device(path: Path, name: str, value: Any) -> str:
    text = _lower(path, name, value)
    if "if" in text.split() and "cuda" in text and "cpu" in text:
        return "auto"  # "cuda if torch.cuda.is_available() else cpu", carried over from Python
    return {"gpu": "cuda"}.get(text, text)


_CONVERT: dict[str, Callable[[Path, str, Any], Any]] = {
    "optimizer.learning_rate": _float,
    "optimizer.weight_decay": _float,
    "optimizer.momentum": _float,
    "optimizer.name": _lower,
    "loader.batch_size": _whole,
    "loader.threads": _whole,
    "train.epochs": _whole,
    "train.seed": _whole,
    "train.device": _device,
}


def _set_size(path: Path, settings: dict[str, tuple[str, Any]], tree: dict[str, Any]) -> None:
    if "size" in settings:
        name, size = settings["size"]
        if not isinstance(size, list) or len(size) != 2:
            raise UserError(f"{path}: {name} = {json.dumps(size)}: must be [height, width] of the training images, pixels")
        settings = settings | {key: (name, side) for key, side in zip(("height", "width"), size, strict=True)}
    given = [key for key in ("height", "width") if key in settings]
    if len(given) == 1:
        raise UserError(f"{path}: {settings[given[0]][0]} stands alone; give both height and width of the training images")
    if given:
        size_hw = [_whole(path, *settings[key]) for key in ("height", "width")]
        tree["loader"] = {**tree.get("loader", {}), "size_hw": size_hw}


def _checkpoint(path: Path, settings: dict[str, tuple[str, Any]]) -> str:
    """Name the weights to begin with, there or not; "" where none are asked for."""
    name, load = settings.get("load", ("", False))
    if isinstance(load, str) and load.strip().lower() in ("true", "false", "yes", "no", ""):
        load = load.strip().lower() in ("true", "yes")
    if load in (0, 1) and not isinstance(load, str):
        load = bool(load)
    if not isinstance(load, bool | str):
        raise UserError(f"{path}: {name} = {json.dumps(load)}: must be true, false or the path of a checkpoint")
    if load is False:
        return ""
    name, file = (name, load) if isinstance(load, str) else settings.get("checkpoint", ("", DEFAULT_CHECKPOINT))
    if file is None:
        file = DEFAULT_CHECKPOINT
    if not isinstance(file, str) or not file:
        raise UserError(f"{path}: {name} = {json.dumps(file)}: must be the path of a checkpoint")
    return str(find_beside(path, file))


def find_beside(path: Path, name: str) -> Path:
    """Find what a file names by a relative path: from the working folder, else from the file's own."""
    given = Path(name).expanduser()
    beside = path.parent / given
    return beside if not given.exists() and beside.exists() else given


def _pair_folders(path: Path, folders: dict[str, tuple[str, Any]]) -> dict[str, tuple[Path, Path]]:
    pairs = {}
    for split in ("train", "val"):
        named = {role: folders[key] for role in ("images", "masks") if (key := f"folder.{split}.{role}") in folders}
        if len(named) == 1:
            role, (name, _) = next(iter(named.items()))
            other = "masks" if role == "images" else "images"
            raise UserError(f"{path}: {name} stands alone; name the folder of the {split} {other} too")
        for name, value in named.values():
            if not isinstance(value, str) or not value:
                raise UserError(f"{path}: {name} = {json.dumps(value)}: must be the path of a folder")
        if named:
            pairs[split] = (find_beside(path, named["images"][1]), find_beside(path, named["masks"][1]))
    if "val" in pairs and "train" not in pairs:
        raise UserError(f"{path}: names folders for validation and none for training")
    return pairs
