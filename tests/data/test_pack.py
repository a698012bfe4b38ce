"""The packer's law: the same bytes however it is run, and no byte of others touched."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plain_source import change, draw_sample, make_labels, read_folder, write_source
from rich.console import Console

from unetfast.data import pack as pack_module
from unetfast.data import packreport
from unetfast.data.manifest import read_manifest
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack, pack_scan
from unetfast.data.packdir import PackFolder
from unetfast.data.packreport import PackProgress
from unetfast.data.reader import open_shards
from unetfast.data.sources.base import ScanProblem, SourceScan
from unetfast.data.workers import run_tasks
from unetfast.errors import BadSampleError, UserError

SMALL = PackOptions(shard_mib=0.004, val_fraction=0.3)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return tmp_path / "src"


@pytest.fixture
def scan(src: Path) -> SourceScan:
    return write_source(src, 12)


def test_same_bytes_for_any_workers_and_out(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    one = pack_scan(scan, src, tmp_path / "one", options=SMALL, workers=1)
    two = pack_scan(scan, src, tmp_path / "deep" / "two", options=SMALL, workers=2)
    assert read_folder(one.out) == read_folder(two.out)
    assert one.manifest == two.manifest
    assert one.manifest is not None
    assert len(one.manifest.splits["train"].shards) > 2
    other = pack_scan(scan, src, tmp_path / "other", options=PackOptions(shard_mib=0.004, val_fraction=0.3, seed=1))
    assert read_folder(other.out) != read_folder(one.out)


@pytest.mark.parametrize(("workers", "limit", "started"), [(0, 1 << 20, 1), (0, 0, 5), (3, 1 << 20, 3)])
def test_little_work_starts_no_processes(
    scan: SourceScan, src: Path, tmp_path: Path, workers: int, limit: int, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_here(tasks: list[Any], work: Any, *, num_workers: int, report: Any) -> Iterator[Any]:
        asked.append(num_workers)
        yield from run_tasks(tasks, work, num_workers=1, report=report)

    monkeypatch.setattr(pack_module, "run_tasks", run_here)
    monkeypatch.setattr(pack_module, "count_cores", lambda: 5)
    monkeypatch.setattr(pack_module, "_IN_PROCESS_BYTES", limit)
    pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=workers)
    assert asked == [started]


def test_manifest_counts_equal_numpy(src: Path, tmp_path: Path) -> None:
    scan = write_source(src, 12, splits=("train", "val"))
    report = pack_scan(scan, src, tmp_path / "out", options=PackOptions(image_codec="lz4"), workers=1)
    manifest = read_manifest(tmp_path / "out")
    assert report.manifest == manifest
    shards = open_shards(tmp_path / "out")
    for name, split in manifest.splits.items():
        with shards.split(name) as reader:
            images = [reader.decode_image(sample) for sample in range(reader.num_samples)]
            masks = [reader.decode_mask(sample) for sample in range(reader.num_samples)]
            pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
            ids = np.concatenate([mask.reshape(-1) for mask in masks])
            groups = [reader.read_json(sample)["group"] for sample in range(reader.num_samples)]
            numbers = reader.rows["group"].tolist()
        np.testing.assert_allclose(split.mean, pixels.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(split.std, pixels.std(axis=0), atol=1e-8)
        assert split.class_pixels == tuple(int((ids == class_id).sum()) for class_id in range(3))
        assert split.class_images == tuple(sum(bool((mask == class_id).any()) for mask in masks) for class_id in range(3))
        assert split.ignored_pixels == int((ids == 255).sum())
        assert (split.samples, split.groups) == (6, 3)
        assert numbers == [1 + sorted(set(groups)).index(group) for group in groups]
        assert split.min_hw == tuple(np.min([mask.shape for mask in masks], axis=0))
        assert split.max_hw == tuple(np.max([mask.shape for mask in masks], axis=0))
    assert (manifest.split_rule, manifest.mask_bits, manifest.ignore_index) == ("source", 8, 255)


@pytest.mark.parametrize(("codec", "bits"), [("lz4", 1), ("png", 8)])
def test_two_classes_without_ignore_are_packed_to_bits(src: Path, tmp_path: Path, codec: str, bits: int) -> None:
    scan = write_source(src, 4, num_classes=2, ignore=False)
    pack_scan(scan, src, tmp_path / "out", options=PackOptions(mask_codec=codec, val_fraction=0), workers=1)
    shards = open_shards(tmp_path / "out")
    assert shards.manifest.mask_bits == bits
    with shards.split("train") as reader:
        assert set(reader.rows["mask_bits"].tolist()) == {bits}
        number = int(reader.read_json(0)["source_path"].split(".")[1])
        np.testing.assert_array_equal(reader.decode_mask(0), draw_sample(number, 2)[1])


def test_a_finished_folder_is_left_alone(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_scan(scan, src, out, options=SMALL, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "notes.txt").write_text("mine")
    again = pack_scan(scan, src, out, options=SMALL, workers=1)
    assert again.status == "complete"
    assert again.samples == {name: split.samples for name, split in read_manifest(out).splits.items()}
    assert {path: path.stat().st_mtime_ns for path in before if path != out} == {
        path: time for path, time in before.items() if path != out
    }
    assert not (out / ".packing").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda scan: (scan, PackOptions(shard_mib=0.004, val_fraction=0.3, max_side=16)), "--max-side: None, now 16"),
        (lambda scan: (scan, PackOptions(shard_mib=0.004, val_fraction=0.3, size_hw=(8, 8))), "--size: None, now"),
        (lambda scan: (change(scan, samples=scan.samples[:-1]), SMALL), "names or sizes of the source's files"),
        (lambda scan: (change(scan, labels=make_labels(4)), SMALL), "classes differ"),
        (lambda scan: (change(scan, dataset="carvana"), SMALL), "data set: folder, now carvana"),
    ],
)
def test_another_plan_is_refused_by_name(
    scan: SourceScan, src: Path, tmp_path: Path, make: Callable[[SourceScan], tuple[SourceScan, PackOptions]], message: str
) -> None:
    out = tmp_path / "out"
    pack_scan(scan, src, out, options=SMALL, workers=1)
    before = read_folder(out)
    other_scan, options = make(scan)
    with pytest.raises(UserError, match=message) as caught:
        pack_scan(other_scan, src, out, options=options, workers=1)
    assert "--overwrite" in str(caught.value)
    assert read_folder(out) == before
    replaced = pack_scan(other_scan, src, out, options=options, workers=1, overwrite=True)
    fresh = pack_scan(other_scan, src, tmp_path / "fresh", options=options, workers=1)
    assert replaced.status == "packed"
    assert read_folder(out) == read_folder(fresh.out)


def test_touched_source_files_are_noticed(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)
    os.utime(scan.samples[0].image.path, ns=(1, 1))
    with pytest.raises(UserError, match="files were modified since"):
        pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)


def test_foreign_files_are_never_removed(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        pack_scan(scan, src, out, options=SMALL, workers=1, overwrite=True)
    assert not (out / ".packing").exists()
    (out / "thesis.tex").unlink()
    pack_scan(scan, src, out, options=SMALL, workers=1)
    (out / "train" / "thesis.tex").write_text("years of work")
    before = read_folder(out)
    with pytest.raises(UserError, match=r"train/thesis\.tex"):
        pack_scan(scan, src, out, options=PackOptions(seed=5), workers=1, overwrite=True)
    after = read_folder(out)
    assert {name: data for name, data in after.items() if not name.startswith(".packing")} == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@contextmanager
def dying_at(operation: int) -> Iterator[list[int]]:
    """Die before the given operation on the file system; yields a list that counts them."""
    count = [0]
    patches = pytest.MonkeyPatch()

    def guard(home: Any, name: str) -> None:
        real = getattr(home, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if count[0] == operation:
                raise Killed
            count[0] += 1
            return real(*args, **kwargs)

        patches.setattr(home, name, run)

    for home, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"), (Path, "open")):
        guard(home, name)
    try:
        yield count
    finally:
        patches.undo()


@pytest.mark.parametrize("replacing", [False, True])
def test_resume_after_death_at_every_step(src: Path, tmp_path: Path, replacing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the step at which the packer dies, the next run ends with the bytes of an undisturbed one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it takes most of the time, and proves nothing here
    scan = write_source(src, 4, group_size=0)
    options = PackOptions(shard_mib=0.003, val_fraction=0.4)
    old, wanted, out = tmp_path / "old", tmp_path / "wanted", tmp_path / "out"
    pack_scan(scan, src, old, options=PackOptions(shard_mib=0.001, val_fraction=0.4, max_side=10), workers=1)
    pack_scan(scan, src, wanted, options=options, workers=1)
    expected = read_folder(wanted)
    step = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if replacing:
            shutil.copytree(old, out)
        with dying_at(step) as count:
            try:
                pack_scan(scan, src, out, options=options, workers=1, overwrite=replacing)
            except Killed:
                pass
            else:
                break
        pack_scan(scan, src, out, options=options, workers=1, overwrite=replacing)
        assert read_folder(out) == expected, f"died before step {step}"
        step += 1
    assert count[0] == step > 30


def test_resume_does_not_repeat_finished_shards(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = Path(scan.samples[-1].mask.path)
    data, times = broken.read_bytes(), broken.stat()
    broken.write_bytes(bytes(len(data)))
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(BadSampleError, match=broken.name):
        pack_scan(scan, src, out, options=SMALL, workers=1)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    broken.write_bytes(data)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    stream = io.StringIO()
    report = pack_scan(scan, src, out, options=SMALL, workers=1, console=Console(file=stream))
    assert done
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert "going on with an interrupted packing" in stream.getvalue()
    assert report.num_samples == 12
    fresh = pack_scan(scan, src, tmp_path / "fresh", options=SMALL, workers=1)
    assert read_folder(out) == read_folder(fresh.out)


def test_an_unfinished_packing_of_another_plan_is_refused(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with dying_at(40), pytest.raises(Killed):
        pack_scan(scan, src, out, options=SMALL, workers=1)
    assert list(out.rglob("done/*.json"))
    with pytest.raises(UserError, match="an unfinished packing of something else"):
        pack_scan(scan, src, out, options=PackOptions(seed=3), workers=1)
    pack_scan(scan, src, out, options=PackOptions(seed=3), workers=1, overwrite=True)
    fresh = pack_scan(scan, src, tmp_path / "fresh", options=PackOptions(seed=3), workers=1)
    assert read_folder(out) == read_folder(fresh.out)


def test_a_packing_without_a_finished_shard_binds_nobody(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    """A first sample refused, and the remedy it named taken: no --overwrite needed."""
    with dying_at(10), pytest.raises(Killed):
        pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)
    assert pack_scan(scan, src, tmp_path / "out", options=PackOptions(seed=3), workers=1).status == "packed"


def test_two_packers_at_once(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    folder = PackFolder(tmp_path / "out")
    with folder.locked(), pytest.raises(UserError, match="another packing is at work"):
        pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)
    assert pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1).status == "packed"


def spoil(scan: SourceScan, *places: int) -> list[str]:
    for place in places:
        Path(scan.samples[place].mask.path).write_bytes(b"no mask at all")
    return [scan.samples[place].mask.path for place in places]


def test_bad_samples_stop_or_are_skipped_and_listed(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    spoil(scan, 3, 7)
    problem = ScanProblem(str(src / "images/lost.jpg"), "image without mask", "add the mask")
    scan = change(scan, problems=[problem])
    with pytest.raises(UserError, match=r"lost\.jpg: image without mask\n  add the mask\n  .*--on-bad skip"):
        pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)
    assert not (tmp_path / "out").exists()
    options = PackOptions(shard_mib=0.004, val_fraction=0.3, on_bad="skip", max_bad=3)
    one = pack_scan(scan, src, tmp_path / "one", options=options, workers=1)
    two = pack_scan(scan, src, tmp_path / "two", options=options, workers=2)
    assert read_folder(one.out) == read_folder(two.out)
    lines = [json.loads(line) for line in (one.out / "skipped.jsonl").read_text().splitlines()]
    assert lines[0] == {"file": "images/lost.jpg", "reason": "image without mask"}
    assert sorted(line["file"] for line in lines[1:]) == ["masks/03.png", "masks/07.png"]
    assert (one.num_samples, one.num_skipped) == (10, 3)
    assert pack_scan(scan, src, one.out, options=options, workers=1).num_skipped == 3
    with pytest.raises(UserError, match=r"3 of 13 samples are bad, more than may be skipped \(--max-bad 2\)"):
        pack_scan(
            scan,
            src,
            tmp_path / "three",
            options=PackOptions(shard_mib=0.004, val_fraction=0.3, on_bad="skip", max_bad=2),
            workers=1,
        )
    # what was done stands, and a higher limit goes on from there
    assert pack_scan(scan, src, tmp_path / "three", options=options, workers=1).num_samples == 10
    assert read_folder(tmp_path / "three") == read_folder(one.out)


def test_by_default_a_tenth_may_be_bad(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    spoil(scan, 0, 1)
    options = PackOptions(on_bad="skip", shard_mib=0.004)
    assert pack_scan(scan, src, tmp_path / "out", options=options, workers=1).num_skipped == 2
    spoil(scan, 2)
    with pytest.raises(UserError, match="a tenth of the samples"):
        pack_scan(scan, src, tmp_path / "more", options=options, workers=1)


def test_shards_that_skipped_are_not_taken_under_error(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    bad = spoil(scan, 0, 1, 2)
    with pytest.raises(UserError, match="more than may be skipped"):
        pack_scan(scan, src, tmp_path / "out", options=PackOptions(on_bad="skip", max_bad=2), workers=1)
    with pytest.raises(BadSampleError) as caught:
        pack_scan(scan, src, tmp_path / "out", workers=1)
    assert caught.value.file in bad


def test_a_split_or_a_shard_of_bad_samples_alone(src: Path, tmp_path: Path) -> None:
    scan = write_source(src, 12, splits=("train", "train", "val"))
    spoil(scan, *range(8, 12), 0)
    options = PackOptions(on_bad="skip", max_bad=12, shard_mib=0.0001)
    report = pack_scan(scan, src, tmp_path / "out", options=options, workers=1)
    assert list(report.samples.items()) == [("train", 7)]
    assert any("every sample of val is bad" in warning for warning in report.warnings)
    with open_shards(tmp_path / "out").split("train") as reader:
        assert sorted(reader.rows["shard"].tolist()) == list(range(7))
        assert len({reader.key(sample) for sample in range(7)}) == 7
    assert not (tmp_path / "out" / "val").exists()
    spoil(scan, *range(12))
    with pytest.raises(UserError, match="no sample is left"):
        pack_scan(scan, src, tmp_path / "none", options=options, workers=1)


def test_many_problems_are_counted(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    problems = [ScanProblem(f"{place}.jpg", "image without mask", "add it") for place in range(9)]
    with pytest.raises(UserError, match=r"and 4 more \(9 in all\)"):
        pack_scan(change(scan, problems=problems), src, tmp_path / "out")
    with pytest.raises(UserError, match="9 of 21 samples are bad"):
        pack_scan(change(scan, problems=problems), src, tmp_path / "out", options=PackOptions(on_bad="skip"))


def test_dry_run_writes_nothing(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    report = pack_scan(scan, src, tmp_path / "out", options=SMALL, dry_run=True, console=Console(file=stream))
    assert (report.status, report.manifest, report.num_samples) == ("dry-run", None, 12)
    assert "nothing was written" in stream.getvalue()
    assert not (tmp_path / "out").exists()


def test_places_that_make_no_sense(src: Path, tmp_path: Path) -> None:
    src.mkdir()
    (tmp_path / "file").write_text("x")
    for source, out, message in (
        (tmp_path / "nowhere", tmp_path / "out", "no such folder"),
        (tmp_path / "file", tmp_path / "out", "is no folder"),
        (src, src, "lies in the source folder"),
        (src, src / "shards", "lies in the source folder"),
        (src, tmp_path, "the source folder .* lies in it"),
    ):
        with pytest.raises(UserError, match=message):
            pack(source, out)
    with pytest.raises(UserError):
        pack(src, tmp_path / "out")  # an empty source


def test_out_that_is_a_file(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; choose a folder"):
        pack_scan(scan, src, tmp_path / "file", workers=1)
    with pytest.raises(UserError, match=r"cannot be a folder .*choose another --out"):
        pack_scan(scan, src, tmp_path / "file" / "below", workers=1)


def paint_masks(scan: SourceScan, value: int) -> None:
    for ref in scan.samples:
        with Image.open(ref.image.path) as image:
            Image.new("L", image.size, value).save(ref.mask.path)


def test_warnings_about_masks_and_size(src: Path, tmp_path: Path) -> None:
    scan = write_source(src, 4)
    paint_masks(scan, 1)
    report = pack_scan(scan, src, tmp_path / "one", options=PackOptions(image_codec="lz4"), workers=1)
    assert any("all masks hold one class alone, class1" in warning for warning in report.warnings)
    report = pack_scan(scan, src, tmp_path / "big", options=PackOptions(size_hw=(200, 200)), workers=1)
    assert any("times the source's size: raw pixels" in warning for warning in report.warnings)
    report = pack_scan(scan, src, tmp_path / "png", options=PackOptions(size_hw=(200, 200), image_codec="png"), workers=1)
    assert any("times the source's size: stored anew" in warning for warning in report.warnings)
    report = pack_scan(scan, src, tmp_path / "tar", options=PackOptions(image_codec="png", mask_codec="png"), workers=1)
    assert any("times the source's size: files so small" in warning for warning in report.warnings)
    alone = change(scan, labels=make_labels(1))
    paint_masks(scan, 0)
    report = pack_scan(alone, src, tmp_path / "alone", workers=1)
    assert any("all masks hold one class alone, class0" in warning for warning in report.warnings)
    paint_masks(scan, 255)
    report = pack_scan(scan, src, tmp_path / "none", workers=1)
    assert any("all pixels of all masks are ignored" in warning for warning in report.warnings)


def test_a_link_into_nowhere_is_one_bad_sample(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    lost = Path(scan.samples[3].mask.path)
    lost.unlink()
    lost.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(BadSampleError, match=rf"{lost.name}: cannot be read \(No such file"):
        pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1)
    options = PackOptions(shard_mib=0.004, val_fraction=0.3, on_bad="skip", max_bad=1)
    assert pack_scan(scan, src, tmp_path / "out", options=options, workers=1).num_skipped == 1


def test_a_warning_is_told_once(src: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    pack_scan(write_source(src, 1), src, tmp_path / "out", workers=1, console=Console(file=stream, width=200))
    assert stream.getvalue().count("there is no val split") == 1


def test_the_summary_names_what_matters(scan: SourceScan, src: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    scan = change(scan, notes=[("unlabelled videos", 3)])
    report = pack_scan(scan, src, tmp_path / "out", options=SMALL, workers=1, console=Console(file=stream, width=60))
    text = stream.getvalue()
    for part in ("folder (plain): 12 pairs, 6 groups", "unlabelled videos: 3", "img/s", "class1", "(ignored)", "4 lz4"):
        assert part in text
    assert f"next: unetfast train --shards {tmp_path / 'out'}" in text
    assert report.source_notes == {"unlabelled videos": 3}
    assert (report.codecs, report.images_per_s > 0) == ({"jpeg": 8, "lz4": 4}, True)
    log = json.loads((tmp_path / "out" / "pack.log").read_text())
    assert {"started", "seconds", "command", "host"} <= log.keys()


def test_progress_in_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log = io.StringIO(), io.StringIO()
    with PackProgress(Console(file=terminal, force_terminal=True, width=100), 100, 40) as progress:
        progress.add(60)
    assert "100/100" in terminal.getvalue()
    assert progress.packed == 60
    monkeypatch.setattr(packreport, "_PLAIN_EVERY_S", 0.0)
    with PackProgress(Console(file=log, width=30), 2_000, 0) as progress:
        progress.add(500)
        progress.add(500)
    lines = log.getvalue().splitlines()
    assert lines[1].startswith("packing 1,000/2,000  ")
    assert lines[1].endswith(" left")
