"""One optimizer step on one global batch, and what is read of the steps at log time.

Axis legend: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch

from unetfast.loader.batch import Batch
from unetfast.model.metrics import confusion_matrix
from unetfast.train.meter import StepClock
from unetfast.train.optimizer import set_learning_rate, split_batch, update_weights
from unetfast.train.run import Run


def train_step(run: Run, batch: Batch) -> None:
    """Take one optimizer step on one global batch. Does not wait for the GPU.

    With `accumulation` the gradients of equal micro-batches are averaged. Batch norm sees each micro-batch alone, and a
    mean over labelled pixels is taken within each: where ignored pixels are spread unevenly, this differs a little from the
    whole batch at once.
    """
    config = run.config
    num_parts = config.train.accumulation
    set_learning_rate(run.optimizer, run.learning_rate)
    run.model.train()
    for image_NCHW, mask_NHW in split_batch(batch.image_NCHW, batch.mask_NHW, num_parts):
        with run.amp.autocast(run.device):
            logits_NKHW = run.model(image_NCHW)
        loss = run.loss(logits_NKHW, mask_NHW) / num_parts
        run.scaler.scale(loss).backward()
        confusion_KK = confusion_matrix(
            logits_NKHW.detach().max(dim=1).indices,  # argmax gives the same, and is slower on a CPU
            mask_NHW,
            num_classes=run.labels.num_classes,
            ignore_index=run.labels.ignore_index,
        )
        run.meter.add_part(loss.detach(), confusion_KK)
    update_weights(run.optimizer, run.scaler, clip_norm=config.optimizer.clip_norm)
    run.meter.end_step()
    run.step += 1


def read_train_row(run: Run, clock: StepClock) -> dict[str, Any]:
    """Read what was summed up since the last row. Waits for the GPU."""
    loss = run.meter.read_window()
    speed = clock.read(run.config.loader.batch_size)
    row = {
        "kind": "train",
        "step": run.step,
        "epoch": run.epoch_in_work,
        "loss": loss,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "images_per_s": speed.images_per_s,
        "data_wait_pct": speed.data_wait_pct,
        "step_s": speed.step_s,
    }
    if run.device.type == "cuda":
        row["gpu_memory_gib"] = torch.cuda.max_memory_allocated(run.device) / 2**30
    return row
