"""Our own loader as a side: `build_loader` on packed shards, as training calls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peers.loading import LoaderTask, Stream

from unetfast.config import apply_overrides, build_config, read_preset_tree
from unetfast.data.reader import open_shards
from unetfast.device import resolve_device
from unetfast.loader.build import build_loader

KNOBS = ({"threads": 0, "batch_size": 16},)  # as it comes: a thread for each core
_PLAIN = ("augment.hflip.prob=0", "augment.resized_crop.prob=0")


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    preset = "r1" if task.dataset == "carvana" else "ade20k"
    overrides = [
        "loader.backend=cpu",
        f"loader.threads={knobs['threads']}",
        f"loader.batch_size={knobs['batch_size']}",
        f"loader.size_hw=[{task.size_hw[0]}, {task.size_hw[1]}]",
        f"train.seed={task.seed}",
        *(() if task.turned else _PLAIN),
        *task.settings,
    ]
    config = build_config(apply_overrides(read_preset_tree(preset), overrides), where=task.module)
    reader = open_shards(task.store).split("train", checksum=config.loader.checksum)
    loader = build_loader(reader, config, training=not plain, device=resolve_device("cpu"))

    def batches() -> Iterator[tuple[Any, Any]]:
        for batch in loader:
            yield batch.image_NCHW, batch.mask_NHW

    def close() -> None:
        loader.close()
        reader.close()

    keys = tuple(reader.key(sample) for sample in range(reader.num_samples))
    return Stream(batches(), close, keys, num_ahead=config.loader.prefetch_batches + 1)
