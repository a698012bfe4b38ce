"""Which classes are rare or one-sided, and what to set against it; from the manifest's counts alone.

The rule: classes are unequal where the rarest one that occurs has less than 1 % of the labelled pixels and the commonest has
at least ten times as many. (A hundred classes of 1 % each are many, not unequal; with any class a hundred times as frequent as
another, the rarer one is below 1 %.)
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from unetfast.config import AugmentConfig, Config, LossConfig
from unetfast.data.manifest import Manifest, SplitInfo

RARE_SHARE = 0.01
LEAST_RATIO = 10.0
MAX_NAMED = 8
# losses that count each class, or each hard pixel, and not only the many easy ones
_REGION_LOSSES = ("dice", "focal", "tversky", "lovasz")


@dataclass(frozen=True, slots=True)
class Imbalance:
    """How unequal the classes of a split are.

    Args:
        split: that was counted: "train", or the largest where there is none.
        shares: of the labelled pixels, by class id; 0 for a class that does not occur.
        occurring: ids of the classes that do, the rarest first.
    """

    split: str
    shares: tuple[float, ...]
    occurring: tuple[int, ...]

    @property
    def rarest(self) -> int:
        return self.occurring[0]

    @property
    def commonest(self) -> int:
        return self.occurring[-1]

    @property
    def ratio(self) -> float:
        """Pixels of the commonest class to pixels of the rarest."""
        return self.shares[self.commonest] / self.shares[self.rarest]

    @property
    def matters(self) -> bool:
        """Whether the rule at the top of this file calls the classes unequal."""
        return self.shares[self.rarest] < RARE_SHARE and self.ratio >= LEAST_RATIO


def measure_imbalance(manifest: Manifest) -> Imbalance | None:
    """Measure how unequal the classes are; None where a split has no labelled pixel."""
    name = "train" if "train" in manifest.splits else max(manifest.splits, key=lambda split: manifest.splits[split].samples)
    pixels = manifest.splits[name].class_pixels
    total = sum(pixels)
    if not total:
        return None
    occurring = sorted((class_id for class_id, count in enumerate(pixels) if count), key=lambda class_id: pixels[class_id])
    return Imbalance(name, tuple(count / total for count in pixels), tuple(occurring))


def advise_on_classes(manifest: Manifest, config: Config | None = None) -> list[str]:
    """Say what is wrong with the balance of classes and what to set, ready to be pasted behind `unetfast train`.

    Args:
        manifest: of the shard folder.
        config: of the run that begins; where it acts against imbalance already, no settings are listed. None is a run with the
            defaults.

    Returns:
        Warnings, some of several lines; empty where all is well.
    """
    warnings = []
    imbalance = measure_imbalance(manifest)
    if imbalance is not None and imbalance.matters and not (config is not None and is_countered(config)):
        warnings.append("\n".join([_say_imbalance(manifest, imbalance), *_list_settings(manifest, imbalance, config)]))
    return warnings + list_one_sided(manifest)


def is_countered(config: Config) -> bool:
    """Whether a config does something against unequal classes: weights, a loss by class, the sampler, or crops."""
    return (
        config.loss.class_weights != "none"
        or any(getattr(config.loss, name) > 0 for name in _REGION_LOSSES)
        or config.loader.sampler == "balanced"
        or config.augment.max_class_share < 1
    )


def median_frequency_weights(class_pixels: Sequence[int]) -> list[float]:
    """Compute what `loss.class_weights = "auto"` gives: median of the frequencies / frequency (Eigen and Fergus 2015).

    A class without a pixel gets 1 and has no part in the median. The loss computes its own (model/): this is for telling them.
    """
    median = statistics.median(count for count in class_pixels if count)
    return [median / count if count else 1.0 for count in class_pixels]


def list_one_sided(manifest: Manifest) -> list[str]:
    """Name the classes that only one of train and val shows; empty where one of the splits is missing."""
    if not {"train", "val"} <= manifest.splits.keys():
        return []
    train, val = (_find_occurring(manifest.splits[name]) for name in ("train", "val"))
    warnings = []
    if unseen := sorted(val - train):
        warnings.append(
            f"in val, but not in train: {_name(manifest, unseen)}; nothing can learn them, and they score 0\n"
            f"  {_how_to_split(manifest)}"
        )
    if unscored := sorted(train - val):
        warnings.append(f"in train, but not in val: {_name(manifest, unscored)}; no score will tell how well they are found")
    return warnings


def _find_occurring(split: SplitInfo) -> set[int]:
    return {class_id for class_id, count in enumerate(split.class_pixels) if count}


def _how_to_split(manifest: Manifest) -> str:
    if manifest.split_rule == "source":
        return "the split is the source's own: move samples from its val folder to train, and pack again"
    return "pack again with another --seed or a smaller --val-fraction"


def _say_imbalance(manifest: Manifest, imbalance: Imbalance) -> str:
    names, shares = manifest.labels.names, imbalance.shares
    rare = [class_id for class_id in imbalance.occurring if shares[class_id] < RARE_SHARE]
    listed = ", ".join(f"{names[class_id]} {format_share(shares[class_id])}" for class_id in rare[:MAX_NAMED])
    more = f" and {len(rare) - MAX_NAMED} more" if len(rare) > MAX_NAMED else ""
    count = f"{len(rare)} of {len(imbalance.occurring)} classes have" if len(rare) > 1 else "one class has"
    return (
        f"unequal classes in {imbalance.split}: {count} less than 1 % of the labelled pixels ({listed}{more}); "
        f"{names[imbalance.commonest]} has {format_share(shares[imbalance.commonest])}, {imbalance.ratio:,.0f} times the rarest"
    )


def _list_settings(manifest: Manifest, imbalance: Imbalance, config: Config | None) -> list[str]:
    """List what helps, each as it is typed and with what it would do here."""
    loss, augment = (LossConfig(), AugmentConfig()) if config is None else (config.loss, config.augment)
    split, names = manifest.splits[imbalance.split], manifest.labels.names
    crop = "" if augment.crop.prob or augment.resized_crop.prob else "--set augment.resized_crop.prob=1 "
    filled = f"{names[imbalance.commonest]} fills {format_share(imbalance.shares[imbalance.commonest])}"
    rarest = f"{names[imbalance.rarest]} is in {split.class_images[imbalance.rarest]:,} of {split.samples:,} images"
    settings = []
    if loss.cross_entropy or loss.bce:
        settings.append(("--set loss.class_weights=auto", f"weights {_say_weights(manifest, imbalance)}"))
    settings += [
        ("--set loader.sampler=balanced", f"images with rare classes come up more often; {rarest}"),
        ("--set loss.dice=1", "each class counts once, whatever its size"),
        (
            f"{crop}--set augment.max_class_share=0.75",
            f"crops that one class fills are drawn anew, and the smaller they are, the better; {filled}",
        ),
    ]
    width = max(len(setting) for setting, _ in settings)
    unless = ", where the config does not do it already" if config is None else ""
    return [f"  what helps, one or more of{unless}:", *(f"    {setting.ljust(width)}  {why}" for setting, why in settings)]


def _say_weights(manifest: Manifest, imbalance: Imbalance) -> str:
    """Write the weights of `class_weights = "auto"`: all of a few classes, else those at both ends."""
    weights, names = median_frequency_weights(manifest.splits[imbalance.split].class_pixels), manifest.labels.names
    if len(names) <= MAX_NAMED:
        return ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
    ends = [imbalance.commonest, *imbalance.occurring[2::-1]]
    first, *rest = (f"{names[class_id]} {weights[class_id]:.3g}" for class_id in ends)
    return f"from {first} to {', '.join(rest)}"


def _name(manifest: Manifest, class_ids: list[int]) -> str:
    names = ", ".join(manifest.labels.names[class_id] for class_id in class_ids[:MAX_NAMED])
    more = f" and {len(class_ids) - MAX_NAMED} more" if len(class_ids) > MAX_NAMED else ""
    return f"{len(class_ids)} class{'es' if len(class_ids) > 1 else ''} ({names}{more})"


def format_share(share: float) -> str:
    """Write a share in per cent, with as many digits as a small one needs."""
    return f"{100 * share:.1f} %" if share >= RARE_SHARE else f"{100 * share:.2g} %"
