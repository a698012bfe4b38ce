"""The sample order: (seed, epoch, place) -> sample id, in O(1), with no array of N to hold.

A training run reads one endless stream of positions; position p is place p % N of epoch p // N. In an epoch, places map to
samples by a keyed bijection: a Feistel network on the smallest power of two >= N, walked until the result is < N (Black and
Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). No shuffled list is stored, so any position, also of a huge data
set, is reached at once, and every backend, rank and thread computes the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unetfast.loader.draw import STREAM_ORDER, draw_words

# Feistel rounds; small domains have weak rounds (few bits each), so more than the usual 4 to 8
_NUM_ROUNDS = 12
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True)
class Places:
    """Which samples stand at some positions of the stream; arrays of one length.

    Args:
        positions: places in the stream, epoch * N + offset, int64.
        epochs: int64.
        sample_ids: places in the split's index, int64.
        repeats: numbers the places that one sample has in one epoch, from 0; always 0 unless the sampler is "balanced", int64.
    """

    positions: np.ndarray
    epochs: np.ndarray
    sample_ids: np.ndarray
    repeats: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice | np.ndarray) -> Places:
        return Places(self.positions[part], self.epochs[part], self.sample_ids[part], self.repeats[part])


class Order:
    """Maps positions of the stream to samples.

    Args:
        num_samples: N, samples of the split; the length of an epoch under every sampler.
        seed: of the run.
        sampler: "shuffle" (each sample once an epoch, permuted), "sequential" (each once, in index order) or "balanced"
            (`weights` decide how often; permuted).
        shuffle: for "shuffle" alone. "global" permutes all samples. "block" permutes blocks of `block_size` neighbours, and the
            samples inside each block: long reads for disks and network storage.
        block_size: samples of a block; the last one may be smaller.
        weights: for "balanced": how often each sample is wanted, relative to the others, above 0, float64, (N,).
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        sampler: Literal["shuffle", "sequential", "balanced"] = "shuffle",
        shuffle: Literal["global", "block"] = "global",
        block_size: int = 1024,
        weights: np.ndarray | None = None,
    ) -> None:
        assert num_samples > 0
        assert (weights is not None) == (sampler == "balanced")
        self.num_samples = num_samples
        self.seed = seed
        self.sampler = sampler
        self.shuffle = shuffle
        self.block_size = min(block_size, num_samples)
        self._cumulative = np.cumsum(weights, dtype=np.float64) if weights is not None else None

    def locate(self, positions: np.ndarray) -> Places:
        """Find the samples at `positions` (int64, >= 0, any order); O(1) each, O(log N) for "balanced"."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        repeats = np.zeros_like(positions)
        if self.sampler == "sequential":
            sample_ids = offsets
        elif self.sampler == "balanced":
            sample_ids, repeats = self._sample_balanced(epochs, self._permute_all(epochs, offsets))
        elif self.shuffle == "block":
            sample_ids = self._permute_blocks(epochs, offsets)
        else:
            sample_ids = self._permute_all(epochs, offsets)
        return Places(positions, epochs, sample_ids, repeats)

    def _permute_all(self, epochs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return permute(offsets, self.num_samples, self._draw_keys(epochs, np.zeros_like(epochs), 0))

    def _permute_blocks(self, epochs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Permute the full blocks; the short last block, if any, goes to a slot between them, drawn for the epoch."""
        size = self.block_size
        num_full, num_left = divmod(self.num_samples, size)
        keys = self._draw_keys(epochs, np.zeros_like(epochs), 1)
        short_start = (keys[-1] % np.uint64(num_full + 1)).astype(np.int64) * size
        in_short = (offsets >= short_start) & (offsets < short_start + num_left)
        slots, inner = np.divmod(np.where(offsets >= short_start + num_left, offsets - num_left, offsets), size)
        slots = np.where(in_short, 0, slots)
        inner = np.where(in_short, offsets - short_start, inner)
        blocks = np.where(in_short, num_full, permute(slots, num_full, keys))
        block_keys = self._draw_keys(epochs, blocks, 2)
        inside = permute(np.where(in_short, 0, inner), size, block_keys)
        if num_left:
            inside = np.where(in_short, permute(np.where(in_short, inner, 0), num_left, block_keys), inside)
        return np.asarray(blocks * size + inside)

    def _sample_balanced(self, epochs: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Systematic sampling (Madow 1949): N equally spaced points, shifted by one draw an epoch, on the summed weights.

        Sample s stands floor or ceil of N * weight[s] / sum(weights) times in an epoch.
        """
        assert self._cumulative is not None
        shifts = (self._draw_keys(epochs, np.zeros_like(epochs), 3)[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        step = self._cumulative[-1] / self.num_samples
        sample_ids = np.searchsorted(self._cumulative, (places + shifts) * step, side="right")
        sample_ids = np.minimum(sample_ids, self.num_samples - 1).astype(np.int64)
        # the first place whose point falls on the sample; rounding is mended by the very comparison made above
        lower = np.where(sample_ids > 0, self._cumulative[sample_ids - 1], 0.0)
        first = np.maximum(np.ceil(lower / step - shifts), 0.0)
        first += (first + shifts) * step < lower
        first -= (first >= 1) & ((first - 1 + shifts) * step >= lower)
        return sample_ids, places - first.astype(np.int64)

    def _draw_keys(self, epochs: np.ndarray, indices: np.ndarray, purpose: int) -> np.ndarray:
        """Draw round keys for each (epoch, index); few are distinct, so each is drawn once. uint64, (rounds + 1, n)."""
        pairs, inverse = np.unique(np.stack([epochs, indices]), axis=1, return_inverse=True)
        repeats = np.full(pairs.shape[1], purpose)
        return draw_words(self.seed, STREAM_ORDER, pairs[0], pairs[1], repeats, _NUM_ROUNDS + 1)[inverse.reshape(-1)].T


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Apply a keyed bijection of [0, size) to each value.

    Args:
        values: int64 in [0, size), (n,).
        size: of the domain.
        keys: round keys, uint64, (at least 12, n): values with equal keys are permuted by one bijection.

    Returns:
        int64 in [0, size), (n,).
    """
    num_bits = max((size - 1).bit_length(), 2)
    result = _feistel(values.astype(np.uint64), num_bits, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # a cycle that begins inside comes back inside
        result[outside] = _feistel(result[outside], num_bits, keys[:, outside])
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, num_bits: int, keys: np.ndarray) -> np.ndarray:
    """Permute [0, 2**num_bits): the two halves, of equal width or one bit apart, mask each other in turn."""
    low_bits = np.uint64(num_bits // 2)
    low_mask, high_mask = (_ONE << low_bits) - _ONE, (_ONE << (np.uint64(num_bits) - low_bits)) - _ONE
    low, high = values & low_mask, values >> low_bits
    for index in range(0, _NUM_ROUNDS, 2):
        low = low ^ (_mix(high, keys[index]) & low_mask)
        high = high ^ (_mix(low, keys[index + 1]) & high_mask)
    return np.asarray(high << low_bits | low)


def _mix(words: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Hash 64-bit words under keys: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), upper half."""
    mixed = (words ^ key) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return np.asarray(mixed >> np.uint64(32))


def rank_part(num_in_batch: int, rank: int, world_size: int) -> slice:
    """Return the part of a global batch that a rank takes; the parts of all ranks, in order, are the batch."""
    return slice(num_in_batch * rank // world_size, num_in_batch * (rank + 1) // world_size)


def rank_places(num_in_batch: int, rank: int, world_size: int, num_parts: int) -> np.ndarray:
    """Return the places in a global batch that a rank takes when the batch is used in equal micro-batches.

    The rank's part of the first micro-batch comes first, then that of the second: so each micro-batch holds the same samples
    whatever the number of processes. Where the batch cannot be cut so, the rank takes one part of the whole.

    Args:
        num_in_batch: samples of the global batch.
        rank: of this process.
        world_size: number of processes.
        num_parts: micro-batches.

    Returns:
        int64, rising, (n,).
    """
    if num_in_batch % (world_size * num_parts):
        num_parts = 1
    size = num_in_batch // num_parts
    part = rank_part(size, rank, world_size)
    return np.add.outer(np.arange(num_parts) * size, np.arange(part.start, part.stop)).reshape(-1)


def balance_weights(presence: np.ndarray) -> np.ndarray:
    """Weigh samples by their rarest class: repeat factors of Gupta, Dollár and Girshick, LVIS, CVPR 2019.

    A class in a share f of the samples has the factor max(1, sqrt(t / f)), a sample the largest factor of its classes. LVIS
    sets t for 1,203 classes; here t is the median share over the classes that occur, so that it fits any number of classes:
    the rarer half of them comes up more often, and nothing changes where all are equally frequent.

    Args:
        presence: which class occurs in which sample, bool, (N, K).

    Returns:
        float64 >= 1, (N,).
    """
    shares = presence.mean(axis=0)
    occurring = shares > 0
    if not occurring.any():
        return np.ones(len(presence))
    threshold = np.median(shares[occurring])
    factors = np.ones(len(shares))
    factors[occurring] = np.maximum(1.0, np.sqrt(threshold / shares[occurring]))
    weights = np.ones(len(presence))
    for class_id in np.flatnonzero(factors > 1):  # class by class: no (N, K) array of floats
        np.maximum(weights, factors[class_id], out=weights, where=presence[:, class_id])
    return weights
