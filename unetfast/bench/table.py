"""The screen of `unetfast bench`: a line a rung with its limit and how much of it was reached, then the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("rung", "img/s (min..max)", "core-ms/img", "memory", "limit", "of it", "")
_TEXT_COLUMNS = (0, 4, 6)  # to the left; figures stand to the right

Rungs = Mapping[str, Mapping[str, Any]]


def format_rungs(rungs: Rungs, verdict: Mapping[str, Any]) -> str:
    """Write the table and the verdict.

    Args:
        rungs: `RungResult.to_json` by name, in the order of lines.
        verdict: of `verdict.judge`.
    """
    rows = [HEADER, *(_row(name, rung, rungs, verdict) for name, rung in rungs.items())]
    lines = [align(rows, left=_TEXT_COLUMNS), f"verdict  {verdict['sentence']}"]
    lines += [f"next     {verdict['next']}"] * bool(verdict["next"])
    lines += [f"note     {verdict['noise']}"] * bool(verdict["noise"])
    return "\n".join(lines)


def _row(name: str, rung: Mapping[str, Any], rungs: Rungs, verdict: Mapping[str, Any]) -> tuple[str, ...]:
    limit, share, remark = _LIMITS[name](rung, rungs, verdict)
    return (
        name,
        format_rate(rung["images_per_s"]),
        format_plain(1000 * rung["core_s_per_image"]["median"]),
        format_memory(rung["host_peak_mib"], rung["device_peak_mib"]),
        limit,
        "-" if share is None else f"{100 * share:.0f} %",
        remark,
    )


def _limit_of_read(rung: Mapping[str, Any], _rungs: Rungs, _verdict: Mapping[str, Any]) -> tuple[str, float | None, str]:
    hash_gb_per_s, mib_per_s = rung["facts"]["hash_gb_per_s"], rung["facts"]["mib_per_s"]["median"]
    remark = f"{mib_per_s * 2**20 / 1e9:.2g} GB/s on one core"
    if hash_gb_per_s is None:
        return "-", None, f"{remark}, not checked"
    return (
        f"{hash_gb_per_s:.3g} GB/core-s hash",
        _per_core_s(rung, rung["facts"]["bytes_per_image"] / 1e9) / hash_gb_per_s,
        remark,
    )


def _limit_of_loader(rung: Mapping[str, Any], _rungs: Rungs, _verdict: Mapping[str, Any]) -> tuple[str, float | None, str]:
    facts = rung["facts"]
    remark = f"{facts['backend']}, {facts['threads']} threads" + f", cache {facts['cache']}" * (facts["cache"] != "off")
    if facts["decode_images_per_core_s"] is None:
        return "-", None, remark
    share = _per_core_s(rung, 1) / facts["decode_images_per_core_s"]
    return f"{format_number(facts['decode_images_per_core_s'])} img/core-s decode", share, remark


def _per_core_s(rung: Mapping[str, Any], amount: float) -> float:
    """Turn an amount of an image into one of a core-second, which holds whatever else had the cores."""
    core_s: float = rung["core_s_per_image"]["median"]
    return amount / max(core_s, 1e-9)


def _limit_of_model(rung: Mapping[str, Any], _rungs: Rungs, _verdict: Mapping[str, Any]) -> tuple[str, float | None, str]:
    facts, images_per_s = rung["facts"], rung["images_per_s"]["median"]
    gflop, rate = facts.get("gflop_step_per_image"), facts.get("matrix_tflop_per_s")
    remarks = []
    if gflop:
        remarks.append(f"{gflop:.3g} GFLOP an image")
    if gflop and rate:
        remarks.append(f"{100 * images_per_s * gflop / 1000 / rate:.2g} % of {rate:.3g} TFLOP/s")
    roofline = facts.get("roofline_images_per_s")
    if not roofline:
        return "-", None, ", ".join(remarks)
    return f"{format_number(roofline)} img/s roofline", images_per_s / roofline, ", ".join(remarks)


def _limit_of_train(rung: Mapping[str, Any], _rungs: Rungs, verdict: Mapping[str, Any]) -> tuple[str, float | None, str]:
    wait = f"data-wait {rung['facts']['data_wait_pct']['median']:.2g} %"
    name = "loader" if verdict["limit"] == "loader" else "model"
    of_limit = verdict[f"train_of_{name}"]
    return (name, of_limit["median"], wait) if of_limit else ("-", None, wait)


def _limit_of_shard(rung: Mapping[str, Any], _rungs: Rungs, _verdict: Mapping[str, Any]) -> tuple[str, float | None, str]:
    facts = rung["facts"]
    remark = f"toy {facts['dataset']}, {facts['source_mib_per_s']['median']:.3g} MiB/s of source files"
    workers_mib = facts["workers_peak_mib"]["median"]
    return "-", None, f"{remark}, workers {format_memory(workers_mib, None)}" if workers_mib else remark


_LIMITS = {
    "read": _limit_of_read,
    "loader": _limit_of_loader,
    "model": _limit_of_model,
    "train": _limit_of_train,
    "shard": _limit_of_shard,
}


def align(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Align cells in columns, to the right but in those of `left`."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def format_rate(figure: Mapping[str, Any]) -> str:
    """Write images/s as `median (min..max)`."""
    return f"{format_number(figure['median'])} ({format_number(figure['min'])}..{format_number(figure['max'])})"


def format_number(value: float) -> str:
    """Write a positive number with about three digits, thousands with commas, never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else format_plain(value, 3)


def format_plain(value: float, digits: int = 2) -> str:
    """Write a number with `digits` significant digits, never as a power of ten."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def format_memory(host_mib: float, device_mib: float | None) -> str:
    """Write the host's peak, and that of the GPU where there is one."""
    host = f"{host_mib / 1024:.2f} GiB" if host_mib >= 1024 else f"{host_mib:.0f} MiB"
    return host if device_mib is None else f"{host} + GPU {device_mib / 1024:.2f} GiB"
