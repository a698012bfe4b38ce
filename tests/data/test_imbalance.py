"""Warnings about unequal and one-sided classes: the rule at its edges, the numbers, and settings that can be pasted."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from unetfast.config import apply_overrides, build_config
from unetfast.data.imbalance import (
    advise_on_classes,
    format_share,
    is_countered,
    list_one_sided,
    measure_imbalance,
    median_frequency_weights,
)
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.manifest import FORMAT_VERSION, Manifest, SplitInfo
from unetfast.data.pack import pack
from unetfast.data.toy.layouts import write_toy


def make_manifest(*, split_rule: str = "source", names: list[str] | None = None, **pixels: list[int]) -> Manifest:
    """Make a manifest whose splits have these pixels a class; a class with pixels is in 3 of 10 images."""
    count = len(next(iter(pixels.values())))
    labels = LabelTable(
        classes=tuple(
            ClassInfo(name=names[i] if names else f"class {i}", color=(i % 256, i // 256, 0), value=i) for i in range(count)
        )
    )
    splits = {
        name: SplitInfo(
            samples=10,
            groups=0,
            shards=(),
            index_xxh3="0" * 16,
            presence_xxh3="0" * 16,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            class_pixels=tuple(counts),
            class_images=tuple(3 * (number > 0) for number in counts),
            ignored_pixels=5,
            min_hw=(4, 4),
            max_hw=(8, 8),
        )
        for name, counts in pixels.items()
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset="folder",
        layout="made by code",
        labels=labels,
        num_classes=count,
        ignore_index=labels.ignore_index,
        mask_bits=labels.mask_bits,
        options={},
        split_rule=split_rule,
        source_xxh3="0" * 16,
        splits=splits,
    )


@pytest.mark.parametrize(
    ("pixels", "matters"),
    [
        ([9_901, 99], True),
        ([9_900, 100], False),  # 1 % is not rare
        ([79, 21], False),  # Carvana
        ([100] * 101, False),  # many, but equal
        ([100] * 150 + [11], False),  # rare, but not ten times as rare as the commonest
        ([100] * 150 + [10], True),
        ([1_000, 0, 0], False),  # classes that do not occur are no imbalance
        ([1], False),
    ],
)
def test_the_rule(pixels: list[int], matters: bool) -> None:
    manifest = make_manifest(train=pixels, val=pixels)
    imbalance = measure_imbalance(manifest)
    assert imbalance is not None
    assert imbalance.matters is matters
    assert (advise_on_classes(manifest) != []) is matters


def test_a_split_without_labelled_pixels_is_no_error() -> None:
    assert measure_imbalance(make_manifest(train=[0, 0], val=[1, 1])) is None
    assert list_one_sided(make_manifest(train=[5, 5])) == []


def test_the_warning_names_classes_and_numbers() -> None:
    manifest = make_manifest(train=[980, 15, 5, 0], val=[980, 15, 5, 0], names=["sky", "road", "kite", "moon"])
    (warning,) = advise_on_classes(manifest)
    first, *rest = warning.splitlines()
    assert first == (
        "unequal classes in train: one class has less than 1 % of the labelled pixels (kite 0.5 %); "
        "sky has 98.0 %, 196 times the rarest"
    )
    assert "weights sky 0.0153, road 1, kite 3, moon 1" in warning
    assert "kite is in 3 of 10 images" in warning
    assert "sky fills 98.0 %" in warning
    assert len(rest) == 5


def test_of_many_classes_the_ends_are_named() -> None:
    (warning,) = advise_on_classes(make_manifest(train=[100_000, *range(1, 150)], val=[1] * 150))
    assert "149 of 150 classes have less than 1 %" in warning
    assert "class 8 0.0072 % and 141 more)" in warning
    assert "weights from class 0 0.000755 to class 3 25.2, class 2 37.8, class 1 75.5" in warning
    assert max(map(len, warning.splitlines()[1:])) < 200


@pytest.mark.parametrize("overrides", [[], ["augment.crop.prob=0.5"], ["loss.cross_entropy=0", "loss.bce=1"]])
def test_each_setting_can_be_pasted_and_ends_the_warning(overrides: list[str]) -> None:
    manifest = make_manifest(train=[995, 5], val=[995, 5])
    config = build_config(apply_overrides({}, overrides))
    (warning,) = advise_on_classes(manifest, config)
    lines = [line.strip() for line in warning.splitlines() if line.strip().startswith("--set")]
    assert [re.split(r"\s{2,}", line)[0].split()[-1] for line in lines] == [
        "loss.class_weights=auto",
        "loader.sampler=balanced",
        "loss.dice=1",
        "augment.max_class_share=0.75",
    ]
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}", line)[0])
        assert words[::2] == ["--set"] * (len(words) // 2)
        changed = build_config(apply_overrides({}, overrides + words[1::2]))
        assert is_countered(changed)
        assert advise_on_classes(manifest, changed) == []


def test_weights_are_those_of_the_loss() -> None:
    from unetfast.model.losses import median_frequency_weights as weights_of_the_loss

    for pixels in ([1, 2, 3], [5, 0, 7, 1000], [4], [0, 0, 9, 1]):
        assert median_frequency_weights(pixels) == weights_of_the_loss(pixels)


def test_one_sided_classes_are_named() -> None:
    manifest = make_manifest(train=[5, 5, 0, 0, 4], val=[5, 0, 5, 5, 4], names=["a", "b", "c", "d", "e"])
    unseen, unscored = advise_on_classes(manifest)
    assert unseen.splitlines() == [
        "in val, but not in train: 2 classes (c, d); nothing can learn them, and they score 0",
        "  the split is the source's own: move samples from its val folder to train, and pack again",
    ]
    assert unscored == "in train, but not in val: 1 class (b); no score will tell how well they are found"
    seeded = make_manifest(train=[5, 0], val=[5, 5], split_rule="by group, seed 0, val fraction 0.1")
    assert "another --seed or a smaller --val-fraction" in advise_on_classes(seeded)[0]
    many = make_manifest(train=[5] * 12, val=[5] + [0] * 11)
    assert "11 classes (class 1, class 2, class 3, class 4, class 5, class 6, class 7, class 8 and 3 more)" in " ".join(
        advise_on_classes(many)
    )


def test_without_a_train_split_the_largest_is_counted() -> None:
    (warning,) = advise_on_classes(make_manifest(test=[995, 5]))
    assert warning.startswith("unequal classes in test:")


@pytest.mark.parametrize(("share", "text"), [(0.5, "50.0 %"), (0.01, "1.0 %"), (0.00571, "0.57 %"), (2.5e-5, "0.0025 %")])
def test_shares_keep_their_digits(share: float, text: str) -> None:
    assert format_share(share) == text


def test_packing_ends_with_the_warning(tmp_path: Path) -> None:
    write_toy(tmp_path / "src", "clevr", num_groups=4, seed=0, images_per_group=2)
    stream = io.StringIO()
    pack(tmp_path / "src", tmp_path / "shards", workers=1, console=Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("warning: unequal classes in train: "))
    assert "background has" in lines[first]
    assert any("--set loss.class_weights=auto" in line for line in lines[first:])
    assert lines[-1].startswith("next: unetfast train")
