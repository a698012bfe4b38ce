from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetfast.loader.order import Order, balance_weights, rank_part

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100, 1023, 1025]


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize(("shuffle", "block_size"), [("global", 1), ("block", 1), ("block", 4), ("block", 32), ("block", 5000)])
def test_every_sample_stands_once_in_every_epoch(num_samples: int, shuffle: str, block_size: int) -> None:
    order = Order(num_samples, seed=3, shuffle=shuffle, block_size=block_size)
    places = order.locate(np.arange(3 * num_samples))
    for epoch in range(3):
        ids = places.sample_ids[epoch * num_samples : (epoch + 1) * num_samples]
        assert np.array_equal(np.sort(ids), np.arange(num_samples))
    assert np.array_equal(places.epochs, np.arange(3).repeat(num_samples))
    assert not places.repeats.any()


@given(num_samples=st.integers(1, 4000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_size_seed_and_epoch_is_a_bijection(num_samples: int, seed: int, epoch: int) -> None:
    ids = Order(num_samples, seed=seed).locate(epoch * num_samples + np.arange(num_samples)).sample_ids
    assert np.array_equal(np.sort(ids), np.arange(num_samples))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_position_is_found_without_the_ones_before(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 300))
    shuffle = data.draw(st.sampled_from(["global", "block"]))
    order = Order(num_samples, seed=1, shuffle=shuffle, block_size=data.draw(st.integers(1, 50)))
    stream = order.locate(np.arange(4 * num_samples)).sample_ids
    start = data.draw(st.integers(0, 4 * num_samples - 1))
    assert np.array_equal(order.locate(np.arange(start, 4 * num_samples)).sample_ids, stream[start:])


def test_positions_of_a_huge_data_set_are_found_at_once() -> None:
    order = Order(50_000_001, seed=9)
    places = order.locate(np.array([10**6, 50_000_000, 7 * 50_000_001 + 3]))
    assert places.epochs.tolist() == [0, 0, 7]
    assert ((places.sample_ids >= 0) & (places.sample_ids < 50_000_001)).all()


def test_seeds_and_epochs_permute_differently() -> None:
    def ids(seed: int, epoch: int) -> np.ndarray:
        return Order(500, seed=seed).locate(epoch * 500 + np.arange(500)).sample_ids

    for other in (ids(1, 1), ids(2, 0), ids(2**62, 0)):
        same = (other == ids(1, 0)).sum()
        assert same < 10  # one is to be expected by chance


@pytest.mark.parametrize("num_samples", [3, 5, 6, 12])
def test_small_permutations_are_even(num_samples: int) -> None:
    """Each sample stands at each place, and follows each other sample, equally often over many epochs."""
    num_epochs = 12_000
    ids = Order(num_samples, seed=4).locate(np.arange(num_epochs * num_samples)).sample_ids.reshape(num_epochs, num_samples)
    for other in range(1, num_samples):
        pairs = np.bincount(ids[:, 0] * num_samples + ids[:, other], minlength=num_samples**2).reshape(num_samples, num_samples)
        assert not np.diag(pairs).any()
        expected = num_epochs / (num_samples * (num_samples - 1))
        off_diagonal = pairs[~np.eye(num_samples, dtype=bool)]
        assert np.abs(off_diagonal - expected).max() < 6 * np.sqrt(expected)
    for place in range(num_samples):
        counts = np.bincount(ids[:, place], minlength=num_samples)
        assert np.abs(counts - num_epochs / num_samples).max() < 6 * np.sqrt(num_epochs / num_samples)


def test_shuffling_has_no_short_range_order() -> None:
    ids = Order(10_000, seed=0).locate(np.arange(10_000)).sample_ids
    assert abs(np.corrcoef(ids, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05


def test_block_shuffling_keeps_neighbours_together_and_moves_blocks_and_samples() -> None:
    order = Order(1000, seed=5, shuffle="block", block_size=64)
    epochs = order.locate(np.arange(2000)).sample_ids.reshape(2, 1000)
    for ids in epochs:
        blocks = ids // 64
        changes = np.flatnonzero(np.diff(blocks)) + 1
        assert len(changes) == 15  # 15 full blocks and one of 40: each in one run
        runs = np.split(ids, changes)
        assert any(not np.array_equal(run, np.sort(run)) for run in runs)
        assert [run[0] // 64 for run in runs] != sorted(run[0] // 64 for run in runs)
    assert (epochs[0] // 64).tolist() != (epochs[1] // 64).tolist()


def test_sequential_is_index_order() -> None:
    assert Order(4, seed=8, sampler="sequential").locate(np.arange(9)).sample_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_balanced_gives_each_sample_its_share() -> None:
    weights = np.array([1.0, 1.0, 3.0, 1.5, 1.0, 2.0, 1.0, 1.0])
    order = Order(8, seed=2, sampler="balanced", weights=weights)
    wanted = 8 * weights / weights.sum()
    total = np.zeros(8)
    for epoch in range(400):
        ids = order.locate(epoch * 8 + np.arange(8)).sample_ids
        counts = np.bincount(ids, minlength=8)
        assert ((counts == np.floor(wanted)) | (counts == np.ceil(wanted))).all()
        total += counts
    assert np.abs(total / 400 - wanted).max() < 0.1


def test_balanced_numbers_the_repeats_of_a_sample() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 9, 500) ** 2
    places = Order(500, seed=2, sampler="balanced", weights=weights).locate(np.arange(1500))
    for epoch in range(3):
        part = places[slice(epoch * 500, (epoch + 1) * 500)]
        for sample_id in np.unique(part.sample_ids):
            repeats = np.sort(part.repeats[part.sample_ids == sample_id])
            assert repeats.tolist() == list(range(len(repeats)))
    assert places.repeats.max() > 1


def test_weights_favour_samples_with_rare_classes() -> None:
    presence = np.zeros((100, 4), dtype=bool)
    presence[:, 0] = True
    presence[:50, 1] = True
    presence[:8, 2] = True
    weights = balance_weights(presence)  # the shares of the three that occur: 1, 0.5, 0.08; their median is 0.5
    assert np.allclose(weights[:8], np.sqrt(0.5 / 0.08))
    assert np.allclose(weights[8:], 1)
    assert np.array_equal(balance_weights(np.zeros((3, 2), dtype=bool)), np.ones(3))


@given(st.integers(0, 200), st.integers(1, 17))
def test_the_parts_of_all_ranks_are_the_batch(num_in_batch: int, world_size: int) -> None:
    batch = np.arange(num_in_batch)
    parts = [batch[rank_part(num_in_batch, rank, world_size)] for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
