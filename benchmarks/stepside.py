"""Sides that train or score one resident batch on the CPU, each in a process of its own, with allocator and threads of its own.

    r1, milesial, smp    peers (peers/nets.py)
    ours                 `unetfast.train.step.train_step` on the run that `build_run` makes, with its defaults
    ours-float32         the same with train.amp = off
    ours-compiled        the same with train.compile = on (a minute or two of compilation, the first time)

All train the same images. Because they lie in memory, nothing of reading or decoding is in the figures, and a photograph costs
the same as a drawing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side import BuiltSide

OURS: dict[str, list[str]] = {
    "ours": [],
    "ours-float32": ["train.amp=off"],
    "ours-compiled": ["train.compile=on"],
}
PEER_NAMES = ("r1", "milesial", "smp")
WARMUP_STEPS = 2


@dataclass(frozen=True, slots=True)
class NetSpec:
    """What a side is built from; travels to its process.

    Args:
        side: its name.
        shards: whose first training batch all take.
        base_channels: of the topmost level.
        batch_size: images of a step.
        size_hw: height and width, pixels.
        seed: of weights and of the order of samples.
        threads: of torch; 0 leaves its own number.
        trains: an optimizer step; False: logits in evaluation mode.
    """

    side: str
    shards: Path
    base_channels: int
    batch_size: int
    size_hw: tuple[int, int]
    seed: int
    threads: int = 0
    trains: bool = True


def build_net_side(spec: NetSpec) -> BuiltSide:
    """Build a side, warm it up, and say in its facts how much work a step is and what its loss was."""
    import torch

    if spec.threads:
        torch.set_num_threads(spec.threads)
    stack = ExitStack()
    work, facts = _build_ours(spec, stack) if spec.side in OURS else _build_peer(spec)
    image_NCHW = torch.empty(spec.batch_size, 0)
    results, flop = _warm_up(work, counted=spec.side != "ours-compiled")
    facts |= {"threads": torch.get_num_threads(), "gflop_per_image": flop and float(f"{flop / spec.batch_size / 1e9:.4g}")}
    if spec.trains:
        facts["losses"] = [round(float(result), 5) for result in results]

    def batches() -> Iterator[tuple[Any, ...]]:
        while True:
            work()
            yield (image_NCHW,)

    return BuiltSide(batches(), torch.device("cpu"), facts, stack.close, lead_in=0)


def _warm_up(work: Callable[[], Any], *, counted: bool) -> tuple[list[Any], int | None]:
    """Do the work a few times; returns the results and the FLOPs of one, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    results = [work() for _ in range(WARMUP_STEPS)]
    if not counted:  # a compiled step is not seen by it
        return results, None
    with FlopCounterMode(display=False) as counter:
        results.append(work())
    return results, int(counter.get_total_flops())


def _build_peer(spec: NetSpec) -> tuple[Callable[[], Any], dict[str, Any]]:
    import torch
    from peers.nets import PEERS

    image_NCHW, mask_NHW = _read_batch(spec)
    torch.manual_seed(spec.seed)
    peer = PEERS[spec.side](spec.base_channels, image_NCHW, mask_NHW)
    if spec.trains:
        return lambda: peer.step().item(), peer.facts
    peer.net.eval()
    return torch.no_grad()(peer.score), peer.facts


def _build_prediction(run: Any, spec: NetSpec, image_NCHW: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Save the run's checkpoint and load it as `unetfast predict` does."""
    import torch

    from unetfast.infer.load import load_model
    from unetfast.train.setup import count_parameters

    run.save(run.folder.last, 0)
    trained = load_model(run.folder.last, device="cpu", folded=True)

    def score() -> Any:
        with torch.no_grad(), trained.amp.autocast(trained.device):
            return trained.model(image_NCHW)

    what = f"unetfast predict, {trained.amp.name} ({trained.amp.reason}), eager, batch norm folded"
    facts = {"what": what, "amp": trained.amp.name, "parameters": count_parameters(run.model), "config": _tell_config(spec)}
    return score, facts


def _read_batch(spec: NetSpec) -> tuple[Any, Any]:
    """Take the first training batch without a run, which would set up this process as ours."""
    import torch

    from unetfast.data.reader import open_shards
    from unetfast.loader.build import build_loader

    config, device = _build_config(spec, []), torch.device("cpu")
    with (
        open_shards(spec.shards).split("train") as reader,
        build_loader(reader, config, training=True, device=device) as loader,
    ):
        batch = next(iter(loader))
        return batch.image_NCHW.clone(), batch.mask_NHW.clone()


def _build_ours(spec: NetSpec, stack: ExitStack) -> tuple[Callable[[], Any], dict[str, Any]]:
    from unetfast.bench.model import repeat_batch
    from unetfast.train.setup import count_parameters
    from unetfast.train.step import train_step

    run = _build_run(spec, OURS[spec.side], stack)
    batch = next(repeat_batch(next(iter(run.loader))))
    if not spec.trains:
        return _build_prediction(run, spec, batch.image_NCHW)
    what = f"unetfast, {run.amp.name} ({run.amp.reason}), {'compiled' if run.compiled else 'eager'}"
    facts = {"what": what, "amp": run.amp.name, "parameters": count_parameters(run.model), "config": _tell_config(spec)}

    def train() -> float:
        train_step(run, batch)
        return run.meter.read_window()

    return train, facts


def _build_run(spec: NetSpec, overrides: list[str], stack: ExitStack) -> Any:
    import torch

    from unetfast.train.randomness import numeric_settings
    from unetfast.train.runfolder import RunFolder
    from unetfast.train.setup import build_run

    stack.enter_context(numeric_settings(seed=spec.seed, deterministic=False, device=torch.device("cpu")))
    folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    return stack.enter_context(build_run(spec.shards, _build_config(spec, overrides), folder))


def _build_config(spec: NetSpec, overrides: list[str]) -> Any:
    from unetfast.config import apply_overrides, build_config, read_preset_tree

    settings = [
        *("train.device=cpu", f"train.seed={spec.seed}", f"model.base_channels={spec.base_channels}"),
        *(f"loader.size_hw={list(spec.size_hw)}", f"loader.batch_size={spec.batch_size}", "loader.backend=cpu"),
        # the loss and the optimizer of R1
        *("loss.cross_entropy=1.0", "loss.dice=0.0", "optimizer.name=adam", "optimizer.learning_rate=1e-4"),
        *("schedule.name=constant", "schedule.warmup_steps=0"),
    ]
    return build_config(apply_overrides(read_preset_tree("carvana-cpu"), settings + overrides), where=f"side {spec.side}")


def _tell_config(spec: NetSpec) -> dict[str, Any]:
    told: dict[str, Any] = _build_config(spec, OURS[spec.side]).model_dump(mode="json")
    return told
