"""Bad samples: found, named, and left out or raised; one body for every backend."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loader_batches import Kept, keep
from loader_shards import MadeSample, change_index, make_sample, write_shards

from unetfast.data.reader import open_shards
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.batch import Loader
from unetfast.loader.order import Order

MakeLoader = Callable[..., Loader]

NUM_SAMPLES = 13
PLACES = {"first": 4, "middle": 6, "last": 7}  # in the second batch of four
AUGMENT = {"hflip": {"prob": 0.5}, "rotation": {"prob": 0.5}}


def zero_bytes(folder: Path, bad: int) -> None:
    """Destroy bytes inside an image, as a bad disk does."""
    for split in ("train", "val"):
        row = np.load(folder / split / "index.npy")[bad]
        path = folder / split / f"{int(row['shard']):06}.tar"
        data = bytearray(path.read_bytes())
        middle = int(row["image_offset"]) + int(row["image_length"]) // 2
        data[middle : middle + 40] = bytes(40)
        path.write_bytes(data)


def zero_mask(folder: Path, bad: int) -> None:
    for split in ("train", "val"):
        row = np.load(folder / split / "index.npy")[bad]
        path = folder / split / f"{int(row['shard']):06}.tar"
        data = bytearray(path.read_bytes())
        data[int(row["mask_offset"]) : int(row["mask_offset"]) + 8] = bytes(8)
        path.write_bytes(data)


def point_elsewhere(folder: Path, bad: int) -> None:
    """Make the index name another sample's image, with that one's hash."""

    def change(rows: np.ndarray) -> None:
        for name in ("image_offset", "image_length", "image_xxh3", "shard"):
            rows[name][bad] = rows[name][bad - 1]

    for split in ("train", "val"):
        change_index(folder, split, change)


def lie_about_size(folder: Path, bad: int) -> None:
    def change(rows: np.ndarray) -> None:
        rows["height"][bad] = 1 << 30

    for split in ("train", "val"):
        change_index(folder, split, change)


def lose_shard(folder: Path, bad: int) -> None:
    for split in ("train", "val"):
        shard = int(np.load(folder / split / "index.npy")["shard"][bad])
        (folder / split / f"{shard:06}.tar").unlink()


def cut_shard(folder: Path, bad: int) -> None:
    for split in ("train", "val"):
        shard = int(np.load(folder / split / "index.npy")["shard"][bad])
        path = folder / split / f"{shard:06}.tar"
        path.write_bytes(path.read_bytes()[:700])


def truncate_before_packing(made: MadeSample) -> MadeSample:
    image = made.sample.image[: len(made.sample.image) // 2]
    return replace(made, sample=replace(made.sample, image=image))


FAULTS = {
    "zeroed bytes": zero_bytes,
    "zeroed mask": zero_mask,
    "wrong index": point_elsewhere,
    "wrong size": lie_about_size,
    "vanished shard": lose_shard,
    "cut shard": cut_shard,
    "truncated JPEG": None,
}


def write_bad(folder: Path, fault: str, bad: int) -> Path:
    """Shards of one sample each, the sample `bad` with a fault; its neighbours are of other sizes."""
    made = [make_sample(i, (30 + i, 40), kind="jpeg" if i % 2 or i == bad else "lz4") for i in range(NUM_SAMPLES)]
    if fault == "truncated JPEG":
        made[bad] = truncate_before_packing(made[bad])
    write_shards(folder, made, samples_per_shard=1)
    damage = FAULTS[fault]
    if damage is not None:
        damage(folder, bad)
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_is_named(make_loader: MakeLoader, tmp_path: Path, fault: str, place: str) -> None:
    bad = PLACES[place]
    loader = make_loader(folder=write_bad(tmp_path / "bad", fault, bad), training=False)
    batches = iter(loader)
    assert next(batches).sample_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(CorruptShardError) as caught:
        next(batches)
    shard = bad - 1 if fault == "wrong index" else bad
    assert f"{shard:06}.tar" in str(caught.value)
    if fault not in ("vanished shard", "cut shard", "wrong index"):
        assert f"sample{bad:03}" in str(caught.value)
        assert "at byte" in str(caught.value)
    assert loader.position == 4  # nothing was handed out, nothing is lost
    assert keep_error(loader) == str(caught.value)


def keep_error(loader: Loader) -> str:
    with pytest.raises(CorruptShardError) as caught:
        keep(loader)
    return str(caught.value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", ["zeroed bytes", "vanished shard", "truncated JPEG", "wrong index"])
def test_exactly_the_bad_sample_is_left_out(make_loader: MakeLoader, tmp_path: Path, fault: str, place: str) -> None:
    bad = PLACES[place]
    folder = write_bad(tmp_path / "bad", fault, bad)
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    batches = keep(loader)
    expected = [i for i in range(NUM_SAMPLES) if i != bad]
    assert [batch.ids for batch in batches] == [expected[i : i + 4] for i in range(0, 12, 4)]
    assert loader.num_skipped == 1
    assert len(loader.skipped) == 1
    if fault not in ("vanished shard", "wrong index"):
        assert loader.skipped == [f"sample{bad:03}"]
    assert loader.position == NUM_SAMPLES
    assert keep(loader) == batches
    assert loader.num_skipped == 1


def test_training_skips_and_the_others_stay_as_they_were(make_loader: MakeLoader, tmp_path: Path) -> None:
    def rows(batches: list[Kept]) -> list[tuple[int, bytes, bytes]]:
        return [
            (i, image.numpy().tobytes(), mask.numpy().tobytes())
            for batch in batches
            for i, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
        ]

    bad = 6
    good_folder = write_bad(tmp_path / "good", "zeroed bytes", bad=0)  # same pixels; only sample 0 is damaged
    bad_folder = write_bad(tmp_path / "bad", "zeroed bytes", bad)
    one = keep(make_loader(folder=good_folder, augment=AUGMENT, on_bad="skip"), 9)
    two = keep(make_loader(folder=bad_folder, augment=AUGMENT, on_bad="skip"), 9)
    assert all(len(batch.ids) == 4 for batch in two)
    stream = [i for i in Order(NUM_SAMPLES, seed=0).locate(np.arange(60)).sample_ids.tolist() if i != bad]
    assert list(itertools.chain.from_iterable(batch.ids for batch in two)) == stream[:36]
    common = [row for row in rows(one) if row[0] != bad]
    others = [row for row in rows(two) if row[0] != 0]
    assert len(common) > 25
    length = min(len(common), len(others))
    assert [row[0] for row in common[:length]] == [row[0] for row in others[:length]]
    # sample 6 is a JPEG in one folder and raw in the other; all the others are the same in both
    assert common[:length] == others[:length]


@pytest.mark.parametrize("threads", [1, 4])
def test_resume_with_bad_samples_goes_on_with_the_next_one(make_loader: MakeLoader, tmp_path: Path, threads: int) -> None:
    folder = write_bad(tmp_path / "bad", "zeroed bytes", 6)
    lose_shard(folder, 2)
    whole = keep(make_loader(folder=folder, augment=AUGMENT, on_bad="skip"), 12)
    resumed: list[Kept] = []
    state = make_loader(folder=folder, augment=AUGMENT, on_bad="skip").state_dict()
    for count in (1, 4, 2, 5):
        loader = make_loader(folder=folder, augment=AUGMENT, on_bad="skip", threads=threads)
        loader.load_state_dict(json.loads(json.dumps(state)))
        resumed += keep(loader, count)
        state = loader.state_dict()
    assert resumed == whole


def test_several_bad_samples_side_by_side_and_at_the_end(make_loader: MakeLoader, tmp_path: Path) -> None:
    folder = write_bad(tmp_path / "bad", "zeroed bytes", 3)
    for bad in (4, 5, 12):
        lose_shard(folder, bad)
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    assert [batch.ids for batch in keep(loader)] == [[0, 1, 2, 6], [7, 8, 9, 10], [11]]
    assert loader.num_skipped == 4
    assert loader.position == NUM_SAMPLES


def test_a_skip_is_logged_once(make_loader: MakeLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(folder=write_bad(tmp_path / "bad", "zeroed bytes", 6), on_bad="skip")
    keep(loader, 15)
    assert len(caplog.records) == 1
    assert "sample006" in caplog.text
    assert "xxh3" in caplog.text


def test_a_split_without_one_good_sample_ends_in_an_error(make_loader: MakeLoader, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "none", [make_sample(i, (30, 40)) for i in range(5)])
    for bad in (0, 4):
        lose_shard(folder, bad)
    with pytest.raises(UserError, match="not one of its 5 samples can be loaded"):
        next(iter(make_loader(folder=folder, on_bad="skip")))


def test_without_checksums_damage_that_cannot_be_decoded_is_still_named(make_loader: MakeLoader, tmp_path: Path) -> None:
    loader = make_loader(folder=write_bad(tmp_path / "bad", "zeroed mask", 6), training=False, checksum=False)
    with pytest.raises(CorruptShardError, match="sample006"):
        keep(loader)


def test_a_run_that_met_a_bad_sample_goes_on_with_skip(make_loader: MakeLoader, tmp_path: Path) -> None:
    folder = write_bad(tmp_path / "bad", "zeroed bytes", 6)
    strict = make_loader(folder=folder, training=False)
    batches = iter(strict)
    first = next(batches).sample_ids.tolist()
    with pytest.raises(CorruptShardError):
        next(batches)
    lenient = make_loader(folder=folder, training=False, on_bad="skip")
    lenient.load_state_dict(strict.state_dict())
    assert first + [i for batch in keep(lenient) for i in batch.ids] == [i for i in range(NUM_SAMPLES) if i != 6]


def test_keys_of_the_test_shards_are_read_back(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "good", [make_sample(i, (30, 40)) for i in range(3)])
    with open_shards(folder).split("train") as reader:
        assert [reader.key(i) for i in range(3)] == ["sample000", "sample001", "sample002"]
