"""Contract 4, the checkpoint: what training leaves, and what resuming, evaluation and prediction need.

One `.pt` file of tensors, numbers, strings, lists and dicts alone, so that `torch.load(weights_only=True)` reads it and a
file from a stranger can run no code. It is written to a temporary name, fsynced and renamed: the name always holds a whole
checkpoint, the old one or the new one.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from unetfast.config import Config, ModelConfig, build_config
from unetfast.data.labels import LabelTable
from unetfast.errors import UserError, say_briefly
from unetfast.model.factory import build_factory_network
from unetfast.model.network import Network
from unetfast.model.unet import UNet
from unetfast.wholefile import check_checkpoint_file, write_whole

FORMAT = "unetfast checkpoint"
FORMAT_VERSION = 1
WEIGHTS = ("auto", "raw", "ema")
LATER_PARTS = frozenset({"ema"})  # missing in files that were written before there were any
BATCH_NORM_COUNTS = ("running_mean", "running_var", "num_batches_tracked")

# What may differ between a run and its continuation: where and how fast it runs, how long, and what it tells. All else
# decides which numbers are computed, and must be equal.
MAY_CHANGE = (
    *("loader.backend", "loader.threads", "loader.prefetch_batches", "loader.checksum", "loader.on_bad"),
    *("train.epochs", "train.max_steps", "train.device", "train.amp", "train.compile", "train.channels_last"),
    *(
        "train.deterministic",
        "train.init_checkpoint",
        "model.encoder_weights",
        "train.accumulation",
        "train.sync_batch_norm",  # the number of processes may change, and with it what this does
        "train.max_bad_steps",
        "train.on_out_of_memory",
        "early_stop.",
    ),
    *("eval.batch_size", "log.", "checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.name"),
)


@dataclass(slots=True)
class Checkpoint:
    """State of a training run after an optimizer step.

    Args:
        step: optimizer steps done.
        epoch: epochs finished, their validation included.
        config: the resolved config of the run.
        labels: the classes, in order.
        dataset: name of the data set's layout, from the manifest.
        manifest_digest: of the shard folder that the run reads.
        mean: per channel, of pixel values scaled to [0, 1]; what the model subtracts.
        std: per channel, of pixel values scaled to [0, 1]; what the model divides by.
        weights: the model's `state_dict`, on the CPU once it was loaded.
        ema: the moving average of the weights, under the same names; empty without one.
        optimizer: the optimizer's `state_dict`.
        schedule: plateau state, numbers alone.
        scaler: the `GradScaler`'s `state_dict`; empty without fp16.
        loader: the training loader's `state_dict`: the place in the sample stream.
        rng: one entry a rank: random states of torch, CUDA, numpy and Python as tensors and integers.
        progress: what has been summed up inside the unfinished epoch: losses, confusion matrix, rows of metrics written.
        metrics: of the last validation pass; numbers and None, empty before the first.
        best: of the best validation pass so far: `epoch`, `step`, the metric's name and value, and `weights`, "raw" or "ema",
            which says what was scored; empty before the first.
    """

    step: int
    epoch: int
    config: Config
    labels: LabelTable
    dataset: str
    manifest_digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    rng: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    def choose_weights(self, weights: str = "auto") -> tuple[str, dict[str, Tensor]]:
        """Take the weights themselves or their moving average.

        Args:
            weights: "raw", "ema", or "auto": those that the best validation pass scored, "raw" where nothing was scored.

        Returns:
            "raw" or "ema", and the tensors.

        Raises:
            UserError: the average is asked for, and the run kept none.
        """
        if weights not in WEIGHTS:
            raise UserError(f"weights {weights!r}: give one of {', '.join(WEIGHTS)}")
        chosen = self.best.get("weights", "raw") if weights == "auto" else weights
        if chosen == "raw":
            return chosen, self.weights
        if not self.ema:
            raise UserError(
                "this checkpoint holds no moving average of the weights (the run had ema.decay = 0): "
                "take --weights raw, or train with --set ema.decay=0.999"
            )
        return chosen, self.ema

    def build_model(self, weights: str = "auto") -> Network:
        """Build the model and load weights (see `choose_weights`); on the CPU, in evaluation mode."""
        model = build_network(self.config.model, num_classes=self.labels.num_classes, mean=self.mean, std=self.std)
        tensors = self.choose_weights(weights)[1]
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            factory = self.config.model.factory or "model of this unetfast"
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint's weights do not fit what {factory} builds now ({reason})") from None
        return model.eval()


def build_network(model_config: ModelConfig, *, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """Build the network that a config describes, with random weights: the U-Net, or what `model.factory` builds.

    A factory's function is imported by its name from the working directory or the installed packages, and run.

    Args:
        model_config: sizes and choices.
        num_classes: K, from the manifest.
        mean: per channel, of values scaled to [0, 1].
        std: per channel, of values scaled to [0, 1].

    Raises:
        UserError: the choices do not fit each other, or the factory gives no network that fits.
    """
    settings = model_config.model_dump()
    weights, factory, args = (settings.pop(name) for name in ("encoder_weights", "factory", "factory_args"))
    try:
        if factory:
            return build_factory_network(factory, args, num_classes=num_classes, mean=mean, std=std)
        if weights and model_config.encoder == "plain":
            raise ValueError(f"encoder_weights = {weights!r} are of a ResNet: set encoder to resnet18, resnet34 or resnet50")
        return UNet(num_classes, mean=mean, std=std, **settings)
    except ValueError as error:
        raise UserError(f"[model]: {error}") from None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` holds either the former file or the whole new one, whatever happens.

    Raises:
        UserError: the file cannot be written (no permission, disk full); what stood at `path` still stands.
    """
    tree = {name: getattr(checkpoint, name) for name in (part.name for part in fields(Checkpoint))}
    tree |= {"format": FORMAT, "format_version": FORMAT_VERSION}
    tree["config"] = checkpoint.config.model_dump(mode="json")
    tree["labels"] = checkpoint.labels.model_dump(mode="json")
    tree["mean"], tree["std"] = list(checkpoint.mean), list(checkpoint.std)
    write_whole(path, lambda file: torch.save(tree, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; all tensors on the CPU. No code of the file is run.

    Raises:
        UserError: the file is missing, cut short, not a checkpoint of ours, or of a newer format.
    """
    tree = _read_tree(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a checkpoint of unetfast (there is no format mark in it); give best.pt or last.pt of a run"
        )
    version = tree.get("format_version")
    if version != FORMAT_VERSION:
        age = "a newer unetfast wrote it: update" if isinstance(version, int) and version > FORMAT_VERSION else "train again"
        raise UserError(f"{path}: checkpoint format {version!r}, this unetfast reads {FORMAT_VERSION}; {age}")
    try:
        parts = {part.name: tree[part.name] for part in fields(Checkpoint) if part.name in tree or part.name not in LATER_PARTS}
        parts["labels"] = LabelTable.model_validate(parts["labels"])
        parts["mean"], parts["std"] = tuple(parts["mean"]), tuple(parts["std"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{path}: a damaged checkpoint ({type(error).__name__}: {error}); take another one of the run"
        ) from None
    parts["config"] = build_config(parts["config"], where=f"{path}, its config")
    return Checkpoint(**parts)


def _read_tree(path: Path) -> Any:
    check_checkpoint_file(path)
    try:
        _check_bytes(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not a checkpoint of unetfast (it holds other things than tensors and numbers); "
            "give best.pt or last.pt of a run"
        ) from None
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({say_briefly(error)}); take another one of the run") from None


def _check_bytes(path: Path) -> None:
    """Test the checksum of every part, which torch does not: a flipped bit would become another weight in silence."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (zipfile.BadZipFile, EOFError):
        raise UserError(f"{path}: the checkpoint is cut short or damaged; take another one of the run") from None
    if damaged is not None:
        raise UserError(f"{path}: the checkpoint is damaged (checksum of {damaged}); take another one of the run")


def check_resume(checkpoint: Checkpoint, config: Config, manifest_digest: str, *, path: Path) -> list[str]:
    """Refuse to continue a run with settings that would compute other numbers.

    Epochs, device, number format, threads, logging and where checkpoints go may change (`MAY_CHANGE`).

    Args:
        checkpoint: what the run left.
        config: the config of the continuation.
        manifest_digest: of the shard folder given now.
        path: of the checkpoint, for the message.

    Returns:
        A line for each setting that did change, for people.

    Raises:
        UserError: other data or settings; lists each field with the old and the new value.
    """
    differences = []
    if checkpoint.manifest_digest != manifest_digest:
        differences.append(f"shards: manifest {checkpoint.manifest_digest} in the run, {manifest_digest} now: other data")
    allowed: list[str] = []
    old, new = _flatten(checkpoint.config.model_dump(mode="json")), _flatten(config.model_dump(mode="json"))
    for key in (*old, *(key for key in new if key not in old)):
        if old.get(key) != new.get(key):
            line = f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
            (allowed if key.startswith(MAY_CHANGE) else differences).append(line)
    if differences:
        raise UserError(
            "\n  ".join([f"{path}: cannot resume, what is asked for differs from the run in", *differences])
            + "\n  give the run's own settings, start a new run with another --out, or take these weights alone with "
            f"--set train.init_checkpoint={path}"
        )
    return allowed


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check_labels(checkpoint: Checkpoint, labels: LabelTable, *, path: Path) -> None:
    """Prove that a checkpoint and a shard folder mean the same by each class id: names, order, ignore index.

    Raises:
        UserError: they do not; names the classes that differ.
    """
    old, new = checkpoint.labels.names, labels.names
    differences = [
        f"class {index}: {_name_at(old, index)} in the checkpoint, {_name_at(new, index)} in the shards"
        for index in range(max(len(old), len(new)))
        if _name_at(old, index) != _name_at(new, index)
    ]
    if len(differences) > 6:
        differences = [*differences[:5], f"... {len(differences)} classes differ ({len(old)} and {len(new)} in all)"]
    if differences:
        remedy = "give shards with the classes that it was trained on"
        raise UserError("\n  ".join([f"{path}: trained on other classes than the shards hold", *differences, remedy]))


def _name_at(names: list[str], index: int) -> str:
    return repr(names[index]) if index < len(names) else "none"
