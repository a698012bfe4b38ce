"""Every knob of a training run: strict models, and reading them from TOML and from `--set key=value` (reading.py).

A file a group of sections: loading, augmenting, modelling, training, reporting; sections.py puts them together.

Unknown keys are errors that name the nearest known one. The resolved config is written to `runs/NAME/config.toml` and
into each checkpoint, so that a run can be repeated from either.
"""

from unetfast.config.augmenting import (
    AugmentConfig,
    CropConfig,
    FactorConfig,
    FlipConfig,
    HueConfig,
    ResizedCropConfig,
    RotationConfig,
)
from unetfast.config.hyperparams import Hyperparams, is_hyperparams, read_any_config, read_hyperparams
from unetfast.config.loading import AUTO_BATCH_SIZE, DaliConfig, LoaderConfig, OrderConfig
from unetfast.config.modelling import LossConfig, ModelConfig
from unetfast.config.reading import (
    apply_overrides,
    build_config,
    check_initial_checkpoint,
    config_to_toml,
    known_keys,
    preset_folder,
    preset_names,
    read_config_tree,
    read_preset_tree,
)
from unetfast.config.reporting import CheckpointConfig, EvalConfig, LogConfig
from unetfast.config.sections import Config
from unetfast.config.training import EarlyStopConfig, EmaConfig, OptimizerConfig, ScheduleConfig, TrainConfig

__all__ = [
    "AUTO_BATCH_SIZE",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "CropConfig",
    "DaliConfig",
    "EarlyStopConfig",
    "EmaConfig",
    "EvalConfig",
    "FactorConfig",
    "FlipConfig",
    "HueConfig",
    "Hyperparams",
    "LoaderConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OrderConfig",
    "ResizedCropConfig",
    "RotationConfig",
    "ScheduleConfig",
    "TrainConfig",
    "apply_overrides",
    "build_config",
    "check_initial_checkpoint",
    "config_to_toml",
    "is_hyperparams",
    "known_keys",
    "preset_folder",
    "preset_names",
    "read_any_config",
    "read_config_tree",
    "read_hyperparams",
    "read_preset_tree",
]
