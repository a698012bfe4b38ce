"""Two pictures of what was measured: every bar over its floor, and the roofline of a training step.

    python benchmarks/plots.py
    python benchmarks/plots.py --roofline record.json --out pictures/

The first is drawn from the records that `make bench` and gpu.sh leave in results/, the second from a record of
`unetfast bench model --json FILE`. Marks differ in shape and darkness, not in colour alone: the pictures read the same in grey.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from table import RESULTS, ROOT, read_record, read_records

from unetfast.viz.lettering import spell

OUT = ROOT / "docs" / "images"
ROOFLINE = RESULTS / "bench-model-cpu.json"
DARK, MIDDLE, LIGHT = "#1b2f4f", "#7b8794", "#c9d1d9"
_PASSED: dict[str, Any] = {"marker": "o", "color": DARK, "markersize": 6}
_SHORT: dict[str, Any] = {"marker": "X", "color": "#c0392b", "markersize": 7}
# marker of each kind of operation in the roofline; the last one stands for all others
_KINDS = {"convolution": "o", "transposed convolution": "s", "norm": "^", "loss": "v", "": "D"}
_LABEL_CHARS = 110


def over_floor(value: float, bar: Mapping[str, Any]) -> float:
    """Return how far a figure is past its floor: 1 at the floor, more is better, whatever the unit."""
    return bar["floor"] / value if bar["less_is_better"] else value / bar["floor"]


def draw_bars(records: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a line for each bar that has a figure: median, least and greatest over its floor, and the goal.

    Raises:
        ValueError: no bar of any record has a figure.
    """
    bars = [bar for record in records.values() for bar in record["bars"] if bar["ratio"] is not None]
    if not bars:
        raise ValueError("no bar in the records has a figure")
    bars.sort(key=lambda bar: bar["bar"])
    figure = Figure(figsize=(14.5, 1.3 + 0.3 * len(bars)), dpi=100)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.5, right=0.9, top=1 - 0.5 / figure.get_figheight(), bottom=0.75 / figure.get_figheight())
    for place, bar in enumerate(bars):
        ratio = bar["ratio"]
        ends = sorted(over_floor(ratio[name], bar) for name in ("min", "max"))
        axes.plot(ends, [place, place], color=DARK, linewidth=2)
        style = _PASSED if bar["verdict"] == "pass" else _SHORT
        axes.plot([over_floor(ratio["median"], bar)], [place], linestyle="", **style)
        axes.plot([over_floor(bar["goal"], bar)], [place], linestyle="", marker="|", color=DARK, markersize=13)
        unit = bar["unit"] if bar["unit"] == "x" else f" {bar['unit']}"
        label = f"{ratio['median']:.3g}{unit}"
        axes.annotate(label, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(1, color=MIDDLE, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("measured over floor (1: the floor; right is better); median, least, greatest", fontsize=9)
    labels = [f"{bar['bar']}  {bar['what']}" for bar in bars]
    short = [label if len(label) <= _LABEL_CHARS else f"{label[: _LABEL_CHARS - 1]}…" for label in labels]
    axes.set_yticks(range(len(bars)), [spell(label) for label in short], fontsize=8, parse_math=False)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    for name, style in (("at its floor or past it", _PASSED), ("short of its floor", _SHORT)):
        axes.plot([], [], linestyle="", label=name, **style)
    axes.plot([], [], linestyle="", marker="|", color=DARK, markersize=11, label="goal")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)
    _finish(axes)
    return figure


def draw_roofline(record: Mapping[str, Any]) -> Figure:
    """Draw the model rung of a record of `unetfast bench`: its layers under the roof, and its levels by least time.

    Raises:
        ValueError: the record has no model rung, or its network could not be counted.
    """
    facts = record.get("rungs", {}).get("model", {}).get("facts", {})
    if "roofline" not in facts:
        raise ValueError(f"no roofline in the record: {facts.get('not_counted', 'it has no rung model')}")
    figure = Figure(figsize=(13, 5.2), dpi=100)
    roof, levels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.86, bottom=0.13, wspace=0.2)
    _draw_roof(roof, facts)
    _draw_levels(levels, facts)
    around = record["environment"]
    machine = ", ".join(around.get("gpus") or [f"{around['cores']} cores of {around['processor']}"])
    figure.suptitle(spell(f"A training step on {machine}"), fontsize=11, parse_math=False)
    return figure


def _draw_roof(axes: Axes, facts: Mapping[str, Any]) -> None:
    """Draw operations that count FLOPs at their intensity and the rate that they reach (untimed: that their bound allows)."""
    roofline = facts["roofline"]
    counted = f"{roofline['counted']}_mib"
    rate, bytes_per_us = facts["matrix_tflop_per_s"], facts["bandwidth_gb_per_s"] / 1000  # TFLOP/s; TB/s = FLOP/byte to TFLOP/s
    layers = [layer for layer in roofline["layers"] if layer["gflop"] > 0 and layer[counted] > 0 and layer["bound_ms"] > 0]
    timed = all(layer.get("measured_ms") for layer in layers)
    spots = [
        (1e9 * layer["gflop"] / (layer[counted] * 2**20), layer["gflop"] / layer["measured_ms" if timed else "bound_ms"], layer)
        for layer in layers
    ]
    total_mib, total_gflop = (sum(layer[key] for layer in roofline["layers"]) for key in (counted, "gflop"))
    whole = (1e9 * total_gflop / (total_mib * 2**20), total_gflop / facts["step_ms"]["median"])
    ends = [min(whole[0], *(spot[0] for spot in spots)) / 3, max(whole[0], *(spot[0] for spot in spots)) * 3]
    corner = rate / bytes_per_us
    places = [ends[0], corner, ends[1]] if ends[0] < corner < ends[1] else ends
    axes.plot(places, [min(rate, place * bytes_per_us) for place in places], color=DARK, linewidth=1.5)
    longest_ms = max(layer["bound_ms"] for layer in layers)
    seen: set[str] = set()
    for intensity, attainable, layer in spots:
        kind = layer["kind"] if layer["kind"] in _KINDS else ""
        label = f"{kind or 'other'}, {'as timed' if timed else 'at its bound'}" if kind not in seen else None
        seen.add(kind)
        area = 15 + 180 * layer["bound_ms"] / longest_ms
        axes.scatter([intensity], [attainable], s=area, marker=_KINDS[kind], color=LIGHT, edgecolors=DARK, label=label)
    share = facts["share_of_roofline_pct"]
    axes.plot([whole[0]], [whole[1]], marker="*", markersize=15, color="#c0392b", linestyle="", label="the step as measured")
    axes.set_title(f"roofline, {roofline['counted']} byte count: {share:.0f} % of it reached", fontsize=10)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"arithmetic intensity, FLOP/byte (copy: {facts['bandwidth_gb_per_s']:.3g} GB/s, measured)")
    axes.set_ylabel(f"TFLOP/s (matrix products: {rate:.3g}, measured)")
    legend = axes.legend(loc="lower right", fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
    _finish(axes)


def _draw_levels(axes: Axes, facts: Mapping[str, Any]) -> None:
    """Draw the least time of each size of feature maps, split into arithmetic and memory, beside what it takes."""
    least: dict[str, float] = defaultdict(float)
    levels = facts["roofline"]["levels"]
    timed = all(level.get("measured_ms") for level in levels)
    for level in levels:
        name = "weights" if level["level_hw"] is None else "x".join(map(str, level["level_hw"]))
        if timed:
            label = None if least else "timed, each operation by itself"
            axes.barh(name, level["measured_ms"], height=0.9, color="none", edgecolor=MIDDLE, linewidth=1.2, label=label)
        memory_ms = level["memory_bound_ms"]
        arithmetic_ms = level["bound_ms"] - memory_ms
        axes.barh(name, arithmetic_ms, height=0.6, color=DARK, label=None if least else "least, bound by arithmetic")
        style: dict[str, Any] = {"left": arithmetic_ms, "height": 0.6, "color": LIGHT, "edgecolor": DARK, "hatch": "//"}
        axes.barh(name, memory_ms, label=None if least else "least, bound by memory", **style)
        least[name] = level["bound_ms"]
    rest_ms = facts["step_ms"]["median"] - sum(least.values())
    if rest_ms > 0 and not timed:
        axes.barh("beyond", rest_ms, color=MIDDLE, label="beyond the limits")
    axes.invert_yaxis()
    axes.set_title(f"least time by level, of a step of {facts['step_ms']['median']:.4g} ms", fontsize=10)
    axes.set_xlabel("ms of a step")
    axes.set_ylabel("feature maps, height x width")
    axes.legend(fontsize=8, frameon=False)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes with the same matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
    print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the bars' records")
    parser.add_argument("--roofline", type=Path, default=ROOFLINE, help="record of `unetfast bench` with the rung model")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for bars.png and roofline.png")
    given = parser.parse_args(arguments)
    try:
        save(draw_bars(read_records(given.results)), given.out / "bars.png")
        save(draw_roofline(read_record(given.roofline)), given.out / "roofline.png")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except FileNotFoundError as error:
        command = f"`unetfast bench model --toy carvana --json {error.filename}` makes one"
        sys.stderr.write(f"error: {error.filename}: no such record; {command}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
