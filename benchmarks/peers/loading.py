"""A loader as a side of the comparison: what it is told, how its knobs are tuned, and what its pixels are worth.

A side is a module with

    KNOBS: tuple[dict[str, int], ...]    settings to try, the first as its own project has them
    open_stream(task, knobs, *, plain)   -> Stream

`plain` asks for every pair once, in order, without random changes, made in this process: quality is judged on it.

Axis letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quality
import torch
from apart import one_line
from side import BuiltSide, take_batches

from unetfast.hostmemory import reset_peak

_SWEEP_S = 0.6


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask in the source folder.

    Args:
        key: of the sample in our shards.
        image: JPEG file.
        mask: its mask, as the data set has it.
    """

    key: str
    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class LoaderTask:
    """What a side is to do; travels to its process.

    Args:
        module: that makes the side.
        pairs: the samples.
        dataset: "carvana" or "ade20k"; says what mask values mean.
        store: folder in the side's own format; the source folder where it reads files.
        size_hw: height and width of a batch, pixels.
        turned: rotation and flips as R1 has them; else nothing is random but the order.
        judged_by: the figure that the sweep raises, "images_per_s" or "images_per_core_s".
        settings: of our config, `key=value`; others take none.
        knobs: to be tried; None takes the module's.
        num_judged: images that quality is told of.
        seed: of order and changes.
    """

    module: str
    pairs: tuple[Pair, ...]
    dataset: str
    store: Path
    size_hw: tuple[int, int]
    turned: bool
    judged_by: str = "images_per_core_s"
    settings: tuple[str, ...] = ()
    knobs: tuple[dict[str, int], ...] | None = None
    num_judged: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """Batches of a loader.

    Args:
        batches: (image, mask): uint8 in 0..255 or float32 in 0..1, (N, 3, H, W); any integer or float32, (N, H, W), or None.
        close: ends threads, processes and files.
        num_ahead: batches that are under way.
        batches_at_once: as in `side.BuiltSide`.
        keys: of the samples, in the order of a plain stream.
        mask_values: "classes", or "raw": the values that the source's masks have.
    """

    batches: Iterator[tuple[Any, Any]]
    close: Callable[[], None]
    keys: tuple[str, ...]
    num_ahead: int = 0
    batches_at_once: int = 1
    mask_values: str = "classes"


def build_side(task: LoaderTask) -> BuiltSide:
    """Try the knobs, keep the best, and judge the pixels; facts: sweep, knobs, quality, batch."""
    module = importlib.import_module(task.module)
    candidates = module.KNOBS if task.knobs is None else task.knobs
    sweep = [_try_knobs(module, task, knobs) for knobs in candidates] if len(candidates) > 1 else []
    knobs = choose_knobs(sweep, task.judged_by) if sweep else candidates[0]
    side = _open_side(module, task, knobs)
    first = next(side.batches)  # worker processes start here, before this one uses threads of its own
    facts = {
        "sweep": sweep,
        "knobs": knobs,
        "batch": [describe_tensor(part) for part in first if part is not None],
        "quality": judge(module, task),
    }
    reset_peak()
    return BuiltSide(side.batches, side.device, facts, side.close, side.lead_in, side.batches_at_once)


def choose_knobs(sweep: list[dict[str, Any]], judged_by: str) -> dict[str, int]:
    """Return the knobs that did best.

    Raises:
        ValueError: none worked; says why the first did not.
    """
    worked = [tried for tried in sweep if "error" not in tried]
    if not worked:
        raise ValueError(f"no setting worked; {sweep[0]['knobs']}: {sweep[0]['error']}")
    best: dict[str, int] = max(worked, key=lambda tried: tried[judged_by])["knobs"]
    return best


def _try_knobs(module: Any, task: LoaderTask, knobs: dict[str, int]) -> dict[str, Any]:
    side = None
    try:
        side = _open_side(module, task, knobs)
        for _ in range(side.lead_in + 1):
            next(side.batches)
        took = take_batches(side, _SWEEP_S)
    except Exception as error:
        return {"knobs": knobs, "error": one_line(error)}
    finally:
        if side is not None:
            side.close()
    return {
        "knobs": knobs,
        "images_per_s": round(took.num_images / took.wall_s, 1),
        "images_per_core_s": round(took.num_images / took.cpu_s, 1),
    }


def _open_side(module: Any, task: LoaderTask, knobs: dict[str, int]) -> BuiltSide:
    stream = module.open_stream(task, knobs, plain=False)
    lead_in = stream.num_ahead + stream.batches_at_once
    return BuiltSide(stream.batches, torch.device("cpu"), {}, stream.close, lead_in, stream.batches_at_once)


def judge(module: Any, task: LoaderTask) -> dict[str, Any]:
    """Hold the first images and masks of a plain stream against the references of quality.py."""
    stream = module.open_stream(task, module.KNOBS[0], plain=True)
    pairs = {pair.key: pair for pair in task.pairs}
    judged = quality.Judged()
    keys = iter(stream.keys[: task.num_judged])
    with contextlib.closing(stream):
        for image_NCHW, mask_NHW in stream.batches:
            for row, key in zip(range(len(image_NCHW)), keys, strict=False):
                mask_HW = None if mask_NHW is None else mask_NHW[row].numpy()
                if mask_HW is not None and stream.mask_values == "raw":
                    mask_HW = quality.map_values(mask_HW, task.dataset)
                judged.add(pairs[key].image, pairs[key].mask, task.dataset, image_NCHW[row], mask_HW)
            if judged.num_images >= min(task.num_judged, len(stream.keys)):
                break
    return judged.sum_up()


def describe_tensor(tensor: torch.Tensor) -> str:
    """Say type and shape, so that a record shows what was made."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"
