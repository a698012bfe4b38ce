"""Every knob of a training run: a strict model for each section, with types, ranges and defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
