"""Every knob of a training run: strict models (sections.py), read from TOML and from `--set key=value` (reading.py).

Unknown keys are errors that name the nearest known one. The resolved config is written to `runs/NAME/config.toml` and
into each checkpoint, so that a run can be repeated from either.
"""

from unetfast.config.reading import (
    apply_overrides,
    build_config,
    config_to_toml,
    known_keys,
    preset_folder,
    preset_names,
    read_config_tree,
    read_preset_tree,
)
from unetfast.config.sections import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    CropConfig,
    DaliConfig,
    EvalConfig,
    FactorConfig,
    FlipConfig,
    HueConfig,
    LoaderConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    OrderConfig,
    ResizedCropConfig,
    RotationConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "CropConfig",
    "DaliConfig",
    "EvalConfig",
    "FactorConfig",
    "FlipConfig",
    "HueConfig",
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
    "config_to_toml",
    "known_keys",
    "preset_folder",
    "preset_names",
    "read_config_tree",
    "read_preset_tree",
]
