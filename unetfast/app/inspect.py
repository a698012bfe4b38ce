"""`unetfast inspect`: what a shard folder holds, whether it is sound, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unetfast.data.manifest import Manifest
from unetfast.data.options import PackOptions
from unetfast.data.packreport import build_class_lines, build_split_lines, format_classes, show
from unetfast.data.reader import ShardFolder, open_shards
from unetfast.data.sources.base import SourceOptions
from unetfast.data.verify import verify_shards
from unetfast.errors import UserError
from unetfast.viz.sheet import SheetTile, draw_sheet

SHEET_SAMPLES = 12


@dataclass(slots=True)
class InspectReport:
    """What was found in a shard folder.

    Args:
        folder: that was looked at.
        manifest: its manifest.
        verified: whether every byte was checked.
        problems: what is wrong; empty where nothing is, or nothing was verified.
        sheet: the contact sheet that was written.
    """

    folder: Path
    manifest: Manifest
    verified: bool = False
    problems: list[str] = field(default_factory=list)
    sheet: Path | None = None


def inspect_shards(
    folder: Path,
    *,
    verify: bool = False,
    sheet: Path | None = None,
    console: Console | None = None,
    results: Console | None = None,
) -> InspectReport:
    """Say what a shard folder holds; verify it; draw a contact sheet.

    Args:
        folder: the shard folder.
        verify: read and decode everything, test every checksum.
        sheet: PNG to write the contact sheet to.
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
    if verify:
        report.verified, report.problems = True, _verify(shards, console)
        for problem in report.problems:
            show(results, f"problem: {problem}")
        num_samples = sum(split.samples for split in shards.manifest.splits.values())
        verdict = f"{len(report.problems)} problems found; pack the folder again" if report.problems else "all is well"
        show(results, f"verified: every byte, header and pixel of {num_samples:,} samples: {verdict}")
    if sheet is not None:
        report.sheet = write_sheet(shards, sheet)
        show(results, f"sheet: {sheet}")
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


def write_sheet(shards: ShardFolder, path: Path) -> Path:
    """Write a contact sheet of up to 12 samples, taken evenly from all splits.

    Raises:
        UserError: the file is no PNG by its name, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: give a name that ends in .png")
    manifest = shards.manifest
    tiles = [tile for name in manifest.splits for tile in _read_tiles(shards, name, SHEET_SAMPLES // len(manifest.splits))]
    picture = draw_sheet(tiles, manifest.labels.palette, manifest.labels.names, manifest.ignore_index)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise UserError(f"--sheet {path}: cannot be written ({error.strerror or error}); choose another place") from None
    return path


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
