"""Every knob of a training run: strict models, read from TOML and from `--set key=value`.

Unknown keys are errors that name the nearest known one. The resolved config is written to `runs/NAME/config.toml` and
into each checkpoint, so that a run can be repeated from either.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unetfast.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], Field(strict=False)]
SizeHW = Annotated[tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]], Field(strict=False)]


# names in a run folder that a kept checkpoint must not take
_RUN_FILES = frozenset(
    {
        *(".", "..", "last.pt", "best.pt", "config.toml", "metrics.jsonl", "tensorboard", "saved_images"),
        *("training_history.png", "predictions_initial.png", "predictions_epoch_final.png", "predictions_epoch_1.png"),
    }
)
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


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, no infinity or nan, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LoaderConfig(Section):
    """How shards become batches."""

    backend: Literal["auto", "dali", "cpu"] = "auto"
    size_hw: SizeHW = (256, 256)  # height, width of a training batch, pixels
    batch_size: int = Field(16, gt=0)  # global: over all ranks, before accumulation
    threads: int = Field(0, ge=0)  # 0: all cores this process may use
    prefetch_batches: int = Field(2, ge=1, le=64)
    decode: Literal["exact", "fast"] = "exact"  # see docs/architecture.md, "What a pixel is"
    sampler: Literal["shuffle", "sequential", "balanced"] = "shuffle"
    on_bad: Literal["error", "skip"] = "error"
    checksum: bool = True  # test every member's xxh3 before it is decoded


class DaliConfig(Section):
    """How the DALI backend decodes; no setting changes what is decoded."""

    hw_decoder_load: float = Field(0.65, ge=0, le=1)  # share of a batch's JPEGs for the GPU's JPEG unit; DALI's own default
    region_decode: Literal["auto", "always", "never"] = "auto"  # decode only the region of a JPEG that its crop needs
    inflate: Literal["host", "gpu"] = "host"  # where LZ4 members are inflated


class OrderConfig(Section):
    """How the shuffling sampler permutes an epoch."""

    shuffle: Literal["global", "block"] = "global"
    block_size: int = Field(1024, gt=0)  # samples; only for shuffle = "block"


class FlipConfig(Section):
    prob: Probability = 0.0


class RotationConfig(Section):
    prob: Probability = 0.0
    degrees: Range = (-35.0, 35.0)  # counter-clockwise


class ResizedCropConfig(Section):
    """Random resized crop (Szegedy et al. 2014): a box of random area and aspect, resized to the training size."""

    prob: Probability = 0.0
    area: Range = (0.5, 1.0)  # share of the image's area
    aspect: Range = (0.75, 1.3333333333333333)  # stretch of the box's width / height relative to the image's own


class CropConfig(Section):
    """Plain random crop: a box of `size_hw` stored pixels at a random place, not enlarged or shrunk first."""

    prob: Probability = 0.0
    size_hw: Annotated[tuple[int, int], Field(strict=False)] = (0, 0)  # (0, 0): loader.size_hw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.size_hw) < 1 and self.size_hw != (0, 0):
            raise ValueError(f"augment.crop.size_hw = {list(self.size_hw)}: both above 0, or [0, 0] for loader.size_hw")
        return self


class FactorConfig(Section):
    """A factor drawn uniformly from `range`; 1 changes nothing."""

    prob: Probability = 0.0
    range: Range = (0.8, 1.25)


class HueConfig(Section):
    prob: Probability = 0.0
    degrees: Range = (-18.0, 18.0)


class AugmentConfig(Section):
    """Random changes of training samples; each with a probability (0 = off) and a range."""

    resized_crop: ResizedCropConfig = ResizedCropConfig()
    crop: CropConfig = CropConfig()
    scale: FactorConfig = FactorConfig()
    hflip: FlipConfig = FlipConfig()
    vflip: FlipConfig = FlipConfig()
    rotation: RotationConfig = RotationConfig()
    brightness: FactorConfig = FactorConfig()
    contrast: FactorConfig = FactorConfig()
    saturation: FactorConfig = FactorConfig()
    hue: HueConfig = HueConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resized_crop.prob > 0 and self.crop.prob > 0:
            raise ValueError("augment.resized_crop and augment.crop exclude each other: set the prob of one to 0")
        for name in ("resized_crop.area", "resized_crop.aspect", "scale.range", "rotation.degrees", "brightness.range"):
            self._check_range(name)
        for name in ("contrast.range", "saturation.range", "hue.degrees"):
            self._check_range(name)
        if self.resized_crop.area[1] > 1:
            raise ValueError("augment.resized_crop.area goes past 1: a crop cannot be larger than its image")
        return self

    def _check_range(self, name: str) -> None:
        section, field = name.split(".")
        low, high = getattr(getattr(self, section), field)
        if low > high:
            raise ValueError(f"augment.{name} = [{low}, {high}]: the first number must not exceed the second")
        if field in ("area", "aspect", "range") and low <= 0 and not (section in ("contrast", "saturation") and low == 0):
            raise ValueError(f"augment.{name} = [{low}, {high}]: must be above 0")


class ModelConfig(Section):
    """The U-Net (Ronneberger et al. 2015). Classes come from the manifest."""

    base_channels: int = Field(64, gt=0)
    depth: int = Field(4, ge=1, le=8)  # number of down-samplings
    convs_per_block: int = Field(2, ge=1, le=8)
    conv_order: Literal["conv-norm-act", "conv-act-norm"] = "conv-norm-act"
    norm: Literal["batch", "group", "none"] = "batch"
    # one name for all levels, or one per level from the top
    down: Literal["maxpool", "strided", "none"] | list[Literal["maxpool", "strided", "none"]] = "maxpool"
    up: Literal["transposed", "bilinear"] = "transposed"  # bilinear halves the decoder's widths ("/2")
    head_kernel: Literal[1, 3] = 1
    dropout: float = Field(0.0, ge=0, lt=1)  # channel dropout in the bottleneck and the decoder blocks

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.down, list) and len(self.down) != self.depth:
            raise ValueError(f"model.down names {len(self.down)} levels, model.depth is {self.depth}")
        return self


class LossConfig(Section):
    """A weighted sum of losses; a weight of 0 leaves one out."""

    cross_entropy: float = Field(1.0, ge=0)
    bce: float = Field(0.0, ge=0)  # binary cross-entropy, one-hot per class
    dice: float = Field(0.0, ge=0)  # soft Dice
    # "auto": from the manifest's pixel counts, median-frequency balancing (Eigen and Fergus 2015)
    class_weights: Literal["none", "auto"] | list[float] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cross_entropy == self.bce == self.dice == 0:
            raise ValueError("every weight in [loss] is 0: give cross_entropy, bce or dice a weight")
        weights = self.class_weights
        if isinstance(weights, list) and (min(weights, default=0) < 0 or not any(weights)):
            raise ValueError(f"loss.class_weights = {weights}: a number of 0 or more for each class, not all 0")
        return self


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: Range = (0.9, 0.999)  # adam, adamw
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd
    clip_norm: float = Field(0.0, ge=0)  # largest L2 norm of all gradients together; 0: no clipping

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas = {list(self.betas)}: both from 0 to below 1")
        return self


class ScheduleConfig(Section):
    name: Literal["constant", "cosine", "plateau"] = "constant"
    warmup_steps: int = Field(0, ge=0)  # linear, from learning_rate / warmup_steps
    min_factor: float = Field(0.0, ge=0, le=1)  # cosine ends, and plateau stops, at learning_rate * min_factor
    plateau_metric: Literal["val_loss", "mean_iou", "mean_dice", "pixel_accuracy"] = "val_loss"
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=0)  # validation passes without improvement


class TrainConfig(Section):
    epochs: int = Field(3, gt=0)
    max_steps: int = Field(0, ge=0)  # stop after this many optimizer steps, where a cosine ends too; 0: no limit
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # auto: bf16 where the device is fast at it
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on for CUDA
    channels_last: bool = True
    accumulation: int = Field(1, gt=0)  # micro-batches per optimizer step; batch_size is divided by it
    deterministic: bool = False
    init_checkpoint: str = ""  # initial weights; what does not fit is left out and reported

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.device == "cpu" and self.amp == "fp16":
            raise ValueError('train.amp = "fp16" needs a GPU: take "bf16" or "off" on the CPU')
        return self


class EvalConfig(Section):
    every_epochs: int = Field(1, gt=0)
    size: Literal["training", "source"] = "training"  # source: logits resized to the stored size, one image at a time
    batch_size: int = Field(0, ge=0)  # 0: loader.batch_size / train.accumulation


class LogConfig(Section):
    every_steps: int = Field(10, gt=0)
    tensorboard: bool = True
    panels_every_epochs: int = Field(5, gt=0)  # predictions_epoch_N.png
    num_panels: int = Field(4, gt=0, le=64)
    num_saved_images: int = Field(8, ge=0)  # pictures in saved_images/


class CheckpointConfig(Section):
    best_metric: Literal["val_loss", "mean_iou", "mean_dice", "pixel_accuracy"] = "mean_dice"
    every_epochs: int = Field(0, ge=0)  # a kept checkpoint every N epochs; 0: none
    every_steps: int = Field(0, ge=0)  # last.pt also every N optimizer steps; 0: at the end of each epoch alone
    name: str = "epoch_{epoch}.pt"  # template of kept checkpoints; knows {epoch} and {step}

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            name = self.name.format(epoch=1, step=1)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"checkpoint.name = {self.name!r}: only {{epoch}} and {{step}} may stand in it") from error
        if not name or any(mark in name for mark in "/\\\0") or name in _RUN_FILES:
            raise ValueError(f"checkpoint.name = {self.name!r}: a plain file name that a run does not use already")
        return self


class Config(Section):
    """A whole training run."""

    loader: LoaderConfig = LoaderConfig()
    dali: DaliConfig = DaliConfig()
    order: OrderConfig = OrderConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loader.batch_size % self.train.accumulation:
            raise ValueError(
                f"loader.batch_size = {self.loader.batch_size} is not divisible by train.accumulation = "
                f"{self.train.accumulation}"
            )
        return self


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
    return f"{key} = {detail['input']!r}: {detail['msg']}"


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
        if key not in known_keys():
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


def _parse_value(text: str) -> Any:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text


def preset_folder() -> Path:
    """Return the folder of shipped presets: inside an installed wheel, else configs/ of the checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


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
