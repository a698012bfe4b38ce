"""The last shards of a packing are cut into parts: every sample once, in its shard's order, and the bytes stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_source import write_source

from unetfast.data import packparts
from unetfast.data.encode import SampleEncoder
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack_scan
from unetfast.data.packdir import LOG_NAME, PackFolder
from unetfast.data.packparts import PartGatherer, cut_last
from unetfast.data.packshard import PartDone, ShardDone, ShardPacker, ShardPart
from unetfast.data.plan import ShardPlan, build_plan
from unetfast.data.sample import FileSpan, SampleRef

COPYING = PackOptions()


def make_shards(*counts: int, num_bytes: int = 100, image: str = "a.jpg") -> list[ShardPlan]:
    ref = SampleRef("a", image, FileSpan(image), FileSpan("b.png"), num_bytes=num_bytes)
    return [ShardPlan("train", number, (ref,) * count) for number, count in enumerate(counts)]


def test_as_many_shards_are_cut_as_there_are_workers() -> None:
    shards = make_shards(20, 20, 20, 3)
    tasks = cut_last(shards, 2, COPYING)
    assert tasks[:2] == shards[:2]
    parts = [task for task in tasks[2:] if isinstance(task, ShardPart)]
    assert [part.shard for part in parts] == [shards[2].name] * 8 + [shards[3].name] * 3
    for shard in shards[2:]:
        mine = [part for part in parts if part.shard == shard.name]
        assert [part.start for part in mine] == [sum(len(part.samples) for part in mine[:n]) for n in range(len(mine))]
        assert tuple(ref for part in mine for ref in part.samples) == shard.samples


def test_a_worker_alone_cuts_nothing() -> None:
    shards = make_shards(20, 20)
    assert cut_last(shards, 1, COPYING) == shards
    assert cut_last([], 4, COPYING) == []


def test_no_more_is_cut_than_the_parent_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packparts, "_MAX_CUT_BYTES", 2_500)
    shards = make_shards(10, 10, 10, 10)
    tasks = cut_last(shards, 4, COPYING)
    assert [task for task in tasks if isinstance(task, ShardPlan)] == shards[:2]
    assert cut_last(make_shards(10, 10, num_bytes=1_000), 2, COPYING) == make_shards(10, 10, num_bytes=1_000)


@pytest.mark.parametrize(
    ("options", "image", "is_cut"),
    [
        (PackOptions(), "a.JPG", True),
        (PackOptions(image_codec="png"), "a.jpeg", True),
        (PackOptions(image_codec="lz4"), "a.jpg", False),
        (PackOptions(image_codec="jpeg"), "a.jpg", False),
        (PackOptions(), "a.png", False),
        (PackOptions(image_codec="png"), "a.png", False),
        (PackOptions(exif="apply"), "a.jpg", False),
        (PackOptions(size_hw=(512, 512)), "a.jpg", False),
        (PackOptions(max_side=512), "a.jpg", False),
    ],
)
def test_what_may_grow_when_it_is_encoded_is_not_cut(options: PackOptions, image: str, is_cut: bool) -> None:
    shards = make_shards(20, 20, image=image)
    assert (cut_last(shards, 2, options) != shards) == is_cut


def test_one_image_that_may_grow_keeps_its_shard_whole() -> None:
    (mixed,), (copied,) = make_shards(9), make_shards(9)
    (png,) = make_shards(1, image="a.png")
    mixed = ShardPlan("train", 1, (*mixed.samples, *png.samples))
    assert cut_last([copied, mixed], 2, COPYING) == [copied, mixed]
    assert cut_last([mixed, copied], 2, COPYING)[0] is mixed
    assert len(cut_last([mixed, copied], 2, COPYING)) == 1 + 8


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOG_NAME
    }


@pytest.fixture
def cut_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are cut whatever is in them."""
    monkeypatch.setattr(packparts, "is_copied", lambda *_: True)


@pytest.mark.usefixtures("cut_all")
@pytest.mark.parametrize("turned", [False, True])
def test_parts_in_any_order_give_the_shard_that_one_worker_writes(tmp_path: Path, turned: bool) -> None:
    scan = write_source(tmp_path / "src", 12)
    Path(scan.samples[5].image.path).write_bytes(b"no image")
    options = PackOptions(val_fraction=0.0, on_bad="skip")
    folders = [tmp_path / name for name in ("whole", "parts")]
    shards = build_plan(scan, tmp_path / "src", options).shards
    told: list[int] = []
    for folder, num_workers in zip(folders, (1, 2), strict=True):
        packed = PackFolder(folder)
        with packed.locked():
            packed.begin({"source": "the same"}, overwrite=False)
        packer = ShardPacker(SampleEncoder(scan.labels, scan.read_mask, options), folder)
        gatherer = PartGatherer(packer, shards)
        results = [packer(task, told.append) for task in cut_last(shards, num_workers, options)]
        assert {type(result) for result in results} == {ShardDone if num_workers == 1 else PartDone}
        finished = [gatherer.take(result) for result in (reversed(results) if turned else results)]
        (done,) = [shard for shard in finished if shard is not None]
        assert finished[-1] is done
        assert (done.shard, done.num_skipped) == (shards[0], 1)
    assert sum(told) == 2 * 12
    assert read_files(folders[0]) == read_files(folders[1])


@pytest.mark.usefixtures("cut_all")
def test_two_workers_write_what_one_writes(tmp_path: Path) -> None:
    scan = write_source(tmp_path / "src", 24)
    options = PackOptions(shard_mib=0.01, val_fraction=0.3)
    for workers in (1, 2):
        pack_scan(scan, tmp_path / "src", tmp_path / str(workers), options=options, workers=workers)
    one, two = (read_files(tmp_path / name) for name in ("1", "2"))
    assert one == two
    assert sum(name.endswith(".tar") for name in one) > 2
