"""Latency of one image (G5): the trained network, asked again and again, each answer waited for.

    python benchmarks/gpu_latency.py --device cuda --size 256x256

One uint8 image lies on the device and goes through normalisation, network and argmax to class ids. Sides:

    ours        what `unetfast predict --compile` calls: batch norm folded, weights cast once, compiled; on a GPU a CUDA graph
    eager       the network as it was trained, not compiled
    folded      what `unetfast predict` calls without --compile
    compiled    `eager` by torch.compile
    graphs      the same with mode="reduce-overhead": TorchInductor's CUDA graphs
    frozen      the same with the weights as constants
    captured    `frozen`, recorded in a CUDA graph

All take turns in one process. The bars are those of `ours`; the others stand beside. Prints a table for people and one JSON
line last; the exit code is 1 when a side failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from apart import one_line
from gpu_bars import LATENCY_MS, LATENCY_RATIO, divide, gpu_bar
from loader import parse_size
from torch import Tensor, nn

from unetfast.bench.harness import (
    SideError,
    add_record_argument,
    describe_environment,
    finish,
    format_spread,
    format_table,
    percentile,
    spread,
    take_turns,
)
from unetfast.checkpoint import Checkpoint, build_network, save_checkpoint
from unetfast.config import Config, apply_overrides, build_config, read_preset_tree
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.device import resolve_device
from unetfast.errors import UserError
from unetfast.infer.compiled import build_static, record
from unetfast.infer.load import TrainedModel, load_model

SIDES = ("ours", "eager", "folded", "compiled", "graphs", "frozen", "captured")
_ON_GPU_ALONE = {"graphs": "CUDA graphs need a GPU", "captured": "CUDA graphs need a GPU"}
_WARMUP_CALLS = 10
Call = Callable[[], Tensor]


class Labeller(nn.Module):
    """From pixels to class ids: what stands between an image on the device and its mask.

    Args:
        network: uint8 pixels to logits, in evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Return class ids, uint8, (N, H, W)."""
        logits = self.network(image_NCHW)
        return logits.max(dim=1).indices.to(torch.uint8)


def save_untrained(path: Path, config: Config, num_classes: int) -> None:
    """Write a checkpoint of a network with random weights: what they are changes no call's cost."""
    labels = LabelTable(classes=tuple(ClassInfo(name=f"class {k}", color=(k % 256, 0, 0), value=k) for k in range(num_classes)))
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    torch.manual_seed(0)
    weights = build_network(config.model, num_classes=num_classes, mean=mean, std=std).state_dict()
    save_checkpoint(
        path,
        Checkpoint(
            step=0,
            epoch=0,
            config=config,
            labels=labels,
            dataset="none",
            manifest_digest="0" * 16,
            mean=mean,
            std=std,
            weights=weights,
        ),
    )


def build_call(name: str, checkpoint: Path, device: torch.device, image_NCHW: Tensor) -> Call:
    """Build one side; the call returns class ids that stay valid until the next one.

    Raises:
        UserError: the side needs a GPU.
    """
    if device.type != "cuda" and name in _ON_GPU_ALONE:
        raise UserError(_ON_GPU_ALONE[name])
    trained = load_model(checkpoint, device=str(device), folded=name in ("ours", "folded"))
    labeller = _build_labeller(name, trained, image_NCHW)

    def call() -> Tensor:
        with torch.no_grad(), trained.amp.autocast(device):
            ids: Tensor = labeller(image_NCHW)
        return ids

    return record(call, device) if name == "captured" else call


def _build_labeller(name: str, trained: TrainedModel, image_NCHW: Tensor) -> Labeller:
    num, _, height, width = image_NCHW.shape
    if name == "ours":
        return Labeller(build_static(trained, (height, width), batch_size=num)).eval()
    labeller = Labeller(trained.model).eval()
    if name in ("frozen", "captured"):
        labeller.compile(fullgraph=True, dynamic=False, options={"freezing": True})
    elif name in ("compiled", "graphs"):
        labeller.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if name == "graphs" else None)
    return labeller


def time_calls(call: Call, device: torch.device, seconds: float) -> dict[str, float]:
    """Call for `seconds`, waiting for each result; returns milliseconds of a call: `p50`, `p95`, and the number of calls."""
    took_ms = []
    ends_s = time.perf_counter() + seconds
    while not took_ms or time.perf_counter() < ends_s:
        began_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took_ms.append(1000 * (time.perf_counter() - began_s))
    return {"p50": percentile(took_ms, 0.5), "p95": percentile(took_ms, 0.95), "calls": len(took_ms)}


def measure(
    names: list[str], config: Config, device: torch.device, *, num_classes: int, rounds: int, seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Build the sides and let them take turns; returns figures by side, and why there are none of the others."""
    height, width = config.loader.size_hw
    drawn = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_NCHW = drawn.permute(0, 3, 1, 2).to(device)
    errors: dict[str, str] = {}
    calls: dict[str, Call] = {}
    eager_ids = None
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "untrained.pt"
        save_untrained(checkpoint, config, num_classes)
        for name in sorted(names, key="eager".__ne__):  # its class ids are what the others' are compared with
            try:
                calls[name] = build_call(name, checkpoint, device, image_NCHW)
                for _ in range(_WARMUP_CALLS):
                    ids = calls[name]()
                eager_ids = ids.clone() if name == "eager" else eager_ids
                if eager_ids is not None:
                    print(
                        f"{name}: {100 * float((ids == eager_ids).float().mean()):.3f} % of class ids equal eager's", flush=True
                    )
            except UserError as error:
                errors[name] = str(error)
                calls.pop(name, None)
            except Exception as error:  # a compiler's errors are of many kinds; the other sides go on
                traceback.print_exc()
                errors[name] = one_line(error)
                calls.pop(name, None)

    def turn(name: str) -> dict[str, float]:
        try:
            return time_calls(calls[name], device, seconds)
        except RuntimeError as error:
            errors[name] = one_line(error)
            raise SideError(name) from None

    turns = take_turns({name: lambda name=name: turn(name) for name in calls if name not in errors}, rounds)
    figures = {
        name: {"ms": spread([one["p50"] for one in took]), "p95_ms": spread([one["p95"] for one in took])}
        for name, took in turns.items()
        if name not in errors
    }
    return figures, errors


def build_bars(device: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the bars of G5: milliseconds of our side, and how many times it goes into eager's."""
    eager, rounds = (list(figures[name]["ms"]["rounds"]) if name in figures else [] for name in ("eager", "ours"))
    ratios = divide(eager, rounds) if rounds else []
    floor, goal = LATENCY_MS
    what = "latency, batch 1, predict --compile"
    return [
        gpu_bar("G5", what, rounds, device=device, floor=floor, goal=goal, unit="ms", less_is_better=True),
        gpu_bar("G5", f"{what}, against eager", ratios, device=device, floor=LATENCY_RATIO, goal=LATENCY_RATIO),
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--preset", default="carvana", help="whose network is built (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=(256, 256), help="HEIGHTxWIDTH of the image (default 256x256)")
    parser.add_argument("--num-classes", type=int, default=2)
    parser.add_argument("--sides", default=",".join(SIDES), help="separated by commas (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting on top of the preset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if unknown := set(given.sides.split(",")) - set(SIDES):
        parser.error(f"--sides {given.sides}: no side {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    try:
        overrides = [f"loader.size_hw=[{given.size[0]}, {given.size[1]}]", *given.set]
        config = build_config(apply_overrides(read_preset_tree(given.preset), overrides), where=f"preset {given.preset}")
        device = resolve_device(given.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = given.sides.split(",")
    figures, errors = measure(names, config, device, num_classes=given.num_classes, rounds=given.rounds, seconds=given.seconds)
    rows = [["side", "ms", "p95 ms"]]
    rows += [[name, format_spread(side["ms"]), format_spread(side["p95_ms"])] for name, side in figures.items()]
    print("\n".join([format_table(rows), *(f"{name}: {error}" for name, error in errors.items())]))
    expected = _ON_GPU_ALONE if device.type != "cuda" else {}
    finish(
        {
            "benchmark": "gpu_latency",
            "command": sys.argv[1:] if arguments is None else arguments,
            "device": given.device,
            "environment": describe_environment(),
            "config": config.model_dump(mode="json", include={"model", "train"}),
            "size_hw": list(given.size),
            "rounds": given.rounds,
            "sides": figures | {name: {"error": error} for name, error in errors.items()},
            "bars": build_bars(given.device, figures),
        },
        given.json,
    )
    return 1 if errors.keys() - expected.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
