"""Under on_bad = "skip" exactly the bad samples are left out, and all else stays as it was; one body for every backend."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_backends import dali_only
from loader_batches import Kept, assert_close, keep
from loader_faults import FAULTS, NAMELESS, NUM_SAMPLES, ODD_FOR_DALI, PLACES, damage, make_samples, write_bad
from loader_shards import make_sample, write_shards

from unetfast.errors import CorruptShardError
from unetfast.loader.batch import Loader
from unetfast.loader.order import Order

MakeLoader = Callable[..., Loader]
BadShards = Callable[[str, int], Path]

AUGMENT = {"hflip": {"prob": 0.5}, "rotation": {"prob": 0.5}}
HOST = {"backend": "cpu", "device": torch.device("cpu")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_exactly_the_bad_sample_is_left_out(make_loader: MakeLoader, bad_shards: BadShards, fault: str, place: str) -> None:
    bad, folder = PLACES[place], bad_shards(fault, PLACES[place])
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    batches = keep(loader)
    expected = [i for i in range(NUM_SAMPLES) if i != bad]
    assert [batch.ids for batch in batches] == [expected[i : i + 4] for i in range(0, 12, 4)]
    assert loader.num_skipped == 1
    assert len(loader.skipped) == 1
    if fault not in NAMELESS:
        assert loader.skipped == [f"sample{bad:03}"]
    assert loader.position == NUM_SAMPLES
    assert keep(loader) == batches
    assert loader.num_skipped == 1
    assert_close(batches, keep(make_loader(folder=folder, training=False, on_bad="skip", **HOST)))


@pytest.mark.parametrize("fault", ["zeroed bytes", "progressive JPEG without a table"])
def test_training_skips_and_the_others_stay_as_they_were(make_loader: MakeLoader, bad_shards: BadShards, fault: str) -> None:
    def rows(batches: list[Kept], but: int) -> list[tuple[int, bytes, bytes]]:
        return [
            (i, image.numpy().tobytes(), mask.numpy().tobytes())
            for batch in batches
            for i, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
            if i != but
        ]

    bad = 6
    # the same pixels, but only sample 0 is damaged
    one = keep(make_loader(folder=bad_shards("zeroed bytes", 0), augment=AUGMENT, on_bad="skip"), 9)
    two = keep(make_loader(folder=bad_shards(fault, bad), augment=AUGMENT, on_bad="skip"), 9)
    assert all(len(batch.ids) == 4 for batch in two)
    stream = [i for i in Order(NUM_SAMPLES, seed=0).locate(np.arange(60)).sample_ids.tolist() if i != bad]
    assert list(itertools.chain.from_iterable(batch.ids for batch in two)) == stream[:36]
    # samples 0 and 6 are a JPEG in one folder and raw in the other; all the others are the same in both
    pairs = list(zip(rows(one, but=bad), rows(two, but=0), strict=False))
    assert len(pairs) > 25
    assert all(mine == theirs for mine, theirs in pairs)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("fault", ["zeroed bytes", "progressive JPEG without a table"])
def test_resume_with_bad_samples_goes_on_with_the_next_one(
    make_loader: MakeLoader, tmp_path: Path, fault: str, threads: int
) -> None:
    folder = write_bad(tmp_path / "bad", fault, 6)
    damage(folder, "vanished shard", 2)
    settings = {"folder": folder, "augment": AUGMENT, "on_bad": "skip"}
    whole = keep(make_loader(**settings), 12)
    resumed: list[Kept] = []
    state = make_loader(**settings).state_dict()
    for count in (1, 4, 2, 5):
        loader = make_loader(threads=threads, **settings)
        loader.load_state_dict(json.loads(json.dumps(state)))
        resumed += keep(loader, count)
        state = loader.state_dict()
    assert resumed == whole


def test_several_bad_samples_side_by_side_and_at_the_end(make_loader: MakeLoader, tmp_path: Path) -> None:
    folder = write_bad(tmp_path / "bad", "zeroed bytes", 3)
    for bad in (4, 5, 12):
        damage(folder, "vanished shard", bad)
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    assert [batch.ids for batch in keep(loader)] == [[0, 1, 2, 6], [7, 8, 9, 10], [11]]
    assert loader.num_skipped == 4
    assert loader.position == NUM_SAMPLES


def test_a_batch_of_several_faults_loses_exactly_its_bad_samples(make_loader: MakeLoader, tmp_path: Path) -> None:
    faults = {4: "progressive JPEG without a table", 5: "truncated JPEG", 6: "damaged PNG image", 9: "truncated LZ4 mask"}
    made = make_samples("zeroed bytes", 0)
    for bad, fault in faults.items():
        made[bad] = make_samples(fault, bad)[bad]
    folder = write_shards(tmp_path / "bad", made, samples_per_shard=1)
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    batches = keep(loader)
    assert [batch.ids for batch in batches] == [[0, 1, 2, 3], [7, 8, 10, 11], [12]]
    assert loader.skipped == ["sample004", "sample005", "sample006", "sample009"]
    assert_close(batches, keep(make_loader(folder=folder, training=False, on_bad="skip", **HOST)))
    assert keep(loader) == batches


def test_every_member_of_a_batch_is_bad(make_loader: MakeLoader, tmp_path: Path) -> None:
    made = make_samples("zeroed bytes", 0)
    for bad, fault in zip(range(4, 8), itertools.cycle(["progressive JPEG without a table", "truncated JPEG"]), strict=False):
        made[bad] = make_samples(fault, bad)[bad]
    folder = write_shards(tmp_path / "bad", made, samples_per_shard=1)
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    assert [batch.ids for batch in keep(loader)] == [[0, 1, 2, 3], [8, 9, 10, 11], [12]]
    assert loader.num_skipped == 4


def num_told(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage().startswith("left out") for record in caplog.records)


def test_a_skip_is_logged_once(make_loader: MakeLoader, bad_shards: BadShards, caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(folder=bad_shards("zeroed bytes", 6), on_bad="skip")
    keep(loader, 15)
    assert num_told(caplog) == 1
    assert "sample006" in caplog.text
    assert "xxh3" in caplog.text


@pytest.mark.parametrize("fault", ["zeroed bytes", "progressive JPEG without a table"])
def test_a_run_that_met_a_bad_sample_goes_on_with_skip(make_loader: MakeLoader, bad_shards: BadShards, fault: str) -> None:
    folder = bad_shards(fault, 6)
    strict = make_loader(folder=folder, training=False)
    batches = iter(strict)
    first = next(batches).sample_ids.tolist()
    with pytest.raises(CorruptShardError):
        next(batches)
    lenient = make_loader(folder=folder, training=False, on_bad="skip")
    lenient.load_state_dict(strict.state_dict())
    assert first + [i for batch in keep(lenient) for i in batch.ids] == [i for i in range(NUM_SAMPLES) if i != 6]


@dali_only
@pytest.mark.parametrize("place", PLACES)
def test_a_sample_that_dali_alone_rejects_is_left_out(make_loader: MakeLoader, bad_shards: BadShards, place: str) -> None:
    bad = PLACES[place]
    loader = make_loader(folder=bad_shards(ODD_FOR_DALI, bad), training=False, on_bad="skip")
    batches = keep(loader)
    assert [i for batch in batches for i in batch.ids] == [i for i in range(NUM_SAMPLES) if i != bad]
    assert loader.skipped == [f"sample{bad:03}"]
    assert keep(loader) == batches


def test_a_lost_shard_is_told_once_for_all_its_samples(
    make_loader: MakeLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shards(tmp_path / "lost", [make_sample(i, (30, 40)) for i in range(9)], samples_per_shard=5)
    (folder / "val" / "000000.tar").unlink()
    loader = make_loader(folder=folder, training=False, on_bad="skip")
    assert [i for batch in keep(loader) for i in batch.ids] == [5, 6, 7, 8]
    assert loader.num_skipped == 5
    assert num_told(caplog) == 1
