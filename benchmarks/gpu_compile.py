"""Compile hygiene (G4): graph breaks and recompiles over three epochs of a run, and how long a start with warm caches takes.

    python benchmarks/gpu_compile.py --device cuda --toy carvana --small

Each start is a process of its own. The first meets empty caches and trains three epochs, each with its validation, on the
functions that `unetfast train` calls; after every stretch it reads what TorchDynamo counted: a graph for the training step and
one for the validation pass are wanted, and every further one is a recompile. The others begin with what it left where every run
keeps it (`unetfast.compilecache`; here below a cache folder that is empty at first), and stop behind their first step. Prints a
table for people and one JSON line last; the exit code is 1 when a start failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apart import Apart
from gpu_bars import WARM_START_S, gpu_bar

from unetfast.bench.harness import SideError, add_record_argument, describe_environment, finish, format_table, spread
from unetfast.bench.shardfacts import describe_shards
from unetfast.bench.toyshards import TOY_PACKING, add_data_arguments, draw_toy
from unetfast.data.pack import pack
from unetfast.errors import UserError

NUM_EPOCHS = 3
_OWN_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # with these, runs keep nothing in the user's cache


@dataclass(frozen=True, slots=True)
class Start:
    """What one process does; travels to it.

    Args:
        shards: that it reads.
        device: "cpu" or "cuda".
        settings: on top of the preset, `key=value`.
        num_epochs: 0 stops behind the first step.
    """

    shards: Path
    device: str
    settings: tuple[str, ...]
    num_epochs: int


def observe(start: Start) -> dict[str, Any]:
    """Build a run, train, and tell seconds and counts.

    Returns:
        `compiled`; `first_step_s`: from the imports being done to the end of the first step; `stretches`: after each of them
        graphs and graph breaks so far; `cache_misses` and `cache_hits` of compiled graphs.
    """
    import torch

    from unetfast.config import apply_overrides, build_config, read_preset_tree
    from unetfast.data.manifest import read_manifest
    from unetfast.device import resolve_device
    from unetfast.train.randomness import numeric_settings
    from unetfast.train.runfolder import RunFolder
    from unetfast.train.setup import build_run, preset_for
    from unetfast.train.signals import StopRequest
    from unetfast.train.step import train_step
    from unetfast.train.validate import validate

    device = resolve_device(start.device)
    preset = preset_for(read_manifest(start.shards), device)
    overrides = [f"train.device={start.device}", *start.settings]
    config = build_config(apply_overrides(read_preset_tree(preset), overrides), where=f"preset {preset}")
    stretches: list[dict[str, Any]] = []
    began_s = time.perf_counter()
    with (
        numeric_settings(seed=config.train.seed, deterministic=False, device=device),
        tempfile.TemporaryDirectory() as folder,
        build_run(start.shards, config, RunFolder(Path(folder))) as run,
    ):
        batches = iter(run.loader)
        train_step(run, next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        first_step_s = time.perf_counter() - began_s
        stretches.append({"stretch": "first step", **count_graphs()})
        for epoch in range(1, start.num_epochs + 1):
            while run.step < epoch * run.loader.num_batches:
                train_step(run, next(batches))
            stretches.append({"stretch": f"epoch {epoch}, training", **count_graphs()})
            if run.val_reader is not None:
                validate(run, StopRequest())
                stretches.append({"stretch": f"epoch {epoch}, validation", **count_graphs()})
        return {
            "compiled": run.compiled,
            "preset": preset,
            "first_step_s": first_step_s,
            "stretches": stretches,
            "config": config.model_dump(mode="json"),
        }


def pack_with_val(source: Path, name: str) -> Path:
    """Pack a folder of `draw_toy` with a quarter of it as split val, beside it, once; returns the shard folder."""
    shards = source.parent / f"{source.name}-val"
    pack(source, shards, dataset=name, options=replace(TOY_PACKING, val_fraction=0.25))
    return shards


@contextmanager
def empty_user_cache() -> Iterator[Path]:
    """Give the processes that are started meanwhile an empty user's cache; yields where runs keep compiled code in it."""
    former = os.environ.copy()
    with tempfile.TemporaryDirectory() as home:
        for name in _OWN_CACHES:
            os.environ.pop(name, None)
        os.environ["XDG_CACHE_HOME"] = home
        try:
            yield Path(home) / "unetfast" / "compiled"
        finally:
            for name in ("XDG_CACHE_HOME", *_OWN_CACHES):
                os.environ.pop(name, None)
            os.environ.update(former)


def size_mib(folder: Path) -> float:
    """Sum the sizes of all files below a folder, MiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def count_graphs() -> dict[str, Any]:
    """Read what TorchDynamo has counted in this process: graphs, graph breaks, and what Inductor found in its cache."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
        "cache_hits": int(inductor["fxgraph_cache_hit"]),
        "cache_misses": int(inductor["fxgraph_cache_miss"]),
    }


def count_recompiles(stretches: list[dict[str, Any]]) -> int:
    """Count graphs that nobody wants: all but one of the first training step and one of the first validation pass."""
    graphs = {stretch["stretch"]: stretch["graphs"] for stretch in stretches}
    wanted = 1 + ("epoch 1, validation" in graphs)
    return max(0, stretches[-1]["graphs"] - wanted) if stretches[-1]["graphs"] else 0


def build_bars(device: str, cold: dict[str, Any], warm: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the bars of G4; without a compiled model there are none to be had."""
    is_compiled = bool(cold.get("compiled"))
    last = cold["stretches"][-1] if cold.get("stretches") else {}
    why = "the model is not compiled" if cold and not is_compiled else ""
    breaks = [float(last["graph_breaks"])] if is_compiled else None
    recompiles = [float(count_recompiles(cold["stretches"]))] if is_compiled else None
    starts = [one["first_step_s"] for one in warm] if is_compiled else None
    what = f"over {NUM_EPOCHS} epochs with validation"
    shared: dict[str, Any] = {"device": device, "less_is_better": True, "note": why}
    return [
        gpu_bar("G4", f"graph breaks {what}", breaks, floor=0, goal=0, unit="breaks", **shared),
        gpu_bar("G4", f"recompiles {what}", recompiles, floor=0, goal=0, unit="graphs", **shared),
        gpu_bar("G4", "first step with warm caches", starts, floor=WARM_START_S, goal=WARM_START_S, unit="s", **shared),
    ]


def format_starts(cold: dict[str, Any], warm: list[dict[str, Any]]) -> str:
    """Write a table for people."""
    rows = [["start", "first step s", "graphs", "graph breaks", "cache hits", "cache misses"]]
    for name, one in [("cold", cold), *((f"warm {number}", one) for number, one in enumerate(warm, 1))]:
        last = one["stretches"][-1]
        counts = (last[key] for key in ("graphs", "graph_breaks", "cache_hits", "cache_misses"))
        rows.append([name, f"{one['first_step_s']:.2f}", *map(str, counts)])
    return format_table(rows)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting on top of the preset")
    parser.add_argument("--rounds", type=int, default=3, help="warm starts")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for a start")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be above 0")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse_arguments(arguments)
    record: dict[str, Any] = {"benchmark": "gpu_compile", "command": sys.argv[1:] if arguments is None else arguments}
    record |= {"device": given.device, "toy": given.toy is not None, "environment": describe_environment()}
    cold: dict[str, Any] = {}
    warm: list[dict[str, Any]] = []
    try:
        if given.toy:
            given.shards = pack_with_val(draw_toy(given.toy, given.data, small=given.small, seed=given.seed), given.toy)
        with empty_user_cache() as kept:
            begin = Start(given.shards, given.device, tuple(given.set), NUM_EPOCHS)
            cold = Apart(observe, begin).result(given.timeout)
            record["kept_mib"] = size_mib(kept)
            if cold["compiled"] and not record["kept_mib"]:
                raise SideError(f"a compiled run kept nothing in {kept}: a start is not warm")
            for _ in range(given.rounds):
                warm.append(Apart(observe, replace(begin, num_epochs=0)).result(given.timeout))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SideError as error:
        print(f"error: {error}", file=sys.stderr)
        record["error"] = str(error)
    record |= {"data": describe_shards(given.shards), "rounds": len(warm), "cold": cold, "warm": warm}
    if warm:
        record["warm_first_step_s"] = spread([one["first_step_s"] for one in warm])
        print(format_starts(cold, warm))
    record["bars"] = build_bars(given.device, cold, warm)
    finish(record, given.json)
    return 1 if "error" in record else 0


if __name__ == "__main__":
    sys.exit(main())
