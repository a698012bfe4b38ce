"""A run in memory: its parts, where it stands, and how that becomes a checkpoint and back."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unetfast.checkpoint import Checkpoint, save_checkpoint
from unetfast.config import Config
from unetfast.data.labels import LabelTable
from unetfast.data.manifest import Manifest
from unetfast.data.reader import SplitReader
from unetfast.device import AmpPolicy
from unetfast.distributed import World, even_out_buffers
from unetfast.loader.batch import Loader
from unetfast.model.losses import SegmentationLoss
from unetfast.model.network import Network
from unetfast.train.earlystop import EarlyStop
from unetfast.train.ema import WeightAverage
from unetfast.train.guard import StepGuard
from unetfast.train.meter import Meter
from unetfast.train.randomness import capture_rng, restore_rng, seed_generators
from unetfast.train.runfolder import RunFolder
from unetfast.train.schedule import Plateau, learning_rate_factor


@dataclass(slots=True)
class Run:
    """Everything that a training step, a validation pass and a checkpoint need.

    Args:
        config: resolved.
        folder: where results go.
        manifest: of the shards.
        device: where model and batches are.
        amp: number format of the forward pass.
        compiled: whether the model is.
        train_reader: the split that is learned from.
        val_reader: the split that is scored on; None where the shards have none.
        loader: the endless training stream.
        world: the processes that train together; this one alone by default.
        model: on `device`; its weights are the same in every process.
        network: what training steps call: `model`, or with several processes its wrapper that averages gradients.
        loss: on `device`.
        optimizer: over the model's parameters.
        scaler: of fp16; disabled otherwise.
        plateau: state of the plateau schedule.
        meter: sums since the last log row and in this epoch.
        guard: keeps bad steps out.
        ema: average of the weights; None without one.
        total_steps: optimizer steps of the whole run.
        accumulation: micro-batches an optimizer step; more than `train.accumulation` once memory ran out.
        num_synchronized: layers of batch norm that see the batches of all processes.
        num_skipped_before: passes without CUDA graphs in this process before the run; see `warn_of_skipped_graphs`.
        step: optimizer steps done.
        epoch: epochs finished, their validation included.
        metrics: of the last validation pass.
        best: of the best one, and of which weights.
        early_stop: how long validation has not improved.
        notices: lines for people that came up inside steps and were not shown yet.
    """

    config: Config
    folder: RunFolder
    manifest: Manifest
    device: torch.device
    amp: AmpPolicy
    compiled: bool
    train_reader: SplitReader
    val_reader: SplitReader | None
    loader: Loader
    world: World
    model: Network
    network: nn.Module
    loss: SegmentationLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plateau: Plateau
    meter: Meter
    guard: StepGuard
    ema: WeightAverage | None
    total_steps: int
    accumulation: int
    num_synchronized: int = 0
    num_skipped_before: int = 0
    step: int = 0
    epoch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    notices: list[str] = field(default_factory=list)

    @property
    def labels(self) -> LabelTable:
        return self.manifest.labels

    @property
    def num_epochs_read(self) -> int:
        """Epochs whose last sample has been trained on. One step may end several, where the split is smaller than a batch."""
        return min(self.loader.position // self.loader.num_samples, self.config.train.epochs)

    @property
    def epoch_in_work(self) -> int:
        """Number, from 1, of the epoch that the last sample belonged to."""
        return min(max(0, self.loader.position - 1) // self.loader.num_samples + 1, self.config.train.epochs)

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        factor = learning_rate_factor(
            self.config.schedule, self.step, total_steps=self.total_steps, plateau_factor=self.plateau.factor
        )
        return self.config.optimizer.learning_rate * factor

    def accumulating(self, part: int, num_parts: int) -> AbstractContextManager[object]:
        """Return the context of micro-batch `part`, forward and backward: the processes average gradients behind the last."""
        if part + 1 < num_parts and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def capture(self, num_rows: int) -> Checkpoint:
        """Put the whole state into a checkpoint; tensors are not copied. A collective. Waits for the GPU.

        Args:
            num_rows: rows of metrics.jsonl that belong to it.
        """
        even_out_buffers(self.model, self.world)
        mean, std = self.model.normalization  # of the shards, or of weights that brought their own
        return Checkpoint(
            step=self.step,
            epoch=self.epoch,
            config=self.config,
            labels=self.labels,
            dataset=self.manifest.dataset,
            manifest_digest=self.manifest.digest(),
            mean=mean,
            std=std,
            weights=self.model.state_dict(),
            ema={} if self.ema is None else self.ema.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.plateau.state_dict(),
            scaler=self.scaler.state_dict(),
            loader=self.loader.state_dict(),
            rng=self.world.gather(capture_rng(self.device)),
            progress={
                "meter": self.meter.state_dict(),
                "num_rows": num_rows,
                "guard": self.guard.state_dict(),
                "early_stop": self.early_stop.state_dict(),
                "accumulation": self.accumulation,
            },
            metrics=self.metrics,
            best=self.best,
        )

    def save(self, path: Path, num_rows: int) -> None:
        """Write a checkpoint of the whole state; a collective, the main process writes."""
        checkpoint = self.capture(num_rows)
        if self.world.is_main:
            save_checkpoint(path, checkpoint)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stopped, with as many processes or another number; the opposite of `capture`."""
        self.step, self.epoch = checkpoint.step, checkpoint.epoch
        self.metrics, self.best = checkpoint.metrics, checkpoint.best
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.plateau.load_state_dict(checkpoint.schedule)
        if self.scaler.is_enabled() and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.loader.load_state_dict(checkpoint.loader)
        self.meter.load_state_dict(checkpoint.progress["meter"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        self.guard.load_state_dict(checkpoint.progress.get("guard", {}))
        self.early_stop.load_state_dict(checkpoint.progress.get("early_stop", {}))
        # what a checkpoint holds grew out of the setting of its run; another setting now is obeyed
        if checkpoint.config.train.accumulation == self.config.train.accumulation:
            self.accumulation = checkpoint.progress.get("accumulation", self.accumulation)
        if self.world.rank < len(checkpoint.rng):
            restore_rng(checkpoint.rng[self.world.rank], self.device)
        else:
            seed_generators(self.config.train.seed, rank=self.world.rank, step=self.step)
