"""The CPU loader against the loaders that people use: the same files to the same size, each from its own format.

    python benchmarks/cpu_loader.py
    python benchmarks/cpu_loader.py --only C5:real --rounds 9

C4: files of ADE20K's sizes to 256x256, not augmented, images for each core-second. C5: Carvana's files to 160x240, rotated and
flipped, images/s against R1's loader. Ours three ways: originals by the exact decode, originals by the fast one, and packed at
the size of training; peers read originals. On the real sample files where they are, and on toy data of real sizes; the latter
with the knobs that the sweep on the former chose. R1's and milesial's loaders are our re-creations of the steps that their
projects state; all other peers are the real packages. Each side runs in a process of its own, and the sides' rounds take turns.
--all-sides brings those that stand in no bar, on the real files.

Quality stands beside speed: PSNR of images that nothing random was done to against a float reference, and whether masks are
those of the exact nearest lookup (quality.py). What stands in the way of more is told by the steps of our own loader, timed one
by one on one thread in the same process. Prints tables, a line for each bar, and one JSON line last. The exit code is 1 when a
side failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import material
from bar import lost_bar, make_bar
from loader import run
from loader_data import LoaderData, make_data
from peers.loading import LoaderTask, build_side
from side import BuiltSide

from unetfast.bench.harness import format_spread, format_table, percentile
from unetfast.errors import UserError

ADE_HW, CARVANA_HW, HALF_HW = (256, 256), (160, 240), (640, 959)
_START_TIMEOUT_S = 240.0  # a sweep is part of it
ROUND_S, _QUICK_S, _WARMUP_S = 0.5, 0.1, 0.3
_LEAST_DB = {"ours exact": 50, "ours fast": 35, "ours packed at size": 50}  # of any image, to the triangle reference


@dataclass(frozen=True, slots=True)
class SideKind:
    """A side, before it is told its data.

    Args:
        name: in tables and records.
        module: that makes it.
        store: format that it reads, of `LoaderData.stores`.
        settings: of our config, `key=value`.
        size_hw: other than its group's.
        extra: stands in no bar; taken where all sides are asked for, on the real files alone.
    """

    name: str
    module: str
    store: str
    settings: tuple[str, ...] = ()
    size_hw: tuple[int, int] | None = None
    extra: bool = False


@dataclass(frozen=True, slots=True)
class BarKind:
    """A bar: `ours` over `peer`; the PSNR that ours must keep for it is `_LEAST_DB`."""

    ours: str
    peer: str
    floor: float
    goal: float


@dataclass(frozen=True, slots=True)
class Group:
    """Sides that do the same job, and the bars among them.

    Args:
        bar: "C4" or "C5".
        dataset: "carvana" or "ade20k".
        size_hw: of the batches, pixels.
        turned: rotation and flips.
        figure: what the bars compare: "images_per_core_s" or "images_per_s".
        sides: of the group.
        bars: among them.
    """

    bar: str
    dataset: str
    size_hw: tuple[int, int]
    turned: bool
    figure: str
    sides: tuple[SideKind, ...]
    bars: tuple[BarKind, ...]


C4 = Group(
    "C4",
    "ade20k",
    ADE_HW,
    False,
    "images_per_core_s",
    (
        SideKind("ours exact", "ours_loader", "shards"),
        SideKind("ours fast", "ours_loader", "shards", ("loader.decode=fast",)),
        SideKind("ours packed at size", "ours_loader", "small"),
        SideKind("webdataset + Pillow", "peers.wds_pillow", "wds"),
        SideKind("DALI CPU antialiased", "peers.dali_cpu", "png"),
        SideKind("torchvision (image alone)", "peers.torchvision_loader", "files"),
        SideKind("streaming + Pillow", "peers.streaming_loader", "mds", extra=True),
        SideKind("litdata + Pillow", "peers.litdata_loader", "litdata", extra=True),
        SideKind("FFCV", "peers.ffcv_loader", "beton", extra=True),
        SideKind("FFCV packed at size", "peers.ffcv_loader", "beton-small", extra=True),
        SideKind("ours exact from RAM", "ours_loader", "shards", ("loader.cache=ram",), extra=True),
        SideKind("ours by DALI CPU", "ours_loader", "shards", ("loader.backend=dali",), extra=True),
        SideKind(
            "ours with crops and flips",
            "ours_loader",
            "shards",
            ("augment.hflip.prob=0.5", "augment.resized_crop.prob=0.5"),
            extra=True,
        ),
    ),
    tuple(
        BarKind(ours, peer, floor, goal)
        for ours in ("ours exact", "ours fast", "ours packed at size")
        for peer, floor, goal in (
            ("webdataset + Pillow", 3, 5),
            ("DALI CPU antialiased", 1.8, 3),
            ("torchvision (image alone)", 1.3, 2),
        )
    ),
)
C5 = Group(
    "C5",
    "carvana",
    CARVANA_HW,
    True,
    "images_per_s",
    (
        SideKind("ours fast", "ours_loader", "shards", ("loader.decode=fast",)),
        SideKind("ours exact", "ours_loader", "shards"),
        SideKind("ours packed at size", "ours_loader", "small"),
        SideKind("R1", "peers.r1_loader", "files"),
        SideKind("ours exact from RAM", "ours_loader", "shards", ("loader.cache=ram",), extra=True),
        SideKind("OpenCV + albumentations", "peers.cv2_loader", "files", extra=True),
        SideKind("milesial at half size", "peers.milesial_loader", "files", size_hw=HALF_HW, extra=True),
        SideKind("ours at half size", "ours_loader", "shards", size_hw=HALF_HW, extra=True),
    ),
    (
        BarKind("ours fast", "R1", 10, 16),
        BarKind("ours exact", "R1", 7, 11),
        BarKind("ours packed at size", "R1", 60, 120),
    ),
)
GROUPS = {group.bar: group for group in (C4, C5)}


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """A side with its task; travels to its process."""

    name: str
    task: LoaderTask
    device: str = "cpu"

    @property
    def settings(self) -> list[str]:
        return list(self.task.settings)

    @property
    def build(self) -> Callable[[PeerPlan], BuiltSide]:
        return _build


def _build(plan: PeerPlan) -> BuiltSide:
    return build_side(plan.task)


def choose_sides(group: Group, *, is_real: bool, names: set[str] | None, all_sides: bool) -> list[SideKind]:
    """Return the sides to run: those that are named, or all, or those of the bars."""
    if names is not None:
        return [kind for kind in group.sides if kind.name in names]
    return [kind for kind in group.sides if not kind.extra or (all_sides and is_real)]


def plan_group(
    group: Group, kinds: Sequence[SideKind], data: LoaderData, chosen: dict[str, dict[str, int]], *, seed: int, quick: bool
) -> list[PeerPlan]:
    """Tell the sides of a group their data.

    Args:
        group: whose sides.
        kinds: those of them that run.
        data: their data set.
        chosen: knobs by side, from an earlier sweep; sides not in it try theirs.
        seed: of order and changes.
        quick: no sweep, and a few judged images.
    """
    plans = []
    for kind in kinds:
        task = LoaderTask(
            kind.module,
            data.pairs,
            data.dataset,
            data.stores[kind.store],
            kind.size_hw or group.size_hw,
            # at half size nothing is turned: milesial's loader knows no such thing
            turned=group.turned and kind.size_hw is None,
            judged_by=group.figure,
            settings=kind.settings,
            knobs=(chosen[kind.name],) if kind.name in chosen else None,
            seed=seed,
        )
        if quick:
            task = replace(task, knobs=({"workers": 0, "threads": 1, "batch_size": 4},), num_judged=4, step_round_s=0.02)
        plans.append(PeerPlan(kind.name, task))
    return plans


def make_bars(group: Group, data: LoaderData, sides: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold our sides against the peers, round by round; without a side that was not asked for there is no bar."""
    bars = []
    size = "x".join(map(str, group.size_hw))
    for kind in group.bars:
        if kind.ours not in sides or kind.peer not in sides:
            continue
        own, other = sides[kind.ours], sides[kind.peer]
        unit = "images/core-s" if group.figure == "images_per_core_s" else "images/s"
        what = f"loader, {data.name}: {kind.ours} / {kind.peer}, {unit} at {size}"
        bounds = {"floor": kind.floor, "goal": kind.goal}
        failed = next((f"{name}: {sides[name]['error']}" for name in (kind.ours, kind.peer) if "error" in sides[name]), "")
        if failed:
            bars.append(lost_bar(group.bar, what, **bounds, reason=failed))
            continue
        by_time, by_cores = _ratios(own, other, "images_per_s"), _ratios(other, own, "core_ms_per_image")
        ratios, beside, word = by_time, by_cores, "per core-second"
        if group.figure == "images_per_core_s":
            ratios, beside, word = by_cores, by_time, "images/s"
        decibels = own["quality"]["triangle_db"]["min"]
        identical = own["quality"]["masks_identical"] is True
        note = f"{word} {percentile(beside, 0.5):.3g}x; PSNR at least {decibels:.1f} dB, "
        note += f"theirs {other['quality']['triangle_db']['min']:.1f}; masks {'identical' if identical else 'DIFFER'}"
        note = "; ".join(filter(None, (note, tell_steps(own.get("steps"), other))))
        sound = identical and decibels >= _LEAST_DB[kind.ours]
        bars.append(make_bar(group.bar, what, ratios, **bounds, sound=sound, note=note))
    return bars


def tell_steps(steps: dict[str, Any] | None, other: dict[str, Any]) -> str:
    """Say what our core-time goes to, and how far ahead of a peer ours would be if only the image's decode were left of it.

    Args:
        steps: of ours, as `ours_loader.measure_steps` gives them.
        other: figures of the peer.
    """
    if not steps:
        return ""
    parts = {name: figure["median"] for name, figure in steps.items() if name != "all"}
    shares = ", ".join(f"{name} {took_ms:.3g}" for name, took_ms in parts.items())
    told = f"{steps['all']['median']:.3g} core-ms an image on one thread: {shares}"
    if "image" not in parts:
        return told
    bound = percentile(other["core_ms_per_image"]["rounds"], 0.5) / parts["image"]
    return f"{told} (with nothing but the image: {bound:.3g}x per core-second)"


def _ratios(upper: dict[str, Any], lower: dict[str, Any], figure: str) -> list[float]:
    return [one / other for one, other in zip(upper[figure]["rounds"], lower[figure]["rounds"], strict=True)]


def format_group(sides: dict[str, dict[str, Any]]) -> str:
    """Write a table for people."""
    rows = [["side", "images/s", "core-ms/image", "cores used", "host MiB", "PSNR min", "area PSNR min", "masks"]]
    for name, side in sides.items():
        if "error" in side:
            continue
        quality = side["quality"]
        masks = {None: "-", True: "identical"}.get(quality["masks_identical"], f"{quality['mask_unequal_pct_max']} % off")
        rows.append(
            [
                name,
                *(format_spread(side[figure]) for figure in ("images_per_s", "core_ms_per_image", "cores_used")),
                f"{side['host_peak_mib'] + side['workers_peak_mib']:.0f}",
                *(f"{quality[reference]['min']:.1f}" for reference in ("triangle_db", "area_db")),
                masks,
            ]
        )
    failed = [f"{name}: {side['error']}" for name, side in sides.items() if "error" in side]
    return "\n".join([format_table(rows), *failed])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the groups asked for, one after another; returns the record's `data`, `sides` and `bars`."""
    known = {kind.name for group in GROUPS.values() for kind in group.sides}
    names = set(given.sides.split(",")) if given.sides else None
    for name in sorted((names or set()) - known):
        raise UserError(f"--sides {name}: no such side; there are {', '.join(sorted(known))}")
    real = material.find_real(given.real)
    found: dict[str, Any] = {"data": {}, "sides": {}, "bars": []}
    chosen: dict[str, dict[str, dict[str, int]]] = {bar: {} for bar in GROUPS}
    with tempfile.TemporaryDirectory(prefix="unetfast-bench-") as work:
        for bar, is_real in choose_groups(given.only, has_real=real is not None, quick=given.quick):
            group = GROUPS[bar]
            kinds = choose_sides(group, is_real=is_real, names=names, all_sides=given.all_sides)
            data = make_data(
                group.dataset,
                real if is_real else None,
                Path(work),
                toy_root=given.data,
                formats={kind.store for kind in kinds},
                size_hw=group.size_hw,
                small=given.quick,
                seed=given.seed,
            )
            found["data"][data.name] = data.describe()
            plans = plan_group(group, kinds, data, chosen[bar], seed=given.seed, quick=given.quick)
            warmup_s = min(_WARMUP_S, given.seconds)
            sides = run(plans, rounds=given.rounds, seconds=given.seconds, warmup_s=warmup_s, start_timeout_s=_START_TIMEOUT_S)
            chosen[bar] |= {name: side["knobs"] for name, side in sides.items() if "error" not in side}
            print(f"\n{bar} on {data.name}: {len(data.pairs)} samples\n{format_group(sides)}\n", flush=True)
            found["sides"] |= {f"{bar} {data.name}: {name}": side for name, side in sides.items()}
            found["bars"] += make_bars(group, data, sides)
    return found


def choose_groups(only: str, *, has_real: bool, quick: bool) -> list[tuple[str, bool]]:
    """Read --only: "C4", "C5:real", ...; real files come first, for what is chosen there serves the toy data too.

    Returns:
        Bar, and whether real files are meant.

    Raises:
        UserError: no such group, or real files are asked for and there are none.
    """
    there = [(bar, is_real) for bar in GROUPS for is_real in (True, False) if not is_real or (has_real and not quick)]
    wanted = []
    for name in only.split(",") if only else GROUPS:
        bar, _, kind = name.partition(":")
        if bar not in GROUPS or kind not in ("", "real", "toy"):
            raise UserError(f"--only {name}: give {' or '.join(GROUPS)}, with :real or :toy behind it or without")
        fits = [(of, is_real) for of, is_real in there if of == bar and kind in ("", "real" if is_real else "toy")]
        if not fits:
            raise UserError(
                f"--only {name}: there are no real sample files (or --quick leaves them out); --real names their folder"
            )
        wanted += fits
    return list(dict.fromkeys(wanted))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="groups, separated by commas: C4, C5, C4:real, C4:toy, ... (default: all)")
    parser.add_argument("--sides", default="", help="names of sides, separated by commas (default: those of the bars)")
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="of a round, at least (default %(default)s)")
    material.add_all_sides(parser)


def check_arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if given.seconds <= 0:
        parser.error("--seconds must be above 0")
    if given.quick:
        given.seconds = _QUICK_S


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("cpu_loader", __doc__, arguments, measure, add=add_arguments, check=check_arguments)


if __name__ == "__main__":
    sys.exit(main())
