"""Random changes of training samples."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from unetfast.config.section import Probability, Range, Section


class FlipConfig(Section):
    prob: Probability = 0.0


class RotationConfig(Section):
    prob: Probability = 0.0
    degrees: Range = (-35.0, 35.0)  # counter-clockwise


class ResizedCropConfig(Section):
    """Random resized crop (Szegedy et al. 2014): a box of random area and aspect, resized to the training size."""

    prob: Probability = 0.0
    area: Range = (0.5, 1.0)  # share of the image's area
    aspect: Range = (0.75, 1.3333333333333333)  # stretch of the box's width / height relative to the image's own


class CropConfig(Section):
    """Plain random crop: a box of `size_hw` stored pixels at a random place, not enlarged or shrunk first."""

    prob: Probability = 0.0
    size_hw: Annotated[tuple[int, int], Field(strict=False)] = (0, 0)  # (0, 0): loader.size_hw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.size_hw) < 1 and self.size_hw != (0, 0):
            raise ValueError(f"augment.crop.size_hw = {list(self.size_hw)}: both above 0, or [0, 0] for loader.size_hw")
        return self


class FactorConfig(Section):
    """A factor drawn uniformly from `range`; 1 changes nothing."""

    prob: Probability = 0.0
    range: Range = (0.8, 1.25)


class HueConfig(Section):
    prob: Probability = 0.0
    degrees: Range = (-18.0, 18.0)


class AugmentConfig(Section):
    """Random changes of training samples; each with a probability (0 = off) and a range."""

    resized_crop: ResizedCropConfig = ResizedCropConfig()
    crop: CropConfig = CropConfig()
    scale: FactorConfig = FactorConfig()
    hflip: FlipConfig = FlipConfig()
    vflip: FlipConfig = FlipConfig()
    rotation: RotationConfig = RotationConfig()
    brightness: FactorConfig = FactorConfig()
    contrast: FactorConfig = FactorConfig()
    saturation: FactorConfig = FactorConfig()
    hue: HueConfig = HueConfig()
    # of the crops drawn for a sample, take one in which no class holds more than this share of the labelled pixels; 1: any
    max_class_share: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resized_crop.prob > 0 and self.crop.prob > 0:
            raise ValueError("augment.resized_crop and augment.crop exclude each other: set the prob of one to 0")
        for name in ("resized_crop.area", "resized_crop.aspect", "scale.range", "rotation.degrees", "brightness.range"):
            self._check_range(name)
        for name in ("contrast.range", "saturation.range", "hue.degrees"):
            self._check_range(name)
        if self.resized_crop.area[1] > 1:
            raise ValueError("augment.resized_crop.area goes past 1: a crop cannot be larger than its image")
        if self.max_class_share < 1 and self.resized_crop.prob == self.crop.prob == 0:
            raise ValueError(
                f"augment.max_class_share = {self.max_class_share:g} chooses among crops, and none is drawn: set the prob of "
                "augment.crop or augment.resized_crop, such as --set augment.resized_crop.prob=1"
            )
        return self

    def _check_range(self, name: str) -> None:
        section, field = name.split(".")
        low, high = getattr(getattr(self, section), field)
        if low > high:
            raise ValueError(f"augment.{name} = [{low}, {high}]: the first number must not exceed the second")
        if field in ("area", "aspect", "range") and low <= 0 and not (section in ("contrast", "saturation") and low == 0):
            raise ValueError(f"augment.{name} = [{low}, {high}]: must be above 0")
