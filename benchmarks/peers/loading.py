"""A loader as a side of the comparison: what it is told, how its knobs are tuned, and what its pixels are worth.

A side is a module with

    KNOBS: tuple[dict[str, int], ...]    settings to try, the first as its own project has them
    open_stream(task, knobs, *, plain)   -> Stream
    ONE_AT_A_TIME: bool                  only where two streams of it cannot be open in one process
    measure_steps(task)                  only of ours: what each step takes of an image

`plain` asks for every pair once, in order, without random changes, made in this process: quality is judged on it.

Axis letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import quality
import torch
from apart import one_line
from side import BuiltSide, Taken, take_batches, wait_for_rest

from unetfast.bench.harness import SideError, percentile, take_turns
from unetfast.hostmemory import reset_peak

_SWEEP_S = 0.25  # of a setting's turn, at least
_SWEEP_TURNS, _FINAL_TURNS, _FINALISTS = 1, 2, 2  # of every setting; then of those that did best


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
        step_round_s: of measuring the steps of our loader, for each of its rounds.
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
    step_round_s: float = 0.1
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
        facts: what the record should say of the side.
    """

    batches: Iterator[tuple[Any, Any]]
    close: Callable[[], None]
    keys: tuple[str, ...]
    num_ahead: int = 0
    batches_at_once: int = 1
    mask_values: str = "classes"
    facts: dict[str, Any] = field(default_factory=dict)


def build_side(task: LoaderTask) -> BuiltSide:
    """Try the knobs, keep the best, and judge the pixels; facts: sweep, knobs, quality, batch, what the stream says, steps."""
    module = importlib.import_module(task.module)
    candidates = module.KNOBS if task.knobs is None else task.knobs
    sweep = sweep_knobs(module, task, candidates) if len(candidates) > 1 else []
    knobs = choose_knobs(sweep, task.judged_by) if sweep else candidates[0]
    side = _open_side(module, task, knobs)
    first = next(side.batches)  # worker processes start here, before this one uses threads of its own
    facts = {
        "sweep": sweep,
        "knobs": knobs,
        "batch": [describe_tensor(part) for part in first if part is not None],
        "quality": judge(module, task),
        **side.facts,
    }
    if hasattr(module, "measure_steps"):
        facts["steps"] = module.measure_steps(task)
    reset_peak()
    return BuiltSide(side.batches, side.device, facts, side.close, side.lead_in, side.batches_at_once)


def choose_knobs(sweep: list[dict[str, Any]], judged_by: str) -> dict[str, int]:
    """Return the knobs that did best, of those that were tried most often.

    Raises:
        ValueError: none worked; says why the first did not.
    """
    worked = [tried for tried in sweep if "error" not in tried]
    if not worked:
        raise ValueError(f"no setting worked; {sweep[0]['knobs']}: {sweep[0]['error']}")
    best: dict[str, int] = max(worked, key=lambda tried: (tried["turns"], tried[judged_by]))["knobs"]
    return best


def sweep_knobs(module: Any, task: LoaderTask, candidates: Sequence[dict[str, int]]) -> list[dict[str, Any]]:
    """Let settings take short turns, all of them first, then the best ones again.

    Returns:
        For each setting `knobs`, `turns`, and the median `images_per_s` and `images_per_core_s` of these; or `error`.
    """
    sweep: list[dict[str, Any]] = [{"knobs": knobs, "turns": 0} for knobs in candidates]
    took: list[list[Taken]] = [[] for _ in candidates]
    with contextlib.ExitStack() as stack:
        open_sides: dict[int, BuiltSide] = {}
        # those with worker processes first: these are made before this one has threads of its own
        for number in sorted(range(len(candidates)), key=lambda number: -candidates[number].get("workers", 0)):
            if not getattr(module, "ONE_AT_A_TIME", False):
                with contextlib.suppress(SideError), _noted(sweep[number]):
                    open_sides[number] = _open_side(module, task, candidates[number])
                    stack.callback(open_sides[number].close)
                    next(open_sides[number].batches)

        def turn(number: int) -> None:
            with _noted(sweep[number]), contextlib.ExitStack() as own:
                side = open_sides.get(number)
                if side is None:
                    side = _open_side(module, task, candidates[number])
                    own.callback(side.close)
                for _ in range(side.lead_in):
                    next(side.batches)
                took[number].append(take_batches(side, _SWEEP_S))
                wait_for_rest()

        def take(numbers: Sequence[int], turns: int) -> None:
            take_turns({str(number): partial(turn, number) for number in numbers}, turns)
            for number in numbers:
                if "error" not in sweep[number]:
                    sweep[number] |= _sum_up(took[number])

        take([number for number, tried in enumerate(sweep) if "error" not in tried], _SWEEP_TURNS)
        worked = [number for number, tried in enumerate(sweep) if "error" not in tried]
        take(sorted(worked, key=lambda number: -sweep[number][task.judged_by])[:_FINALISTS], _FINAL_TURNS)
    return sweep


@contextlib.contextmanager
def _noted(tried: dict[str, Any]) -> Iterator[None]:
    """Note what a setting raises: it is left out from then on, and the others go on."""
    try:
        yield
    except Exception as error:  # a stranger's package may raise anything
        tried["error"] = one_line(error)
        raise SideError(tried["error"]) from error


def _sum_up(took: list[Taken]) -> dict[str, Any]:
    return {
        "turns": len(took),
        "images_per_s": round(percentile([one.num_images / one.wall_s for one in took], 0.5), 1),
        "images_per_core_s": round(percentile([one.num_images / one.cpu_s for one in took], 0.5), 1),
    }


def _open_side(module: Any, task: LoaderTask, knobs: dict[str, int]) -> BuiltSide:
    stream = module.open_stream(task, knobs, plain=False)
    lead_in = stream.num_ahead + stream.batches_at_once
    return BuiltSide(stream.batches, torch.device("cpu"), stream.facts, stream.close, lead_in, stream.batches_at_once)


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
