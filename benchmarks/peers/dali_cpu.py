"""DALI's CPU backend with antialiasing, as its own examples have it (yardstick.py), on shards with PNG masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from yardstick import build_yardstick

from peers.loading import LoaderTask, Stream
from unetfast.config import AugmentConfig
from unetfast.data.reader import open_shards

KNOBS = tuple({"threads": threads, "batch_size": size} for threads, size in ((2, 16), (1, 16), (2, 64)))
_AHEAD = 4  # batches: the reader's queue and the pipeline's


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    assert not task.turned, "this side resizes only"
    torch.set_num_threads(1)
    iterator = build_yardstick(
        task.store / "train",
        AugmentConfig(),
        size_hw=task.size_hw,
        batch_size=knobs["batch_size"],
        num_threads=knobs["threads"],
        device_id=None,
        seed=task.seed,
        shuffle=not plain,
    )

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            for outputs in iterator:
                yield outputs[0]["image"].permute(0, 3, 1, 2), outputs[0]["mask"][..., 0]

    with open_shards(task.store).split("train") as reader:
        keys = tuple(reader.key(sample) for sample in range(reader.num_samples))
    return Stream(batches(), lambda: None, keys, num_ahead=_AHEAD)
