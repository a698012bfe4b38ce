"""What is the CPU backend's own: its memory is reused, and its batches go to a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loader_batches import keep

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader

CPU = torch.device("cpu")


def make(folder: Path, **settings: object) -> Loader:
    section = {"size_hw": [24, 32], "batch_size": 4, "threads": 2, **settings}
    return build_loader(open_shards(folder).split("train"), build_config({"loader": section}), training=True, device=CPU)


def test_memory_is_a_ring_of_prefetched_batches(shards: Path) -> None:
    with make(shards, prefetch_batches=3) as loader:
        places = set()
        for _, batch in zip(range(20), loader, strict=False):
            places.add((batch.image_NCHW.data_ptr(), batch.mask_NHW.data_ptr()))
        assert len(places) == 4


def test_a_batch_is_valid_until_the_next_is_asked_for(shards: Path) -> None:
    with make(shards, prefetch_batches=1) as loader:
        stream = iter(loader)
        for _ in range(10):
            batch = next(stream)
            before = batch.image_NCHW.clone(), batch.mask_NHW.clone()
            loader._pool.submit(lambda: None).result()  # type: ignore[attr-defined]
            for job in loader._jobs:  # type: ignore[attr-defined]
                for future in job.futures:
                    future.result()  # all that is prefetched is done now
            assert torch.equal(batch.image_NCHW, before[0])
            assert torch.equal(batch.mask_NHW, before[1])


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_host(shards: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = torch.device("cuda", 0)

    def build(where: torch.device, prefetch: int) -> Loader:
        section = {"size_hw": [24, 32], "batch_size": 4, "threads": 2, "prefetch_batches": prefetch, "backend": "cpu"}
        config = build_config({"loader": section, "augment": {"rotation": {"prob": 0.5}}})
        return build_loader(open_shards(shards).split("train"), config, training=True, device=where)

    with build(CPU, 2) as host, build(device, 1) as gpu:
        expected = keep(host, 60)
        sleeper = torch.zeros(2048, 2048, device=device)
        kept = []
        for _, batch in zip(range(60), gpu, strict=False):
            assert batch.image_NCHW.device == device
            assert batch.image_NCHW.is_contiguous(memory_format=torch.channels_last)
            for _ in range(5):
                sleeper = sleeper @ sleeper  # the copy waits behind this; its source must wait too
            kept.append((batch.image_NCHW, batch.mask_NHW, batch.sample_ids.tolist()))
        for (image, mask, ids), host_batch in zip(kept, expected, strict=True):
            assert ids == host_batch.ids
            assert torch.equal(image.cpu(), host_batch.image)
            assert torch.equal(mask.cpu(), host_batch.mask)
