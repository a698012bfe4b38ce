"""One optimizer step on one global batch, and what is read of the steps at log time.

Axis legend: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unetfast.errors import UserError
from unetfast.loader.batch import Batch
from unetfast.model.deep import full_size, supervised_loss
from unetfast.model.metrics import confusion_matrix
from unetfast.train.compiling import GRAPHS, explaining_compiler
from unetfast.train.guard import update_weights
from unetfast.train.memory import free_memory, is_out_of_memory, next_accumulation
from unetfast.train.meter import StepClock
from unetfast.train.optimizer import set_learning_rate, split_batch
from unetfast.train.run import Run


def train_step(run: Run, batch: Batch) -> None:
    """Take one optimizer step on one global batch. Does not wait for the GPU.

    A loss or gradient that is not finite changes nothing (guard.py). Where memory runs out, the step is begun anew in smaller
    micro-batches, which the run keeps from then on.

    Raises:
        UserError: memory ran out, and smaller micro-batches are not wanted or do not help; or the network cannot be compiled.
    """
    begin_step(run)
    finish_step(run, batch, *compute_gradients_in_memory(run, batch))


def begin_step(run: Run) -> None:
    """Make a run ready for the gradients of its next step."""
    set_learning_rate(run.optimizer, run.learning_rate)
    run.model.train()
    run.guard.begin()


def finish_step(run: Run, batch: Batch, loss: Tensor, confusion_KK: Tensor) -> None:
    """Let a step's gradients change the weights and everything that follows them; see `compute_gradients`."""
    # the mean, so that all processes judge by the same number
    mean_loss = run.world.mean(loss)
    outcome = update_weights(run.optimizer, run.scaler, clip_norm=run.config.optimizer.clip_norm, loss=mean_loss)
    if run.ema is not None:
        run.ema.update(run.step, outcome.applied)
    run.meter.add_step(loss, confusion_KK, ~outcome.bad)
    run.step += 1
    run.guard.settle(run.step, batch.sample_ids, outcome)


def compute_gradients_in_memory(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a step, in as many micro-batches as memory asks for; see `compute_gradients`."""
    while True:
        try:
            with explaining_compiler(run.compiled):
                return compute_gradients(run, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).strip().splitlines()
        # outside of `except`: the error's traceback holds the activations of the pass that failed
        run.optimizer.zero_grad(set_to_none=True)
        free_memory(run.device)
        run.guard.restart()
        take_smaller_parts(run, problem[0] if problem else "MemoryError")


def compute_gradients(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run forward and backward passes over a batch, in `run.accumulation` equal micro-batches.

    Their gradients are averaged. Batch norm sees each micro-batch alone, and a mean over labelled pixels is taken within each:
    where ignored pixels are spread unevenly, this differs a little from the whole batch at once.

    Returns:
        The step's loss, float scalar, and the confusion matrix of its predictions, int64, (K, K); on the device, detached.
    """
    num_parts = run.accumulation
    num_classes = run.labels.num_classes
    step_loss = torch.zeros((), device=run.device)
    confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=run.device)
    for part, (image_NCHW, mask_NHW) in enumerate(split_batch(batch.image_NCHW, batch.mask_NHW, num_parts)):
        with run.accumulating(part, num_parts):
            with run.amp.autocast(run.device):
                outputs = run.network(image_NCHW)
            loss = supervised_loss(run.loss, outputs, mask_NHW, run.config.model.deep_supervision) / num_parts
            run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        step_loss += loss.detach()
        confusion_KK += confusion_matrix(
            full_size(outputs).detach().max(dim=1).indices,  # argmax gives the same, and is slower on a CPU
            mask_NHW,
            num_classes=num_classes,
            ignore_index=run.labels.ignore_index,
        )
    return step_loss, confusion_KK


def take_smaller_parts(run: Run, problem: str) -> None:
    """Let the run cut its batches into smaller micro-batches from now on, and keep a line about it for people.

    Args:
        run: whose `accumulation` grows.
        problem: first line of the error.

    Raises:
        UserError: they cannot be smaller, or `train.on_out_of_memory` is "error".
    """
    config = run.config
    batch_size = config.loader.batch_size // run.world.size
    height, width = config.loader.size_hw
    where = f"out of memory on {run.device} in step {run.step + 1:,} ({problem})"
    more = next_accumulation(batch_size, run.accumulation)
    if more is None:
        raise UserError(
            f"{where}\n  one image of {height}x{width} pixels at a time does not fit: take a smaller loader.size_hw, "
            "model.base_channels or model.depth"
        )
    remedy = (
        f"{batch_size // run.accumulation} images at a time do not fit: take --set train.accumulation={more} "
        f"(the same batch in smaller parts) or a loader.batch_size below {config.loader.batch_size}"
    )
    if run.world.size > 1:
        # the others wait in the middle of this step, and cannot be brought back to its start
        raise UserError(f"{where}\n  {remedy}; with several processes the run must be started anew for it, by --resume")
    if config.train.compile == GRAPHS:
        raise UserError(
            f"{where}\n  CUDA graphs (train.compile) have no micro-batches: take a loader.batch_size below "
            f"{config.loader.batch_size}, or --set train.compile=on with train.accumulation={more}"
        )
    if config.train.on_out_of_memory == "error":
        raise UserError(f"{where}\n  {remedy}; train.on_out_of_memory = halve does the first by itself")
    run.notices.append(
        f"{where}: from here on {batch_size // more} images at a time instead of {batch_size // run.accumulation}, "
        f"the batch stays {batch_size} (train.accumulation {more})"
    )
    run.accumulation = more


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
