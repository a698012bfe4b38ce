"""torchvision on threads, the image alone: read_file, decode_jpeg, antialiased resize of bytes; no masks at all."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2.functional import resize

from peers.loading import LoaderTask, Pair, Stream
from peers.torch_loader import EndlessShuffle

KNOBS = tuple({"threads": threads, "batch_size": size} for threads, size in ((2, 16), (1, 16), (2, 64)))
_AHEAD = 2  # batches


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    torch.set_num_threads(1)  # the pool is what runs side by side

    def load(pair: Pair) -> torch.Tensor:
        image = decode_jpeg(read_file(str(pair.image)), mode=ImageReadMode.RGB)
        return resize(image, list(task.size_hw), antialias=True)

    order = iter(range(len(task.pairs)) if plain else EndlessShuffle(len(task.pairs), task.seed))
    pool = ThreadPoolExecutor(knobs["threads"])

    def batches() -> Iterator[tuple[Any, None]]:
        under_way: deque[list[Future[torch.Tensor]]] = deque()
        while True:
            while len(under_way) <= _AHEAD:
                numbers = list(itertools.islice(order, knobs["batch_size"]))
                under_way.append([pool.submit(load, task.pairs[number]) for number in numbers])
            futures = under_way.popleft()
            if not futures:
                return
            yield torch.stack([future.result() for future in futures]), None

    def close() -> None:
        pool.shutdown(wait=True, cancel_futures=True)

    return Stream(batches(), close, tuple(pair.key for pair in task.pairs), num_ahead=_AHEAD)
