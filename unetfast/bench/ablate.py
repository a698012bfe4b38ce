"""What each optimisation gives: one is switched off at a time, and held against everything on.

Each is switched where a user would: by a config key, or by an option of packing. Sides of one rung take turns, so what a
machine does meanwhile hits all of them alike; what helps is judged by the rule by which two records are compared. What cannot
be switched off here is listed with the reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unetfast.bench.compare import MIN_ROUNDS, UNKNOWN, judge_change
from unetfast.bench.harness import format_spread, spread
from unetfast.bench.loader import LoaderRung
from unetfast.bench.model import ModelRung
from unetfast.bench.rung import OtherWork, Rung, RungResult, measure_rungs
from unetfast.bench.table import align, format_number
from unetfast.bench.verdict import say_others
from unetfast.config import Config, apply_overrides, build_config
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.sample import IMAGE_CODECS
from unetfast.device import num_usable_cores, resolve_amp, resolve_compile, resolve_device
from unetfast.loader.build import build_loader, choose_backend
from unetfast.loader.pixels import choose_jpeg_reduction
from unetfast.train.randomness import numeric_settings
from unetfast.train.runfolder import RunFolder
from unetfast.train.setup import build_run

FULL = "all on"
RUNGS = ("model", "loader")  # that optimisations are measured on
_MASKS = "LZ4 masks"


@dataclass(frozen=True, slots=True)
class Switch:
    """An optimisation that can be switched off here.

    Args:
        name: for people.
        rung: that it is measured on: "model" or "loader".
        off: how it is switched off: `key=value` of the config, or an option of `unetfast shard`.
    """

    name: str
    rung: str
    off: str


@dataclass(frozen=True, slots=True)
class Unswitched:
    """An optimisation that cannot be switched off here, and why, for people."""

    name: str
    rung: str
    reason: str


def find_switches(shards: Path, config: Config, source: Path | None) -> list[Switch | Unswitched]:
    """List the optimisations of a config on this device, in the order of the table.

    Args:
        shards: that the loader reads.
        config: everything on, as far as the user wants it.
        source: folder that can be packed with and without LZ4 masks; None: there is none.
    """
    device = resolve_device(config.train.device)
    return [*_switches_of_model(config, device), *_switches_of_loader(shards, config, device, source)]


def _switches_of_model(config: Config, device: torch.device) -> Iterator[Switch | Unswitched]:
    def offer(name: str, is_on: bool, off: str, reason: str) -> Switch | Unswitched:
        return Switch(name, "model", off) if is_on else Unswitched(name, "model", reason)

    yield offer("channels_last", config.train.channels_last, "train.channels_last=false", "off: train.channels_last = false")
    asked = config.train.compile
    because = ", which compiles on a GPU alone; measure it by --set train.compile=on" if asked == "auto" else ""
    yield offer("compile", resolve_compile(asked, device), "train.compile=off", f"off: train.compile = {asked}{because}")
    amp = resolve_amp(config.train.amp, device)
    name = "bf16" if amp.dtype is None else amp.name
    because = "train.amp = off" if config.train.amp == "off" else amp.reason
    yield offer(name, amp.dtype is not None, "train.amp=off", f"off: {because}")


def _switches_of_loader(
    shards: Path, config: Config, device: torch.device, source: Path | None
) -> Iterator[Switch | Unswitched]:
    loader = config.loader
    cached = f"loader.cache = {loader.cache}: done once, in the first epoch" if loader.cache != "off" else ""

    def offer(name: str, off: str, reason: str) -> Switch | Unswitched:
        return Unswitched(name, "loader", reason) if reason else Switch(name, "loader", off)

    yield offer("scaled decode", "loader.decode=full", cached or _why_no_scaled_decode(shards, config, device))
    no_source = "" if source is not None else "there is no source folder here to pack anew"
    yield offer(_MASKS, "--mask-codec png", cached or no_source)
    threads = loader.threads or num_usable_cores()
    one = "there is one core here" if loader.threads == 0 else "loader.threads = 1"
    resident = "loader.cache = gpu: the GPU makes the batches" if loader.cache == "gpu" else ""
    yield offer("threads", "loader.threads=1", resident or (one if threads == 1 else ""))
    yield offer("checksum", "loader.checksum=false", cached or ("" if loader.checksum else "off: loader.checksum = false"))
    if choose_backend(config, device, training=True).name == "cpu":
        yield Unswitched(
            "compiled steps",
            "loader",
            "of a whole process: run it with NUMBA_DISABLE_JIT=1, and hold that against this by --compare",
        )
    if loader.cache != "off":
        yield Switch("cache", "loader", "loader.cache=off")


def _why_no_scaled_decode(shards: Path, config: Config, device: torch.device) -> str:
    """Say why no JPEG is decoded at a smaller scale; "" where some are."""
    decode, size_hw = config.loader.decode, config.loader.size_hw
    if decode == "full":
        return "off: loader.decode = full"
    if choose_backend(config, device).name == "dali":
        return "DALI has no scaled decode"
    with open_shards(shards).split("train") as reader:
        rows = reader.rows[reader.rows["image_codec"] == IMAGE_CODECS.index("jpeg")]
        sizes = np.unique(np.stack([rows["height"], rows["width"]], axis=1), axis=0).tolist()
    if not sizes:
        return "no image is a JPEG"
    if all(choose_jpeg_reduction((height, width), size_hw, decode) == 1 for height, width in sizes):
        height, width = size_hw
        return f"not taken: loader.decode = {decode}, and no JPEG is large enough against {height}x{width}"
    return ""


def run_ablation(
    shards: Path,
    config: Config,
    *,
    source: Path | None,
    rounds: int,
    seconds: float,
    console: Console,
    rungs: Collection[str] = RUNGS,
) -> dict[str, Any]:
    """Measure every optimisation that can be switched off here.

    Args:
        shards: shard folder with a train split.
        config: resolved; everything that it has on is "all on".
        source: a folder of images and masks, packed with and without LZ4 masks; None leaves that out.
        rounds: of each side.
        seconds: of a round, about.
        console: for notes.
        rungs: of `RUNGS`: those whose optimisations are asked for.

    Returns:
        `switched`, a row for each: name, rung, `off` (how), `images_per_s_on` and `images_per_s_off` (spreads),
        `speedup` (spread of on / off, round by round), `core_s_ratio` (core-seconds an image, off / on; None where rounds are
        too short), `says` ("faster", "slower", "same" or "cannot tell", as `judge_change` says), `data` (what was read);
        `unswitched`: name, rung, reason; `rounds`; `cores`, and `other_cores`, how many of them other programs had.

    Raises:
        UserError: data or settings are not usable.
    """
    found = [one for one in find_switches(shards, config, source) if one.rung in rungs]
    switches = [one for one in found if isinstance(one, Switch)]
    device = resolve_device(config.train.device)
    rows: list[dict[str, Any]] = []
    others = OtherWork()
    with numeric_settings(seed=config.train.seed, deterministic=config.train.deterministic, device=device):
        for rung in RUNGS:
            wanted = [one for one in switches if one.rung == rung and one.name != _MASKS]
            if wanted:
                _tell(console, rung, [one.name for one in wanted])
                results = _measure_sides(shards, config, wanted, rung, device, rounds=rounds, seconds=seconds)
                rows += [_compare(one, results[FULL], results[one.name], data="shards") for one in wanted]
        masks = next((one for one in switches if one.name == _MASKS), None)
        if masks is not None and source is not None:
            _tell(console, "loader", [masks.name])
            results = _measure_masks(source, config, device, rounds=rounds, seconds=seconds)
            rows.append(_compare(masks, results[FULL], results[masks.name], data=f"{source.name}, packed for this"))
    taken, order = others.read(), [one.name for one in found]
    return {
        "rounds": rounds,
        "cores": num_usable_cores(),
        "other_cores": None if taken is None else round(taken, 2),
        "switched": sorted(rows, key=lambda row: order.index(row["name"])),
        "unswitched": [asdict(one) for one in found if isinstance(one, Unswitched)],
    }


def _tell(console: Console, rung: str, names: Sequence[str]) -> None:
    console.print(f"ablate  {rung}: all on, and without {', '.join(names)}", markup=False, soft_wrap=True)


def _measure_sides(
    shards: Path, config: Config, switches: Sequence[Switch], rung: str, device: torch.device, *, rounds: int, seconds: float
) -> dict[str, RungResult]:
    """Measure everything on, and each switch off, in turn."""
    open_side = _open_model if rung == "model" else _open_loader
    with ExitStack() as stack:
        rungs: dict[str, Rung] = {FULL: open_side(stack, shards, config)}
        for one in switches:
            rungs[one.name] = open_side(stack, shards, change(config, one.off))
        return measure_rungs(rungs, rounds=rounds, seconds=seconds, device=device)


def _measure_masks(source: Path, config: Config, device: torch.device, *, rounds: int, seconds: float) -> dict[str, RungResult]:
    """Measure the loader on one folder packed twice, which differs in the masks alone."""
    with ExitStack() as stack:
        # beside the source, which has room for such data
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=source.parent, prefix="ablation-")))
        rungs: dict[str, Rung] = {}
        for name, codec in ((FULL, "lz4"), (_MASKS, "png")):
            pack(source, work / codec, options=PackOptions(val_fraction=0.0, mask_codec=codec))
            rungs[name] = _open_loader(stack, work / codec, config)
        return measure_rungs(rungs, rounds=rounds, seconds=seconds, device=device)


def change(config: Config, override: str) -> Config:
    """Set one key of a resolved config.

    Args:
        config: of a run.
        override: `key=value`, as of --set.

    Raises:
        UserError: the key or value does not fit.
    """
    return build_config(apply_overrides(config.model_dump(mode="json"), [override]), where=f"ablation, {override}")


def _open_model(stack: ExitStack, shards: Path, config: Config) -> Rung:
    folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    run = stack.enter_context(build_run(shards, config, folder))
    rung = ModelRung(run, next(iter(run.loader)), traced=False)
    run.loader.close()  # its threads and batches have no part in what follows
    return rung


def _open_loader(stack: ExitStack, shards: Path, config: Config) -> Rung:
    device = resolve_device(config.train.device)
    reader = stack.enter_context(open_shards(shards).split("train", checksum=config.loader.checksum))
    loader = stack.enter_context(build_loader(reader, config, training=True, device=device))
    return LoaderRung(loader, iter(loader), config, reader=reader, device=device)


def _compare(switch: Switch, on: RungResult, off: RungResult, *, data: str) -> dict[str, Any]:
    speedup = _divide(on.images_per_s, off.images_per_s)
    assert speedup is not None
    return {
        **asdict(switch),
        "images_per_s_on": on.images_per_s,
        "images_per_s_off": off.images_per_s,
        "speedup": speedup,
        "core_s_ratio": _divide(off.core_s_per_image, on.core_s_per_image),
        "says": judge_change(off.images_per_s, on.images_per_s)["verdict"],
        "data": data,
    }


def _divide(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any] | None:
    """Divide two spreads round by round; None where a round was too short for the system to count its processor time."""
    pairs = list(zip(upper["rounds"], lower["rounds"], strict=True))
    return spread([one / other for one, other in pairs]) if all(one and other for one, other in pairs) else None


def format_ablation(record: Mapping[str, Any]) -> str:
    """Write a table for people from what `run_ablation` returned."""
    rows = [["with it, against without", "rung", "speedup", "core-s ratio", "images/s on", "off", "it is", "switched off by"]]
    for row in record["switched"]:
        figures = (format_spread(row["speedup"], 3), format_spread(row["core_s_ratio"], 3))
        speeds = (format_number(row[name]["median"]) for name in ("images_per_s_on", "images_per_s_off"))
        rows.append([row["name"], row["rung"], *figures, *speeds, row["says"], row["off"]])
    lines = [align(rows, left=(0, 1, 6, 7))] if record["switched"] else ["nothing can be switched off here"]
    if any(row["says"] == UNKNOWN and len(row["speedup"]["rounds"]) < MIN_ROUNDS for row in record["switched"]):
        lines.append(f"fewer than {MIN_ROUNDS} rounds tell nothing; take --rounds {MIN_ROUNDS} or more")
    if told := say_others(record.get("other_cores"), record.get("cores")):
        lines.append(f"note     {told}: run it on a quiet machine")
    lines += [f"not switched: {one['name']} ({one['rung']}): {one['reason']}" for one in record["unswitched"]]
    return "\n".join(lines)
