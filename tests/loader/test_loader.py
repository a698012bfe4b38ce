"""Order, exactly once, ranks, threads and resume: one body for every backend."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_batches import ALL, Kept, keep
from loader_shards import make_labels, make_sample, write_shards

from unetfast.errors import UserError
from unetfast.loader.batch import Loader
from unetfast.loader.order import Order

MakeLoader = Callable[..., Loader]


def test_a_batch_keeps_its_contract(make_loader: MakeLoader, backend: str, device: torch.device) -> None:
    loader = make_loader()
    batch = next(iter(loader))
    assert loader.backend == backend
    assert (batch.image_NCHW.device.type, batch.mask_NHW.device.type) == (device.type, device.type)
    assert batch.image_NCHW.dtype == torch.uint8
    assert batch.image_NCHW.shape == (4, 3, 24, 32)
    assert batch.image_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert batch.mask_NHW.dtype == torch.uint8
    assert batch.mask_NHW.shape == (4, 24, 32)
    assert batch.sample_ids.dtype == np.int64
    assert batch.sample_ids.shape == (4,)
    assert set(batch.mask_NHW.unique().tolist()) <= {0, 1, 2, 3, 4, 5, 255}


def test_masks_of_many_classes_are_uint16(make_loader: MakeLoader, tmp_path: Path) -> None:
    labels = make_labels(300)
    one = make_sample(0, (24, 32), labels=labels)
    write_shards(tmp_path / "wide", [one], labels=labels)
    batch = keep(make_loader(folder=tmp_path / "wide", training=False))[0]
    assert batch.mask.dtype == torch.uint16
    assert np.array_equal(batch.mask[0].numpy(), one.mask)
    assert one.mask.max() == 65535


def test_two_classes_are_unpacked_from_bits(make_loader: MakeLoader, tmp_path: Path) -> None:
    labels = make_labels(2, has_ignore=False)
    made = [make_sample(i, (24, 32), labels=labels) for i in range(3)]
    write_shards(tmp_path / "bits", made, labels=labels)
    batch = keep(make_loader(folder=tmp_path / "bits", training=False))[0]
    assert np.array_equal(batch.mask.numpy(), np.stack([one.mask for one in made]))


def test_training_reads_an_endless_stream_of_full_batches(make_loader: MakeLoader) -> None:
    loader = make_loader()
    assert loader.num_samples == 13
    assert loader.num_batches == 4
    batches = keep(loader, 13)  # 52 samples: four epochs
    stream = list(itertools.chain.from_iterable(batch.ids for batch in batches))
    assert stream == Order(13, seed=0).locate(np.arange(52)).sample_ids.tolist()
    for epoch in range(4):
        assert sorted(stream[epoch * 13 : (epoch + 1) * 13]) == list(range(13))
    assert loader.position == 52


def test_a_batch_larger_than_the_epoch(make_loader: MakeLoader) -> None:
    ids = keep(make_loader(batch_size=30), 2)
    assert [len(batch.ids) for batch in ids] == [30, 30]
    assert sorted(ids[0].ids[:13]) == list(range(13))


def test_validation_sees_each_sample_once_in_index_order_and_again(make_loader: MakeLoader) -> None:
    loader = make_loader(training=False, augment=ALL)
    first, second = keep(loader), keep(loader)
    assert [batch.ids for batch in first] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    assert loader.num_batches == 4
    assert loader.position == 13
    assert first == second


def test_a_validation_pass_that_was_broken_off_begins_anew(make_loader: MakeLoader) -> None:
    loader = make_loader(training=False)
    begun = keep(loader, 2)
    again = keep(loader)
    assert again[:2] == begun
    assert [batch.ids for batch in again] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]


def test_training_goes_on_where_the_loop_left_off(make_loader: MakeLoader) -> None:
    loader = make_loader(augment=ALL)
    assert keep(loader, 3) + keep(loader, 4) == keep(make_loader(augment=ALL), 7)


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_threads_change_nothing(make_loader: MakeLoader, sampler: str) -> None:
    def run(threads: int, prefetch: int) -> list[Kept]:
        return keep(make_loader(augment=ALL, sampler=sampler, threads=threads, prefetch_batches=prefetch), 9)

    assert run(1, 1) == run(5, 2) == run(3, 7)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches(make_loader: MakeLoader, world_size: int) -> None:
    alone = keep(make_loader(augment=ALL), 7)
    ranks = [keep(make_loader(augment=ALL, rank=rank, world_size=world_size), 7) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert [len(part.ids) for part in parts] == [4 // world_size] * world_size
        joined = Kept(
            list(itertools.chain.from_iterable(part.ids for part in parts)),
            *(torch.cat([getattr(p, n) for p in parts]) for n in ("image", "mask")),
        )
        assert joined == whole


def test_ranks_share_a_validation_pass(make_loader: MakeLoader) -> None:
    ranks = [keep(make_loader(training=False, rank=rank, world_size=2)) for rank in range(2)]
    assert [batch.ids for batch in ranks[0]] == [[0, 1], [4, 5], [8, 9]]  # the last batch has one sample
    assert [batch.ids for batch in ranks[1]] == [[2, 3], [6, 7], [10, 11], [12]]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sampler", ["shuffle", "balanced", "sequential"])
def test_resume_goes_on_with_the_next_sample(make_loader: MakeLoader, sampler: str, world_size: int) -> None:
    def make(**settings: object) -> Loader:
        return make_loader(augment=ALL, sampler=sampler, world_size=world_size, **settings)

    whole = keep(make(), 11)
    resumed: list[Kept] = []
    state = make().state_dict()
    for count, threads in ((3, 1), (1, 3), (0, 2), (5, 1), (2, 2)):  # five runs in a row; in mid-epoch; with nothing done
        loader = make(threads=threads)
        loader.load_state_dict(json.loads(json.dumps(state)))
        resumed += keep(loader, count)
        state = loader.state_dict()
    assert resumed == whole
    assert state["position"] == 44


def test_the_number_of_ranks_may_change_on_resume(make_loader: MakeLoader) -> None:
    whole = keep(make_loader(augment=ALL), 6)
    pair = [make_loader(augment=ALL, rank=rank, world_size=2) for rank in range(2)]
    for loader in pair:
        keep(loader, 2)
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = make_loader(augment=ALL)
    alone.load_state_dict(pair[0].state_dict())
    assert keep(alone, 4) == whole[2:]


@pytest.mark.parametrize("training", [True, False])
def test_batches_in_the_making_are_given_up_on_a_jump(make_loader: MakeLoader, training: bool) -> None:
    """A loader is sent back and forth while it has batches under way: none of them may come out in another's place."""
    settings = {"training": training, "augment": ALL, "batch_size": 2, "prefetch_batches": 3}
    first = make_loader(**settings)
    states, whole = [first.state_dict()], []
    for batch in itertools.islice(first, 6):
        whole += keep(iter([batch]))
        states.append(first.state_dict())
    loader = make_loader(**settings)
    for place in (2, 0, 3, 1, 1, 4):
        loader.load_state_dict(states[place])
        found = []
        for batch in itertools.islice(loader, 2):
            found += keep(iter([batch]))
            time.sleep(0.02)  # so that there is something to give up
        assert found == whole[place : place + 2]


def test_prefetched_batches_do_not_count(make_loader: MakeLoader) -> None:
    loader = make_loader(prefetch_batches=8)
    keep(loader, 1)
    assert loader.position == loader.state_dict()["position"] == 4


def test_resume_at_the_end_of_an_epoch(make_loader: MakeLoader) -> None:
    loader = make_loader(batch_size=13)
    whole = keep(loader, 3)
    again = make_loader(batch_size=13)
    again.load_state_dict(loader.state_dict() | {"position": 13})
    assert keep(again, 2) == whole[1:]


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_a_validation_pass_is_resumed(make_loader: MakeLoader, count: int) -> None:
    loader = make_loader(training=False)
    whole = keep(loader, 4)
    begun = make_loader(training=False)
    keep(begun, count)
    resumed = make_loader(training=False)
    resumed.load_state_dict(begun.state_dict())
    assert keep(resumed) == whole[count:]
    assert keep(resumed) == whole  # the next pass is whole


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, r"train.seed: 0 in the saved state, 1 here"),
        ({"batch_size": 8}, r"loader.batch_size: 4 in the saved state, 8 here"),
        ({"sampler": "sequential"}, r"loader.sampler: shuffle in the saved state, sequential here"),
        ({"order": {"shuffle": "block"}}, r"order.shuffle: global in the saved state, block here"),
        ({"augment": {"hflip": {"prob": 0.25}}}, r"augment.hflip.prob: 0.0 in the saved state, 0.25 here"),
        ({"size_hw": [24, 40]}, r"loader.size_hw: 24x32 in the saved state, 24x40 here"),
        ({"decode": "fast"}, r"loader.decode: exact in the saved state, fast here"),
        ({"training": False}, r"split: train in the saved state, val here"),
    ],
)
def test_a_state_of_another_stream_is_refused(make_loader: MakeLoader, change: dict[str, object], field: str) -> None:
    state = make_loader().state_dict()
    other = make_loader(**change)
    with pytest.raises(UserError, match=field):
        other.load_state_dict(state)
    assert other.position == 0


def test_a_state_of_other_data_is_refused(make_loader: MakeLoader, tmp_path: Path) -> None:
    write_shards(tmp_path / "other", [make_sample(i, (24, 32)) for i in range(3)])
    with pytest.raises(UserError, match=r"(?s)manifest: .*num_samples: 13 in the saved state, 3 here"):
        make_loader(folder=tmp_path / "other").load_state_dict(make_loader().state_dict())


def test_a_state_without_a_place_is_refused(make_loader: MakeLoader) -> None:
    loader = make_loader()
    with pytest.raises(UserError, match="position: -1, expected a place in the stream"):
        loader.load_state_dict(loader.state_dict() | {"position": -1})
    with pytest.raises(UserError, match="position: None"):
        loader.load_state_dict({key: value for key, value in loader.state_dict().items() if key != "position"})


def test_balanced_takes_samples_with_rare_classes_more_often(make_loader: MakeLoader, tmp_path: Path) -> None:
    made = [make_sample(i, (24, 32), labels=make_labels(3)) for i in range(16)]
    for i, one in enumerate(made):
        one.mask[...] = one.mask % 2 if i != 5 else 2
    write_shards(tmp_path / "rare", made, labels=make_labels(3))
    ids = [i for batch in keep(make_loader(folder=tmp_path / "rare", sampler="balanced", augment=ALL), 40) for i in batch.ids]
    counts = np.bincount(ids, minlength=16)
    assert counts[5] > 2 * np.delete(counts, 5).max()
    assert counts.min() >= 5


def test_repeats_of_a_sample_in_an_epoch_are_changed_differently(make_loader: MakeLoader, tmp_path: Path) -> None:
    made = [make_sample(i, (24, 32), labels=make_labels(3)) for i in range(16)]
    for i, one in enumerate(made):
        one.mask[...] = one.mask % 2 if i != 5 else 2
    write_shards(tmp_path / "rare", made, labels=make_labels(3))
    augment = {"rotation": {"prob": 1.0}}
    batch = keep(make_loader(folder=tmp_path / "rare", sampler="balanced", augment=augment, batch_size=16), 1)[0]
    copies = [batch.image[row] for row, sample_id in enumerate(batch.ids) if sample_id == 5]
    assert len(copies) > 1
    assert not torch.equal(copies[0], copies[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world_size": 3}, r"a global batch of 4 cannot be shared by 3 processes; set loader.batch_size to .* such as 6"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes"),
        ({"on_bad": "skip", "world_size": 2}, 'loader.on_bad = "skip" with several processes'),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_loader: MakeLoader, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loader(**settings)
