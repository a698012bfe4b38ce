"""Errors travel between processes, and say what, where and what to do."""

from __future__ import annotations

import pickle

import pytest

from unetfast.errors import BadSampleError, CorruptShardError, UserError


def test_a_bad_sample_names_file_reason_and_remedy() -> None:
    error = BadSampleError("a/b.gif", "values 0 and 7", "map it with --map 7=1")
    assert str(error) == "a/b.gif: values 0 and 7\n  map it with --map 7=1"
    assert isinstance(error, UserError)


def test_a_corrupt_shard_names_its_place_and_what_to_do() -> None:
    error = CorruptShardError("key x in train/000000.tar at 512", "the checksum differs")
    assert str(error).startswith("key x in train/000000.tar at 512: the checksum differs")
    assert "--verify" in str(error)


@pytest.mark.parametrize("error", [BadSampleError("a", "b", "c"), CorruptShardError("a", "b"), UserError("a")])
def test_errors_come_back_whole_from_another_process(error: UserError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_user_errors_are_value_errors() -> None:
    assert issubclass(UserError, ValueError)
