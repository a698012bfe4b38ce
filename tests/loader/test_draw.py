from __future__ import annotations

import numpy as np
import pytest

from unetfast.loader.draw import STREAM_AUGMENT, STREAM_ORDER, draw_uniform, draw_words, philox4x32

# Random123, tests/kat_vectors, the lines "philox4x32 10": counter, key, result
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(line: str) -> None:
    words = [int(word, 16) for word in line.split()]
    counter = np.array(words[:4], dtype=np.uint64).reshape(4, 1).repeat(3, axis=1)
    result = philox4x32(counter, (words[4], words[5]))
    assert result.T.tolist() == [words[6:]] * 3


def test_a_draw_depends_on_its_arguments_alone() -> None:
    epochs, indices, repeats = np.array([0, 3, 3]), np.array([7, 7, 8]), np.array([0, 0, 1])
    together = draw_words(5, STREAM_AUGMENT, epochs, indices, repeats, 7)
    for row in range(3):
        one = slice(row, row + 1)
        alone = draw_words(5, STREAM_AUGMENT, epochs[one], indices[one], repeats[one], 4)
        assert np.array_equal(alone[0], together[row, :4])


def test_every_argument_changes_the_draw() -> None:
    def draw(seed: int = 1, stream: int = STREAM_ORDER, epoch: int = 2, index: int = 3, repeat: int = 4) -> tuple[int, ...]:
        return tuple(draw_words(seed, stream, np.array([epoch]), np.array([index]), np.array([repeat]), 4)[0].tolist())

    draws = [draw(), draw(seed=2), draw(seed=2**40), draw(stream=STREAM_AUGMENT), draw(epoch=3), draw(index=4), draw(repeat=5)]
    assert len(set(draws)) == len(draws)


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    count = 20_000
    zeros = np.zeros(count, dtype=np.int64)
    numbers = draw_uniform(11, STREAM_AUGMENT, zeros, np.arange(count), zeros, 3)
    assert numbers.shape == (count, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    assert np.abs(histogram - 0.1).max() < 0.006  # five standard deviations
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.04
