"""unetfast: from a folder of images and masks to a trained U-Net, and numbers to trust.

    import unetfast

    unetfast.pack("Data", "shards")
    result = unetfast.train("shards", "runs/mine", settings={"train.epochs": 3})
    scores = unetfast.evaluate("shards", "runs/mine/best.pt")
    unetfast.predict("runs/mine/best.pt", ["photos"], "pred", overlay=True)

docs/api.md tells them all. The names below are imported when they are first used, so that `import unetfast` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetfast.data.pack import pack as pack
    from unetfast.data.reader import open_shards as open_shards
    from unetfast.infer.evaluate_checkpoint import score_checkpoint as evaluate
    from unetfast.infer.predict import predict as predict
    from unetfast.loader.build import build_loader as build_loader
    from unetfast.model.unet import UNet as UNet
    from unetfast.train.api import train as train

# public name -> module, and the name there; `train` is the package of that name, which can be called
_HOMES = {
    "pack": ("unetfast.data.pack", "pack"),
    "open_shards": ("unetfast.data.reader", "open_shards"),
    "build_loader": ("unetfast.loader.build", "build_loader"),
    "UNet": ("unetfast.model.unet", "UNet"),
    "evaluate": ("unetfast.infer.evaluate_checkpoint", "score_checkpoint"),
    "predict": ("unetfast.infer.predict", "predict"),
}
__all__ = ["UNet", "build_loader", "evaluate", "open_shards", "pack", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("unetfast.train")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'unetfast' has no attribute {name!r}")
