"""`unetfast inspect`: what a shard folder holds, whether it is sound, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from unetfast.config import build_config, preset_names, read_preset_tree
from unetfast.data.imbalance import advise_on_classes
from unetfast.data.manifest import Manifest
from unetfast.data.options import PackOptions
from unetfast.data.packreport import build_class_lines, build_split_lines, format_classes, show
from unetfast.data.reader import ShardFolder, open_shards
from unetfast.data.sources.base import SourceOptions
from unetfast.data.verify import verify_shards
from unetfast.errors import UserError
from unetfast.viz.sheet import SheetTile, draw_page, draw_sheet

SHEET_SAMPLES = 12
FIGURES_PX = (870, 590)  # widths of the two figures below a sheet; together as wide as its two columns, give or take


@dataclass(slots=True)
class InspectReport:
    """What was found in a shard folder.

    Args:
        folder: that was looked at.
        manifest: its manifest.
        verified: whether every byte was checked.
        problems: what is wrong; empty where nothing is, or nothing was verified.
        warnings: what about the classes will stand in a training's way.
        sheet: the contact sheet that was written.
    """

    folder: Path
    manifest: Manifest
    verified: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sheet: Path | None = None


def inspect_shards(
    folder: Path,
    *,
    verify: bool = False,
    sheet: Path | None = None,
    console: Console | None = None,
    results: Console | None = None,
) -> InspectReport:
    """Say what a shard folder holds, and which classes are rare or one-sided; verify it; draw a contact sheet.

    Args:
        folder: the shard folder.
        verify: read and decode everything, test every checksum.
        sheet: PNG to write the contact sheet, with its figures of classes and sizes, to.
        console: for progress; None is silent.
        results: for the summary; None is stdout.

    Raises:
        UserError: the folder is no shard folder, or the sheet cannot be written.
    """
    console = console or Console(quiet=True)
    results = results or Console(highlight=False)
    shards = open_shards(folder)
    report = InspectReport(shards.path, shards.manifest)
    for line in describe_shards(shards):
        show(results, line)
    report.warnings = advise_on_classes(shards.manifest)
    for warning in report.warnings:
        show(results, f"warning: {warning}")
    if verify:
        report.verified, report.problems = True, _verify(shards, console)
        for problem in report.problems:
            show(results, f"problem: {problem}")
        num_samples = sum(split.samples for split in shards.manifest.splits.values())
        verdict = f"{len(report.problems)} problems found; pack the folder again" if report.problems else "all is well"
        show(results, f"verified: every byte, header and pixel of {num_samples:,} samples: {verdict}")
    if sheet is not None:
        report.sheet = write_sheet(shards, sheet)
        show(results, f"sheet: {sheet} (samples with masks and legend, shares of the classes, sizes of the samples)")
    return report


def describe_shards(shards: ShardFolder) -> list[str]:
    """Describe a shard folder in lines: data set, splits, classes, normalisation, how it was packed."""
    manifest = shards.manifest
    lines = [
        f"{shards.path}/  {manifest.dataset} ({manifest.layout}), {format_classes(manifest.num_classes)}, "
        f"masks of {manifest.mask_bits} bit{'s' if manifest.mask_bits > 1 else ''} a pixel, digest {manifest.digest()}",
        f"  split: {'as the source has it' if manifest.split_rule == 'source' else manifest.split_rule}",
    ]
    lines += [f"  {line}" for line in build_split_lines(manifest)]
    for name, split in manifest.splits.items():
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (split.mean, split.std))
        lines.append(f"  {name}: mean {mean}, std {std} (R G B, of values in 0..1)")
    lines += [f"  {line}" for line in build_class_lines(manifest)]
    lines.append(f"  packed with {_describe_options(manifest)}")
    return lines


def write_sheet(shards: ShardFolder, path: Path, *, num_samples: int = SHEET_SAMPLES) -> Path:
    """Write a contact sheet of some samples, and below it the classes' shares and all sizes.

    Args:
        shards: the folder.
        path: of the PNG.
        num_samples: at most so many, taken evenly from all splits.

    Raises:
        UserError: the file is no PNG by its name, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: give a name that ends in .png")
    manifest = shards.manifest
    tiles = [
        tile for name in manifest.splits for tile in _read_tiles(shards, name, max(1, num_samples // len(manifest.splits)))
    ]
    sheet = draw_sheet(tiles, manifest.labels.palette, manifest.labels.names, manifest.ignore_index)
    counts = ", ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    heading = f"{manifest.dataset}: {counts}, {format_classes(manifest.num_classes)}"
    picture = draw_page(heading, sheet, _draw_figures(shards))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise UserError(f"--sheet {path}: cannot be written ({error.strerror or error}); choose another place") from None
    return path


def find_training_size(dataset: str) -> tuple[tuple[int, int], str]:
    """Find the training size, height and width in pixels, that a data set's preset has, and what to call it."""
    name = dataset if dataset in preset_names() else "folder"
    return build_config(read_preset_tree(name)).loader.size_hw, f"training size of preset {name}"


def _draw_figures(shards: ShardFolder) -> list[Image.Image]:
    """Draw the shares of the classes over all splits, and the sizes of all samples."""
    from unetfast.viz.histogram import draw_class_histogram  # matplotlib's figures take a second to import
    from unetfast.viz.scatter import draw_size_scatter

    labels, splits = shards.manifest.labels, shards.manifest.splits.values()
    histogram = draw_class_histogram(
        labels.names,
        [sum(counts) for counts in zip(*(split.class_pixels for split in splits), strict=True)],
        [sum(counts) for counts in zip(*(split.class_images for split in splits), strict=True)],
        labels.palette,
        num_images=sum(split.samples for split in splits),
        width_px=FIGURES_PX[0],
    )
    sizes_hw = {}
    for name in shards.manifest.splits:
        with shards.split(name) as reader:
            sizes_hw[name] = np.stack([reader.rows["height"], reader.rows["width"]], axis=1).astype(np.int64)
    training_hw, training_name = find_training_size(shards.manifest.dataset)
    scatter = draw_size_scatter(sizes_hw, training_hw=training_hw, training_name=training_name, width_px=FIGURES_PX[1])
    return [histogram, scatter]


def _read_tiles(shards: ShardFolder, name: str, count: int) -> list[SheetTile]:
    with shards.split(name) as reader:
        count = min(count, reader.num_samples)
        chosen = [(2 * place + 1) * reader.num_samples // (2 * count) for place in range(count)]
        return [
            SheetTile(
                reader.decode_image(sample),
                reader.decode_mask(sample),
                f"{name} {sample} · {reader.read_json(sample)['source_path']} · "
                f"{reader.rows[sample]['width']}x{reader.rows[sample]['height']}",
            )
            for sample in chosen
        ]


def _verify(shards: ShardFolder, console: Console) -> list[str]:
    total = sum(split.samples for split in shards.manifest.splits.values())
    if not console.is_terminal or console.quiet:
        return verify_shards(shards.path)
    with Progress(console=console) as progress:
        task = progress.add_task("verifying", total=total)
        return verify_shards(shards.path, report=lambda count: progress.advance(task, count))


def _describe_options(manifest: Manifest) -> str:
    """List the options of packing that are not the defaults."""
    defaults = PackOptions().to_tree(SourceOptions())
    changed = [
        f"{key} {_tell(value)}" for key, value in manifest.options.items() if key not in defaults or value != defaults[key]
    ]
    return ", ".join(changed) or "the default options"


def _tell(value: object) -> str:
    return "none" if value is None or value == [] else str(value)
