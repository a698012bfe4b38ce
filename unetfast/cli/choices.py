"""What options of several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unetfast.errors import UserError

# the settings of a run, as every command that trains takes them
ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="TOML file, or a hyperparams.json; keys that it leaves out keep their defaults."),
]
PresetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="A shipped config; default: that of the shards' data set.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as optimizer.learning_rate=1e-3; repeatable."),
]


class Dataset(StrEnum):
    auto = "auto"
    carvana = "carvana"
    clevr = "clevr"
    ade20k = "ade20k"
    folder = "folder"
    webdataset = "webdataset"


class ToyDataset(StrEnum):
    carvana = "carvana"
    clevr = "clevr"
    ade20k = "ade20k"


class ImageCodec(StrEnum):
    auto = "auto"
    jpeg = "jpeg"
    png = "png"
    lz4 = "lz4"


class MaskCodec(StrEnum):
    lz4 = "lz4"
    png = "png"


class Exif(StrEnum):
    error = "error"
    apply = "apply"
    ignore = "ignore"


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class Weights(StrEnum):
    auto = "auto"
    raw = "raw"
    ema = "ema"


class Tta(StrEnum):
    none = "none"
    flips = "flips"
    scales = "scales"
    flips_scales = "flips+scales"


class MaskNpy(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class EvalSize(StrEnum):
    training = "training"
    source = "source"


class ExportFormat(StrEnum):
    onnx = "onnx"
    pt2 = "pt2"
    safetensors = "safetensors"


def check_settings(config: Path | None, preset: str | None, overrides: list[str]) -> None:
    """Refuse settings that no run can have before torch is imported, which takes seconds.

    Where neither a config nor a preset is named, the device decides which preset is taken, so that names of keys are tested
    alone.

    Raises:
        UserError: a file, a preset, a key or a value that is not there or cannot be.
    """
    from unetfast.config import apply_overrides, build_config, read_any_config, read_preset_tree

    if config is not None and preset is not None:
        raise UserError(f"--config {config} and --preset {preset}: give one of them, and single settings by --set")
    if config is not None:
        tree, where = read_any_config(config), str(config)
    elif preset is not None:
        tree, where = read_preset_tree(preset), f"preset {preset}"
    else:
        apply_overrides({}, overrides)
        return
    where += f", changed by {', '.join(overrides)}" if overrides else ""
    build_config(apply_overrides(tree, overrides), where=where)


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH in pixels.

    Raises:
        UserError: it is written otherwise; names the option.
    """
    if text is None:
        return None
    height, times, width = text.lower().partition("x")
    if not times or not height.isdecimal() or not width.isdecimal() or int(height) == 0 or int(width) == 0:
        raise UserError(f"{option} {text}: write HEIGHTxWIDTH in pixels, such as 160x240")
    return int(height), int(width)
