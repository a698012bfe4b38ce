"""unetfast: from a folder of images and masks to a trained U-Net, and numbers to trust.

    from pathlib import Path
    from unetfast import open_shards, pack, train

The names below are imported when they are first used, so that `import unetfast` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetfast.data.pack import pack as pack
    from unetfast.data.reader import open_shards as open_shards
    from unetfast.infer.evaluate import evaluate as evaluate
    from unetfast.infer.predict import predict as predict
    from unetfast.loader.build import build_loader as build_loader
    from unetfast.model.unet import UNet as UNet
    from unetfast.train.loop import train as train

_HOMES = {
    "pack": "unetfast.data.pack",
    "open_shards": "unetfast.data.reader",
    "build_loader": "unetfast.loader.build",
    "UNet": "unetfast.model.unet",
    "train": "unetfast.train.loop",
    "evaluate": "unetfast.infer.evaluate",
    "predict": "unetfast.infer.predict",
}
__all__ = ["UNet", "build_loader", "evaluate", "open_shards", "pack", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unetfast' has no attribute {name!r}")
