"""How a run learns, for how long, and what it does about trouble."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from unetfast.config.section import Range, Section

Metric = Literal["val_loss", "mean_iou", "mean_dice", "pixel_accuracy"]


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: Range = (0.9, 0.999)  # adam, adamw
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd, rmsprop
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)  # smoothing of the squared gradients
    clip_norm: float = Field(0.0, ge=0)  # largest L2 norm of all gradients together; 0: no clipping

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas = {list(self.betas)}: both from 0 to below 1")
        return self


class ScheduleConfig(Section):
    name: Literal["constant", "cosine", "plateau", "poly", "one-cycle"] = "constant"
    warmup_steps: int = Field(0, ge=0)  # linear, from learning_rate / warmup_steps
    min_factor: float = Field(0.0, ge=0, le=1)  # all but constant end, and plateau stops, at learning_rate * min_factor
    power: float = Field(0.9, gt=0)  # poly
    one_cycle_peak: float = Field(0.3, gt=0, lt=1)  # share of the steps after which one-cycle reaches learning_rate
    one_cycle_start: float = Field(0.04, gt=0, le=1)  # one-cycle begins at learning_rate times this
    plateau_metric: Metric = "val_loss"
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=0)  # validation passes without improvement


class TrainConfig(Section):
    epochs: int = Field(3, gt=0)
    max_steps: int = Field(0, ge=0)  # stop after this many optimizer steps, where schedules end too; 0: no limit
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # auto: bf16 where the device is fast at it
    compile: Literal["auto", "on", "graphs", "off"] = "auto"  # auto: on for CUDA; graphs: replayed as CUDA graphs
    channels_last: bool = True
    accumulation: int = Field(1, gt=0)  # micro-batches per optimizer step; batch_size is divided by it
    deterministic: bool = False
    sync_batch_norm: bool = False  # batch norm over the whole global batch, with several processes
    max_bad_steps: int = Field(5, gt=0)  # steps in a row whose loss is not finite, before the run stops
    on_out_of_memory: Literal["halve", "error"] = "halve"  # halve: smaller micro-batches, the same global batch
    init_checkpoint: str = ""  # initial weights; what does not fit is left out and reported

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.device == "cpu" and self.amp == "fp16":
            raise ValueError('train.amp = "fp16" needs a GPU: take "bf16" or "off" on the CPU')
        if self.compile == "graphs" and self.device == "cpu":
            raise ValueError('train.compile = "graphs" replays CUDA graphs and needs a GPU: take "on" or "off" on the CPU')
        if self.compile == "graphs" and self.accumulation > 1:  # pytorch #169545
            raise ValueError(
                f'train.compile = "graphs" cannot add gradients up, and train.accumulation = {self.accumulation}: take "on", '
                "or train.accumulation = 1"
            )
        return self


class EmaConfig(Section):
    """An exponential moving average of the weights, scored beside them."""

    decay: float = Field(0.0, ge=0, lt=1)  # 0: none
    warmup: bool = True  # decay is at most (1 + step) / (10 + step)


class EarlyStopConfig(Section):
    """The end of a run whose validation no longer improves."""

    patience: int = Field(0, ge=0)  # validation passes without improvement; 0: never stop early
    min_delta: float = Field(0.0, ge=0)  # what counts as an improvement is larger than this
    metric: Literal["", "val_loss", "mean_iou", "mean_dice", "pixel_accuracy"] = ""  # empty: checkpoint.best_metric
