"""Which sinks a run has, by its config."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from unetfast.config import LogConfig
from unetfast.errors import UserError
from unetfast.train.sinks.base import RunIdentity, Sink


def check_sinks(config: LogConfig) -> None:
    """Test that the packages of the sinks that are asked for are installed; imports none of them.

    Raises:
        UserError: one is missing.
    """
    asked = [("log.wandb", config.wandb != "off", "wandb"), ("log.mlflow", bool(config.mlflow), "mlflow")]
    for key, is_on, package in asked:
        if is_on and find_spec(package) is None:
            off = "off" if package == "wandb" else ""
            raise UserError(f"{key}: {package} is not installed: pip install 'unetfast[watch]', or take --set {key}={off}")


def open_sinks(config: LogConfig, identity: RunIdentity, *, tensorboard: Path) -> list[Sink]:
    """Open every sink that is asked for; all of them or none.

    Args:
        config: the log section.
        identity: of the run.
        tensorboard: folder of TensorBoard's event files.

    Raises:
        UserError: a package is missing, or a sink cannot be opened.
    """
    check_sinks(config)
    openers: list[Callable[[], Sink]] = []
    if config.tensorboard:
        openers.append(lambda: _open_tensorboard(identity, tensorboard))
    if config.wandb != "off":
        openers.append(lambda: _open_wandb(config, identity))
    if config.mlflow:
        openers.append(lambda: _open_mlflow(config, identity))
    sinks: list[Sink] = []
    try:
        for opener in openers:
            sinks.append(opener())
    except BaseException:
        for sink in sinks:
            sink.close("failed")
        raise
    return sinks


def _open_tensorboard(identity: RunIdentity, folder: Path) -> Sink:
    from unetfast.train.sinks.tensorboard_sink import TensorBoardSink

    return TensorBoardSink(identity, folder)


def _open_wandb(config: LogConfig, identity: RunIdentity) -> Sink:
    from unetfast.train.sinks.wandb_sink import WandbSink

    assert config.wandb != "off"
    return WandbSink(identity, config.wandb)


def _open_mlflow(config: LogConfig, identity: RunIdentity) -> Sink:
    from unetfast.train.sinks.mlflow_sink import MlflowSink

    return MlflowSink(identity, config.mlflow)
