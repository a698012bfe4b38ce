"""Random numbers that need no state: every number is a function of (seed, stream, epoch, index, place).

Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. The sample order and the augmentations draw from here, so a run can be resumed anywhere and any number of threads,
ranks or backends sees the same numbers.
"""

from __future__ import annotations

import numpy as np

# what a number is drawn for: separate streams never share a counter
STREAM_ORDER = 1
STREAM_AUGMENT = 2
STREAM_CROPS = 3

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_NUM_ROUNDS = 10


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute Philox4x32-10 for many counters and one key.

    Args:
        counter: four 32-bit words each, any unsigned dtype, (4, ...).
        key: two 32-bit words.

    Returns:
        Four 32-bit words each, uint64 holding values below 2**32, (4, ...).
    """
    word_0, word_1, word_2, word_3 = (np.asarray(word, dtype=np.uint64) & _LOW for word in counter)
    key_0, key_1 = key
    for _ in range(_NUM_ROUNDS):
        product_0, product_1 = word_0 * _MULTIPLIER_0, word_2 * _MULTIPLIER_1
        word_0 = (product_1 >> _32) ^ word_1 ^ np.uint64(key_0)
        word_2 = (product_0 >> _32) ^ word_3 ^ np.uint64(key_1)
        word_1, word_3 = product_1 & _LOW, product_0 & _LOW
        key_0, key_1 = (key_0 + _WEYL_0) & 0xFFFFFFFF, (key_1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([word_0, word_1, word_2, word_3])


def draw_words(
    seed: int, stream: int, epochs: np.ndarray, indices: np.ndarray, repeats: np.ndarray, num_words: int
) -> np.ndarray:
    """Draw 64-bit words for many (epoch, index, repeat) at once.

    Args:
        seed: of the run, in [0, 2**63).
        stream: one of the streams above.
        epochs: in [0, 2**32), (n,).
        indices: sample, block or zero, in [0, 2**32), (n,).
        repeats: how often the index stood in the epoch before, in [0, 2**32), (n,).
        num_words: words per row, at most 2 * 2**24.

    Returns:
        uint64, (n, num_words), uniform over all 64-bit values. Word j does not depend on `num_words`.
    """
    num_blocks = -(-num_words // 2)
    places = np.arange(num_blocks, dtype=np.uint64)[None, :] | np.uint64(stream << 24)
    rows = [np.asarray(row, dtype=np.uint64)[:, None] for row in (indices, epochs, repeats)]
    counter = np.stack(np.broadcast_arrays(places, *rows))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = np.stack([words[0] << _32 | words[1], words[2] << _32 | words[3]], axis=-1)
    return pairs.reshape(len(epochs), 2 * num_blocks)[:, :num_words]


def draw_uniform(
    seed: int, stream: int, epochs: np.ndarray, indices: np.ndarray, repeats: np.ndarray, num_draws: int
) -> np.ndarray:
    """Draw numbers in [0, 1) with 53 random bits each; arguments as in `draw_words`.

    Returns:
        float64, (n, num_draws).
    """
    words = draw_words(seed, stream, epochs, indices, repeats, num_draws)
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
