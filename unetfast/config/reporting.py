"""What is scored, told and kept."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from unetfast.config.section import Section
from unetfast.config.training import Metric

# names in a run folder that a kept checkpoint must not take
_RUN_FILES = frozenset(
    {
        *(".", "..", "last.pt", "best.pt", "config.toml", "metrics.jsonl", "tensorboard", "saved_images"),
        *("report.html", "progress.gif", "bad_steps.jsonl", "wandb", "sinks.json", "samples"),
        *("facts.json", "validation.json", "validation_best.json"),
        *("training_history.png", "predictions_initial.png", "predictions_epoch_final.png", "predictions_epoch_1.png"),
    }
)


class EvalConfig(Section):
    every_epochs: int = Field(1, gt=0)
    size: Literal["training", "source"] = "training"  # source: logits resized to the stored size, one image at a time
    batch_size: int = Field(0, ge=0)  # 0: loader.batch_size / train.accumulation


class LogConfig(Section):
    every_steps: int = Field(10, gt=0)
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"  # Weights & Biases
    mlflow: str = ""  # tracking address or folder of MLflow; empty: off
    project: str = Field("unetfast", min_length=1)  # name of the project there
    gif: bool = True  # progress.gif
    report: bool = True  # report.html at the end
    panels_every_epochs: int = Field(5, gt=0)  # predictions_epoch_N.png
    num_panels: int = Field(4, gt=0, le=64)
    num_saved_images: int = Field(8, ge=0)  # pictures in saved_images/


class CheckpointConfig(Section):
    best_metric: Metric = "mean_dice"
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
