"""The network and its loss."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from unetfast.config.section import Section

_U_NET_PARTS = ("block", "attention", "deep_supervision", "encoder")


class ModelConfig(Section):
    """The U-Net (Ronneberger et al. 2015) or another network. Classes come from the manifest. See docs/models.md."""

    base_channels: int = Field(64, gt=0)
    depth: int = Field(4, ge=1, le=8)  # number of down-samplings
    convs_per_block: int = Field(2, ge=1, le=8)
    conv_order: Literal["conv-norm-act", "conv-act-norm"] = "conv-norm-act"
    norm: Literal["batch", "group", "none"] = "batch"
    # one name for all levels, or one per level from the top
    down: Literal["maxpool", "strided", "none"] | list[Literal["maxpool", "strided", "none"]] = "maxpool"
    up: Literal["transposed", "bilinear"] = "transposed"  # bilinear halves the decoder's widths ("/2")
    head_kernel: Literal[1, 3] = 1
    dropout: float = Field(0.0, ge=0, lt=1)  # channel dropout in the bottleneck and the decoder blocks
    block: Literal["plain", "residual", "separable"] = "plain"
    attention: bool = False  # attention gates on the skips (Oktay et al. 2018)
    deep_supervision: float = Field(0.0, ge=0, le=1)  # weight of the auxiliary heads' loss; 0: no such heads
    encoder: Literal["plain", "resnet18", "resnet34", "resnet50"] = "plain"
    encoder_weights: str = ""  # file of weights for a resnet encoder
    factory: str = ""  # "package:function" that builds any other network; the keys above then have no part
    factory_args: dict[str, bool | int | float | str | list[int] | list[float] | list[str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.down, list) and len(self.down) != self.depth:
            raise ValueError(f"model.down names {len(self.down)} levels, model.depth is {self.depth}")
        if self.encoder_weights and self.encoder == "plain":
            raise ValueError(
                f"model.encoder_weights = {self.encoder_weights!r} are of a ResNet: name it by model.encoder = "
                '"resnet18", "resnet34" or "resnet50"'
            )
        if self.factory_args and not self.factory:
            raise ValueError(f"model.factory_args = {self.factory_args}: there is no model.factory that takes them")
        # sizes stand in presets, and may stay there; these somebody asked for
        fields = type(self).model_fields
        asked = [name for name in _U_NET_PARTS if getattr(self, name) != fields[name].default]
        if self.factory and asked:
            raise ValueError(
                f"model.{asked[0]} is a part of the U-Net, and model.factory builds another network: leave one out"
            )
        return self


class LossConfig(Section):
    """A weighted sum of losses; a weight of 0 leaves one out."""

    cross_entropy: float = Field(1.0, ge=0)
    bce: float = Field(0.0, ge=0)  # binary cross-entropy, one-hot per class
    dice: float = Field(0.0, ge=0)  # soft Dice
    focal: float = Field(0.0, ge=0)  # Lin et al. 2017
    focal_gamma: float = Field(2.0, ge=0)
    tversky: float = Field(0.0, ge=0)  # Salehi et al. 2017
    tversky_alpha: float = Field(0.3, ge=0)  # of false positives
    tversky_beta: float = Field(0.7, ge=0)  # of false negatives
    lovasz: float = Field(0.0, ge=0)  # Lovasz-softmax (Berman et al. 2018)
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # of the cross-entropy
    # "auto": from the manifest's pixel counts, median-frequency balancing (Eigen and Fergus 2015)
    class_weights: Literal["none", "auto"] | list[float] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any((self.cross_entropy, self.bce, self.dice, self.focal, self.tversky, self.lovasz)):
            raise ValueError("every weight in [loss] is 0: give cross_entropy, bce, dice, focal, tversky or lovasz a weight")
        weights = self.class_weights
        if isinstance(weights, list) and (min(weights, default=0) < 0 or not any(weights)):
            raise ValueError(f"loss.class_weights = {weights}: a number of 0 or more for each class, not all 0")
        return self
