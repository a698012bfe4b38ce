"""Configs from TOML, presets and `--set key=value`, with errors that name the nearest known key; and back to TOML."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from unetfast.config.sections import Config
from unetfast.errors import UserError

# what other programs call a key
_OTHER_NAMES = {
    "lr": "optimizer.learning_rate",
    "optim": "optimizer.name",
    "optimizer": "optimizer.name",
    "scheduler": "schedule.name",
    "num_epochs": "train.epochs",
    "num_workers": "loader.threads",
    "workers": "loader.threads",
    "gpu": "train.device",
    "image_size": "loader.size_hw",
    "img_size": "loader.size_hw",
}


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """List every settable key in dotted form, such as `optimizer.learning_rate`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def build_config(tree: dict[str, Any], *, where: str = "the config") -> Config:
    """Check a nested dict and fill in defaults.

    Args:
        tree: sections and keys as TOML gives them; may be partial.
        where: what the tree came from, for error messages.

    Raises:
        UserError: a key is unknown ("did you mean"), or a value has the wrong type or range.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = dict.fromkeys(map(_explain, error.errors()))  # a key of several types has an error for each
        raise UserError("\n  ".join([f"{where}: not a valid config", *lines])) from None


def check_initial_checkpoint(config: Config, *, where: str) -> None:
    """Refuse initial weights that are not there before any work is done.

    Raises:
        UserError: `train.init_checkpoint` names no file; says how to name another or none.
    """
    initial = config.train.init_checkpoint
    if initial and not Path(initial).is_file():
        raise UserError(
            f"{where}: train.init_checkpoint = {initial}: no such checkpoint; name one by --set train.init_checkpoint=FILE, or "
            "begin with random weights: --set train.init_checkpoint="
        )


def _explain(detail: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["msg"].removeprefix("Value error, "))
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        key = ".".join(path)
        return f"{key}: unknown key{_did_you_mean(key)}"
    # a place inside a list or tuple, or pydantic's name of a type, may follow the key
    key = next((known for end in range(len(path), 0, -1) if (known := ".".join(path[:end])) in known_keys()), ".".join(path))
    if detail["type"] == "model_type":
        return f"{key} = {detail['input']!r}: {key} is a section, its keys stand below [{key}]"
    kind = _field(key)
    if kind is not None and get_origin(kind) in (UnionType, Union):
        return f"{key} = {detail['input']!r}: must be {' or '.join(_name_kind(part) for part in get_args(kind))}"
    if get_origin(kind) is dict:
        entry = "".join(f".{part}" for part in path[len(key.split(".")) :][:1])
        return f"{key}{entry} = {detail['input']!r}: {key} is a table of texts, numbers, true or false, and lists of them"
    if detail["type"] == "tuple_type":  # the command line's own 160x240 among them
        return (
            f"{key} = {detail['input']!r}: must be a list of {len(get_args(kind))} numbers, as its default {[*_default(key)]}"
        )
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def _default(key: str) -> Any:
    value: Any = Config()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _field(key: str) -> Any:
    kind: Any = Config
    for part in key.split("."):
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            return None
        kind = fields[part].annotation
    return kind


def _name_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(repr(choice) for choice in get_args(kind))
    inner = get_args(kind)[0]
    return "a list of numbers" if inner is float else f"a list of {_name_kind(inner)}"


def _did_you_mean(key: str) -> str:
    keys = known_keys()
    section, _, last = key.rpartition(".")
    inside = [known for known in keys if known.startswith(f"{section}.")] if section else []
    names = sorted({".".join(known.split(".")[:end]) for known in keys for end in range(1, known.count(".") + 1)})
    near = (
        _close(key, inside, cutoff=0.8)
        or [name for word, name in _OTHER_NAMES.items() if word == last]
        or [known for known in keys if known.rsplit(".", 1)[-1] == last]
        or _close(key, names if not section else [], cutoff=0.6)
        or _close(key, keys, cutoff=0.8)
    )
    if near:
        return f"; did you mean {near[0]}?"
    if inside:
        return f"; [{section}] has {', '.join(known.removeprefix(f'{section}.') for known in inside)}"
    return "; docs/config.md lists all keys"


def _close(key: str, candidates: list[str], *, cutoff: float) -> list[str]:
    return difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff)


def read_config_tree(path: Path) -> dict[str, Any]:
    """Read a TOML file into a nested dict.

    Raises:
        UserError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None


def apply_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of `tree` with `key=value` settings applied; values are TOML, else plain strings.

    Raises:
        UserError: a setting has no `=`, or its key does not exist.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {override}: write key=value, such as --set optimizer.learning_rate=0.001")
        if key not in known_keys() and not _is_in_table(key):
            raise UserError(f"--set {override}: unknown key {key}{_did_you_mean(key)}")
        *sections, last = key.split(".")
        node = result
        for section in sections:
            child = node.get(section, {})
            if not isinstance(child, dict):
                raise UserError(f"--set {override}: {section} = {child!r} in the config is not a section")
            node[section] = dict(child)
            node = node[section]
        node[last] = _parse_value(text.strip())
    return result


def _is_in_table(key: str) -> bool:
    """Say whether a key stands below one that holds a table of free names, such as model.factory_args.encoder_name."""
    table, _, name = key.rpartition(".")
    return bool(name) and get_origin(_field(table)) is dict


def _parse_value(text: str) -> Any:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text


def preset_folder() -> Path:
    """Return the folder of shipped presets: inside an installed wheel, else configs/ of the checkout."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """List the shipped presets by name."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def read_preset_tree(name: str) -> dict[str, Any]:
    """Read a shipped preset.

    Raises:
        UserError: no preset has that name.
    """
    if name not in preset_names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    return read_config_tree(preset_folder() / f"{name}.toml")


def config_to_toml(config: Config) -> str:
    """Write the resolved config as TOML; reading it back gives an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json"))
