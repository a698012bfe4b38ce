"""Every knob of a training run: a strict model for each section, with types, ranges and defaults."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from unetfast.config.augmenting import AugmentConfig
from unetfast.config.loading import AUTO_BATCH_SIZE, DaliConfig, LoaderConfig, OrderConfig
from unetfast.config.modelling import LossConfig, ModelConfig
from unetfast.config.reporting import CheckpointConfig, EvalConfig, LogConfig
from unetfast.config.section import Section
from unetfast.config.training import EarlyStopConfig, EmaConfig, OptimizerConfig, ScheduleConfig, TrainConfig


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
    ema: EmaConfig = EmaConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loader.batch_size != AUTO_BATCH_SIZE and self.loader.batch_size % self.train.accumulation:
            raise ValueError(
                f"loader.batch_size = {self.loader.batch_size} is not divisible by train.accumulation = "
                f"{self.train.accumulation}"
            )
        return self
