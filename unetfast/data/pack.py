"""Source folder -> shard folder: the packer.

Scan, plan, pack shards (in worker processes), put the manifest together: read `pack_scan` from top to bottom. The same source
and options give the same bytes, for any number of workers, any place of the output, after any interruption, because each shard
follows from the plan alone, and the manifest from the shards' results alone.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from unetfast.data.assemble import find_warnings, write_splits
from unetfast.data.encode import SampleEncoder
from unetfast.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    manifest_to_json,
    read_manifest,
)
from unetfast.data.options import PackOptions
from unetfast.data.packdir import LOG_NAME, SKIPPED_NAME, PackFolder, check_place, naming_disk_errors
from unetfast.data.packparts import PartGatherer, cut_last
from unetfast.data.packreport import PackProgress, PackReport, show, show_plan, show_report
from unetfast.data.packshard import ShardPacker, ShardResult
from unetfast.data.plan import MIB, PackPlan, ShardPlan, build_plan
from unetfast.data.sources.base import ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.detect import scan_source
from unetfast.data.sources.named import scan_named
from unetfast.data.workers import count_cores, run_tasks
from unetfast.errors import UserError

__all__ = ["PackOptions", "PackReport", "check_problems", "pack", "pack_folders", "pack_scan"]

PACKER_VERSION = 1  # changes when the same plan would give other bytes
_MAX_TOLD = 5
_IN_PROCESS_BYTES = 4 * MIB  # of sources; less is packed in the second that worker processes take to start
_DEFAULT_SOURCE = SourceOptions()
_DEFAULT_OPTIONS = PackOptions()


def pack(
    src: Path,
    out: Path,
    *,
    dataset: str = "auto",
    source_options: SourceOptions = _DEFAULT_SOURCE,
    options: PackOptions = _DEFAULT_OPTIONS,
    workers: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> PackReport:
    """Pack a source folder into a shard folder. An interrupted packing goes on when it is called again.

    Args:
        src: the data set's folder.
        out: the shard folder; made when missing.
        dataset: layout of `src`; "auto" detects it.
        source_options: what the user says about the source's masks.
        options: what shapes the shards.
        workers: processes, never more than there are shards; 1 packs in this process, and so does 0 where little is to be
            done (4 MiB), else it is one for each core.
        dry_run: scan, plan and tell; write nothing.
        overwrite: replace a packing of something else; files of others are never removed.
        console: for progress and summary; None is silent.

    Raises:
        UserError: the source is not understood, a sample is bad, the folder holds something else, the disk is full, ...; says
            what to do.
    """
    src, out = Path(src), Path(out)
    check_place(src, out)
    scan = scan_source(src, dataset, source_options)
    return pack_scan(
        scan,
        src,
        out,
        source_options=source_options,
        options=options,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        console=console,
    )


def pack_folders(
    folders: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    source_options: SourceOptions = _DEFAULT_SOURCE,
    options: PackOptions = _DEFAULT_OPTIONS,
    workers: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> PackReport:
    """Pack folders of images and masks that are named one by one; other arguments and errors as of `pack`.

    Args:
        folders: split ("train", "val", "test", or "" to be split) -> folder of images, folder of masks.
        out: the shard folder; made when missing; in none of those folders.
    """
    root, scan = scan_named(folders, source_options)
    for place in {place for pair in folders.values() for place in pair}:
        check_place(place, out)
    return pack_scan(
        scan,
        root,
        out,
        source_options=source_options,
        options=options,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        console=console,
    )


def pack_scan(
    scan: SourceScan,
    src: Path,
    out: Path,
    *,
    source_options: SourceOptions = _DEFAULT_SOURCE,
    options: PackOptions = _DEFAULT_OPTIONS,
    workers: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> PackReport:
    """Pack a source that was scanned already; arguments and errors as of `pack`."""
    console = console or Console(quiet=True)
    start, started = time.monotonic(), datetime.now(UTC)
    check_problems(scan, options)
    plan = build_plan(scan, src, options)
    show_plan(console, scan, plan)
    report = PackReport(out, "dry-run", plan.count_samples(), source_bytes=plan.source_bytes, warnings=list(plan.warnings))
    report.source_notes = dict(scan.notes)
    if dry_run:
        report.num_skipped = len(scan.problems)
        show_report(console, report)
        return report
    folder = PackFolder(out)
    with ExitStack() as stack:
        with naming_disk_errors(out):
            stack.enter_context(folder.locked())
            complete = folder.begin(_build_plan_tree(scan, plan, source_options, options), overwrite=overwrite)
        if not complete:
            progress = _pack_shards(folder, scan, plan, options, workers, console)
            report.images_per_s = progress.images_per_s if progress.packed else 0.0
            with naming_disk_errors(out):
                results = [_read_result(folder, shard, options) for shard in plan.shards]
                manifest = _build_manifest(folder, scan, plan, source_options, options, _present(results))
                skipped = _write_skipped(folder, src, scan, _present(results))
                _fill_report(report, manifest, _present(results))
                report.seconds = time.monotonic() - start
                _write_log(folder, plan, started, report)
                folder.publish(out / MANIFEST_NAME, manifest_to_json(manifest).encode())
                folder.end()
            report.status, report.num_skipped = "packed", skipped
    if complete:
        _fill_complete(report)
    show_report(console, report, told=plan.warnings)
    return report


def check_problems(scan: SourceScan, options: PackOptions) -> None:
    """Refuse pairs that could not be formed, or count them where bad samples are skipped.

    Raises:
        UserError: there are some; names the first ones and says how many there are.
    """
    problems = scan.problems
    if not problems:
        return
    if options.on_bad == "error":
        raise UserError(_tell_problems(problems))
    _check_bad(len(problems), scan, options, problems[0].reason, problems[0].file)


def _tell_problems(problems: list[ScanProblem]) -> str:
    told = "\n".join(f"{problem.file}: {problem.reason}\n  {problem.remedy}" for problem in problems[:_MAX_TOLD])
    rest = len(problems) - _MAX_TOLD
    if rest > 0:
        told += f"\n... and {rest:,} more ({len(problems):,} in all)"
    return f"{told}\n  To leave such samples out: --on-bad skip"


def _check_bad(num_bad: int, scan: SourceScan, options: PackOptions, reason: str, file: str) -> None:
    total = len(scan.samples) + len(scan.problems)
    allowed = options.allowed_bad(total)
    if num_bad > allowed:
        given = "" if options.max_bad is not None else ", a tenth of the samples"
        raise UserError(
            f"{num_bad:,} of {total:,} samples are bad, more than may be skipped (--max-bad {allowed}{given})\n"
            f"  the first: {file}: {reason}\n"
            "  see whether the source was taken for the right data set; to go on all the same, raise --max-bad"
        )


def _build_plan_tree(scan: SourceScan, plan: PackPlan, source_options: SourceOptions, options: PackOptions) -> dict[str, Any]:
    """List all that shapes the bytes, as JSON."""
    tree = {
        "packer_version": PACKER_VERSION,
        "format_version": FORMAT_VERSION,
        "dataset": scan.dataset,
        "layout": scan.layout,
        "options": options.to_tree(source_options),
        "labels": scan.labels.model_dump(mode="json"),
        "split_rule": plan.split_rule,
        "source_xxh3": plan.source_xxh3,
        "listing_xxh3": plan.listing_xxh3,
    }
    plain: dict[str, Any] = json.loads(json.dumps(tree))
    return plain


def _pack_shards(
    folder: PackFolder, scan: SourceScan, plan: PackPlan, options: PackOptions, workers: int, console: Console
) -> PackProgress:
    """Pack the shards that are not done yet."""
    todo: list[ShardPlan] = []
    num_done, num_bad = 0, len(scan.problems)
    first: tuple[str, str] | None = None
    for shard in plan.shards:
        result = _read_result(folder, shard, options)
        if result is None:
            todo.append(shard)
        else:
            num_done += len(shard.samples)
            num_bad += len(result.skipped)
            first = first or next(iter(result.skipped), None)
    if num_done:
        show(console, f"  going on with an interrupted packing: {num_done:,} samples are done")
    if num_bad and first:
        _check_bad(num_bad, scan, options, first[1], first[0])
    packer = ShardPacker(SampleEncoder(scan.labels, scan.read_mask, options), folder.out)
    num_workers = min(workers or _choose_workers(todo), len(todo))
    gatherer = PartGatherer(packer, todo)
    with PackProgress(console, plan.num_samples, num_done) as progress:
        tasks = cut_last(todo, num_workers, options)
        for part in run_tasks(tasks, packer, num_workers=num_workers, report=progress.add):
            done = gatherer.take(part)
            if done is None:
                continue
            num_bad += done.num_skipped
            if done.num_skipped:
                result = _read_result(folder, done.shard, options)
                file, reason = result.skipped[0] if result else ("", "")
                _check_bad(num_bad, scan, options, reason, file)
    return progress


def _choose_workers(todo: list[ShardPlan]) -> int:
    num_bytes = sum(ref.num_bytes for shard in todo for ref in shard.samples)
    return 1 if num_bytes < _IN_PROCESS_BYTES else count_cores()


def _read_result(folder: PackFolder, shard: ShardPlan, options: PackOptions) -> ShardResult | None:
    """Read what a finished shard left; None where it is not finished, or not as the options want it."""
    try:
        result = ShardResult.from_json(folder.result_path(shard.name).read_bytes())
        sizes = [(folder.out / f"{shard.name}{suffix}").stat().st_size for suffix in (".tar", ".idx") if result.num_samples]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if result.num_samples and sizes[0] != result.num_bytes:
        return None
    return None if result.skipped and options.on_bad == "error" else result


def _present(results: list[ShardResult | None]) -> list[ShardResult]:
    found = [result for result in results if result is not None]
    if len(found) < len(results):
        raise UserError("a shard vanished while the folder was packed; repeat the command")
    return found


def _build_manifest(
    folder: PackFolder,
    scan: SourceScan,
    plan: PackPlan,
    source_options: SourceOptions,
    options: PackOptions,
    results: list[ShardResult],
) -> Manifest:
    """Write index and presence of every split, and build the manifest."""
    splits = write_splits(folder, plan, results)
    if not splits:
        raise UserError(f"no sample is left: all {plan.num_samples:,} are bad. Mend the source, or name another --dataset")
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset=scan.dataset,
        layout=scan.layout,
        labels=scan.labels,
        num_classes=scan.labels.num_classes,
        ignore_index=scan.labels.ignore_index,
        mask_bits=options.stored_mask_bits(scan.labels),
        options=options.to_tree(source_options),
        split_rule=plan.split_rule,
        source_xxh3=plan.source_xxh3,
        splits=splits,
    )


def _write_skipped(folder: PackFolder, src: Path, scan: SourceScan, results: list[ShardResult]) -> int:
    """Write skipped.jsonl, files relative to the source; returns the number of bad samples."""
    pairs = [(problem.file, problem.reason) for problem in scan.problems]
    pairs += [pair for result in results for pair in result.skipped]
    prefix = f"{src}/"
    lines = [json.dumps({"file": file.removeprefix(prefix), "reason": reason}) for file, reason in pairs]
    if lines:
        folder.publish(folder.out / SKIPPED_NAME, ("\n".join(lines) + "\n").encode())
    return len(lines)


def _write_log(folder: PackFolder, plan: PackPlan, started: datetime, report: PackReport) -> None:
    """Write what is true of this run alone: times, command, host."""
    line = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "images_per_s": round(report.images_per_s, 1),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "listing_xxh3": plan.listing_xxh3,
    }
    folder.publish(folder.out / LOG_NAME, (json.dumps(line) + "\n").encode())


def _fill_report(report: PackReport, manifest: Manifest, results: list[ShardResult]) -> None:
    report.manifest = manifest
    planned = report.samples
    report.samples = {name: split.samples for name, split in manifest.splits.items()}
    report.packed_bytes = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    report.image_bytes = sum(result.image_bytes for result in results)
    report.mask_bytes = sum(result.mask_bytes for result in results)
    notes, codecs = Counter[str](), Counter[str]()
    for result in results:
        notes.update(result.notes)
        codecs.update(result.codecs)
    report.notes, report.codecs = dict(notes), dict(codecs)
    report.warnings += [
        f"every sample of {name} is bad: there is no {name} split" for name in sorted(planned.keys() - report.samples)
    ]
    report.warnings += find_warnings(manifest)
    report.warnings += _warn_of_size(report)


def _warn_of_size(report: PackReport) -> list[str]:
    if report.packed_bytes <= 2 * report.source_bytes:
        return []
    if report.image_bytes + report.mask_bytes <= 2 * report.source_bytes:
        why = "files so small weigh less than what a tar adds to each"
    elif "lz4" in report.codecs:
        why = "raw pixels are quick to read, --image-codec jpeg (lossy) or png (slow to decode) are smaller"
    else:
        why = "stored anew, the pixels need more than in the source"
    return [f"the shards are {report.packed_bytes / max(1, report.source_bytes):.1f} times the source's size: {why}"]


def _fill_complete(report: PackReport) -> None:
    """Tell of a folder that was packed before."""
    manifest = report.manifest = read_manifest(report.out)
    report.status = "complete"
    report.samples = {name: split.samples for name, split in manifest.splits.items()}
    report.packed_bytes = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    report.warnings += find_warnings(manifest)
    skipped = report.out / SKIPPED_NAME
    report.num_skipped = len(skipped.read_text(encoding="utf-8").splitlines()) if skipped.exists() else 0
