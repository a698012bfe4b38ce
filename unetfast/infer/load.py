"""A checkpoint made ready for work: the model on its device, in evaluation mode, with its number format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from unetfast.checkpoint import Checkpoint, load_checkpoint
from unetfast.config import LossConfig
from unetfast.data.manifest import Manifest
from unetfast.device import AmpPolicy, resolve_amp, resolve_device
from unetfast.errors import UserError, say_briefly
from unetfast.model.fold import cast_convolutions, fold_batch_norm
from unetfast.model.losses import SegmentationLoss, median_frequency_weights
from unetfast.model.network import Network


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model that can be asked.

    Args:
        checkpoint: what it was loaded from: config, classes, metrics.
        model: on `device`, in evaluation mode.
        device: where it is.
        amp: the number format of its forward pass.
        weights: which it has, "raw" or "ema", the moving average.
    """

    checkpoint: Checkpoint
    model: Network
    device: torch.device
    amp: AmpPolicy
    weights: str = "raw"


def load_model(
    checkpoint: Path, *, device: str = "auto", weights: str = "auto", folded: bool = False, console: Console | None = None
) -> TrainedModel:
    """Load a checkpoint onto a device and say on `console` what it is.

    The number format is that of the run, where the device can do it: "fp16" on a CPU becomes "auto", and that is said.

    Args:
        checkpoint: best.pt or last.pt of a run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        weights: "raw", "ema" (the moving average), or "auto": those that the run's best validation pass scored.
        folded: batch norm becomes a part of the convolutions before it (`fold_batch_norm`), and their weights are kept in the
            number format (`cast_convolutions`): faster, the same but for rounding; networks of `model.factory` are left as they
            are.
        console: for notes; None is silent.

    Raises:
        UserError: the checkpoint cannot be read, it has no moving average, or the device is not there.
    """
    loaded = load_checkpoint(checkpoint)
    try:
        chosen, _ = loaded.choose_weights(weights)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    try:
        where = resolve_device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r}: give auto, cpu, cuda or cuda:N ({say_briefly(error)})") from None
    wanted = loaded.config.train.amp
    if wanted == "fp16" and where.type == "cpu":
        amp = resolve_amp("auto", where)
        amp = AmpPolicy(amp.name, f"the run's fp16 needs a GPU; {amp.reason}")
    else:
        amp = resolve_amp(wanted, where)
    if loaded.config.model.factory and console is not None:
        console.print(
            f"code    {checkpoint}: imports and runs {loaded.config.model.factory} (model.factory), which builds its network",
            markup=False,
            soft_wrap=True,
        )
    model = loaded.build_model(chosen).to(where).eval()
    if folded and not loaded.config.model.factory:  # what somebody else's network does between its parts is not known
        fold_batch_norm(model)
        if amp.dtype is not None:
            cast_convolutions(model, amp.dtype)
    if loaded.config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if console is not None:
        height, width = loaded.config.loader.size_hw
        console.print(
            f"model   {checkpoint}: step {loaded.step:,}, {loaded.labels.num_classes} classes, {height}x{width}, "
            f"on {where}, {'float32' if amp.name == 'off' else amp.name} ({amp.reason})"
            f"{_describe_weights(loaded, weights, chosen)}",
            markup=False,
            soft_wrap=True,
        )
    return TrainedModel(loaded, model, where, amp, chosen)


def _describe_weights(checkpoint: Checkpoint, asked: str, chosen: str) -> str:
    """Say which weights were taken and why, where there are two kinds; else nothing."""
    if not checkpoint.ema:
        return ""
    why = "asked for" if asked == chosen else "the better ones in validation" if checkpoint.best else "nothing was validated"
    return f", {'moving average of the weights' if chosen == 'ema' else 'raw weights'} ({why})"


def build_loss(config: LossConfig, manifest: Manifest, *, split: str, console: Console | None = None) -> SegmentationLoss:
    """Build the loss that a config describes.

    Args:
        config: weights of the losses and of the classes.
        manifest: of the shards; `class_weights = "auto"` counts the pixels of its train split.
        split: counted instead where there is no train split; that is said.
        console: for that note; None is silent.

    Raises:
        UserError: class weights that do not fit the classes, or no labelled pixel to take them from.
    """
    labels = manifest.labels
    weights = None if isinstance(config.class_weights, str) else list(config.class_weights)
    counted: str | None = None
    if config.class_weights == "auto":
        counted = "train" if "train" in manifest.splits else split
        if counted != "train" and console is not None:
            console.print(f"note: no train split, so the loss takes its class weights from {counted}", markup=False)
    try:
        if counted is not None:
            weights = median_frequency_weights(manifest.splits[counted].class_pixels)
        return SegmentationLoss(
            num_classes=labels.num_classes,
            ignore_index=labels.ignore_index,
            cross_entropy=config.cross_entropy,
            bce=config.bce,
            dice=config.dice,
            focal=config.focal,
            tversky=config.tversky,
            lovasz=config.lovasz,
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma,
            tversky_alpha=config.tversky_alpha,
            tversky_beta=config.tversky_beta,
            class_weights=weights,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
