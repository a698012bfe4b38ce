"""Our own loader as a side: `build_loader` on packed shards, as training calls it, and what its steps take of an image."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from peers.loading import LoaderTask, Stream

from unetfast.bench.harness import spread
from unetfast.config import Config, apply_overrides, build_config, read_preset_tree
from unetfast.data.reader import SplitReader, open_shards
from unetfast.device import resolve_device
from unetfast.loader import cpu
from unetfast.loader.build import build_loader

KNOBS = ({"threads": 0, "batch_size": 16},)  # as it comes: a thread for each core
_PLAIN = ("augment.hflip.prob=0", "augment.resized_crop.prob=0")
_STEP_ROUNDS = 5
# what the threads of the CPU backend call for a row of a batch; none of these calls another
_STEPS = {
    (SplitReader, "read_pair"): "read and check",
    (cpu, "load_packed"): "packed sample",  # all of one that lies in LZ4 frames
    (cpu, "decode_sample"): "image",  # decoded or inflated
    (cpu, "resize_box"): "resize",
    (cpu, "warp_image"): "rotation",
    (cpu, "flip_image"): "flip",
    (cpu, "decode_mask"): "mask",  # inflated
    (cpu, "inflate_mask"): "mask",
    (cpu, "inflate_bits"): "mask",
    (cpu, "gather_mask"): "mask lookup",
}


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    config = resolve_config(task, knobs)
    if plain:
        config = _switch_off_changes(config)
    reader = open_shards(task.store).split("train", checksum=config.loader.checksum)
    loader = build_loader(reader, config, training=True, device=resolve_device("cpu"))

    def batches() -> Iterator[tuple[Any, Any]]:
        for batch in loader:
            yield batch.image_NCHW, batch.mask_NHW

    def in_order() -> Iterator[tuple[Any, Any]]:
        """One epoch of the same batches, sorted: what is judged is what training gets, not what is scored."""
        made: dict[int, tuple[Any, Any]] = {}
        for batch in loader:
            images, masks = batch.image_NCHW.clone(), batch.mask_NHW.clone()
            made |= {sample: (images[row], masks[row]) for row, sample in enumerate(batch.sample_ids.tolist())}
            if len(made) == reader.num_samples:
                break
        for sample in sorted(made):
            yield made[sample][0][None], made[sample][1][None]

    def close() -> None:
        loader.close()
        reader.close()

    keys = tuple(reader.key(sample) for sample in range(reader.num_samples))
    told = config.model_dump(mode="json", include={"loader", "augment", "order"})
    facts = {"backend": loader.backend, "config": told}
    return Stream(in_order() if plain else batches(), close, keys, num_ahead=config.loader.prefetch_batches + 1, facts=facts)


def resolve_config(task: LoaderTask, knobs: dict[str, int]) -> Config:
    """Return the data set's preset with what the task asks for."""
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
    return build_config(apply_overrides(read_preset_tree(preset), overrides), where=task.module)


def _switch_off_changes(config: Config) -> Config:
    """Return the config without anything that is drawn by chance."""
    sections = config.augment.model_dump()
    off = {
        name: section | {"prob": 0.0} for name, section in sections.items() if isinstance(section, dict) and "prob" in section
    }
    augment = type(config.augment).model_validate(sections | off)
    return config.model_copy(update={"augment": augment})


def measure_steps(task: LoaderTask) -> dict[str, Any]:
    """Time the steps of an image: the loader's own functions, called by its one thread on the batches that it makes.

    Returns:
        Core-ms an image of each step and of "all", as spreads over short rounds; empty for another backend.
    """
    spent_s: Counter[str] = Counter()
    took_ms: dict[str, list[float]] = {name: [] for name in ("all", *_STEPS.values())}
    with contextlib.ExitStack() as stack:
        for (place, function), name in _STEPS.items():
            stack.enter_context(patch.object(place, function, _timed(getattr(place, function), name, spent_s)))
        stream = stack.enter_context(contextlib.closing(open_stream(task, KNOBS[0] | {"threads": 1}, plain=False)))
        if stream.facts["backend"] != "cpu":
            return {}
        for _ in itertools.islice(stream.batches, stream.num_ahead):
            pass
        for _ in range(_STEP_ROUNDS):
            before_s = {name: spent_s[name] for name in _STEPS.values()}  # the loader's thread goes on adding
            end_s, core_s, num_images = time.perf_counter() + task.step_round_s, time.process_time(), 0
            while time.perf_counter() < end_s:
                num_images += len(next(stream.batches)[0])
            took_ms["all"].append(1e3 * (time.process_time() - core_s) / num_images)
            for name, former_s in before_s.items():
                took_ms[name].append(1e3 * (spent_s[name] - former_s) / num_images)
    return {name: spread(rounds) for name, rounds in took_ms.items() if any(rounds)}


def _timed(function: Callable[..., Any], name: str, spent_s: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        began_s = time.thread_time()
        try:
            return function(*args, **named)
        finally:
            spent_s[name] += time.thread_time() - began_s

    return call
