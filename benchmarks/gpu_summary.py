"""Joins what the parts of gpu.sh left into OUT/summary.json, OUT/records.json and one JSON line.

    python benchmarks/gpu_summary.py WORK OUT [--tell PART] [--seconds N]

WORK holds parts.tsv (name, exit code, seconds, limit) and each part's record. summary.json is the line: how every part ended,
its main figures, and the bars G1 to G5; records.json holds the records themselves. Needs nothing but Python and this checkout,
since it must tell of missing packages. The exit code is 1 when a part did not end well; a bar that is short is no failure of
the script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from bar import format_bar

MAX_NAMES = 20  # of failed tests


def read_parts(work: Path) -> dict[str, dict[str, Any]]:
    """Read how each part ended: ok, failed, timeout, crashed or "no time"."""
    parts = {}
    for line in (work / "parts.tsv").read_text().splitlines():
        name, code, seconds, limit = line.split("\t")
        status = {"0": "ok", "no time": "no time", "unknown part": "unknown part", "124": "timeout", "137": "timeout"}.get(code)
        status = status or ("failed" if int(code) < 128 else f"crashed (signal {int(code) - 128})")
        parts[name] = {"status": status, "seconds": int(seconds)}
        if status == "timeout":
            parts[name]["limit_s"] = int(limit)
    return parts


def read_record(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record


def three(figure: dict[str, Any] | None) -> list[float] | None:
    """Shorten a spread to [median, min, max]."""
    return None if figure is None else [figure["median"], figure["min"], figure["max"]]


def sum_up_side(side: dict[str, Any]) -> Any:
    """Shorten one side of loader.py or loader_tax.py."""
    if "error" in side:
        return {"error": side["error"][:160]}
    short = {"images_per_s": three(side["images_per_s"]), "ratio": three(side.get("ratio"))}
    for name in ("data_wait_pct", "cores_used", "gpu_pct", "jpeg_unit_pct"):
        if side.get(name) is not None:
            short[name] = side[name]["median"]
    if side.get("device_mib") is not None:
        short["device_mib"] = side["device_mib"]
    return short


def sum_up(record: dict[str, Any]) -> dict[str, Any]:
    """Shorten a part's record to its main figures."""
    kind = record.get("benchmark")
    if kind == "gpu_training":
        sizes = {size: one["sides"] for size, one in record["sizes"].items()}
        return {size: {name: sum_up_side(side) for name, side in sides.items()} for size, sides in sizes.items()}
    if kind == "gpu_compile":
        last = record["cold"]["stretches"][-1] if record["cold"] else {}
        return {"after_all_epochs": last, "warm_first_step_s": three(record.get("warm_first_step_s"))}
    if kind == "gpu_latency":
        return {
            name: {"error": side["error"][:160]} if "error" in side else three(side["ms"])
            for name, side in record["sides"].items()
        }
    if kind in ("loader", "loader_tax", "gpu_decode"):
        short = {name: sum_up_side(side) for name, side in record["sides"].items()}
        return short | {name: {"error": error[:160]} for name, error in record.get("errors", {}).items()}
    if kind == "parity":
        return {
            name: found.get("error", "")[:160] or [found["psnr_min"], float(f"{found['mask_share_max']:.2g}"), found["holds"]]
            for name, found in record["variants"].items()
        }
    if kind == "gpu_probe":
        return {name: {"error": found["error"][:160]} if "error" in found else found for name, found in record["steps"].items()}
    return {}


def read_tests(path: Path, log: Path) -> dict[str, Any]:
    """Count tests by how they ended, and name those that failed; from the log where pytest had no time for its report."""
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    names = []
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        text = log.read_text(errors="replace") if log.exists() else ""
        outcomes = Counter(re.findall(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", text))
        return {"from": "the log", **{name: outcomes[name.upper()] for name in counts}}
    for case in root.iter("testcase"):
        outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
        outcome = "failed" if outcome == "failure" else outcome
        counts[outcome] += 1
        if outcome in ("failed", "error"):
            names.append(f"{outcome}: {case.get('classname', '')}::{case.get('name')}")
    return counts | {"names": names[:MAX_NAMES]}


def build_summary(work: Path, out: Path, *, seconds: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the summary, and all records by part; `seconds` is the wall time (parts may run side by side)."""
    parts = read_parts(work)
    records = {name: record for name in parts if (record := read_record(work / f"{name}.json")) is not None}
    for name, part in parts.items():
        if name in records and name != "environment":
            part["found"] = sum_up(records[name])
        elif name == "tests":
            part["found"] = read_tests(out / "pytest.xml", work / "tests.log")
            if part["status"] == "ok" and not part["found"]["passed"] and os.environ.get("UNETFAST_BENCH_DEVICE") != "cpu":
                part["status"] = "no test ran"
        elif part["status"] not in ("ok", "no time"):
            part["last_line"] = last_line(work / f"{name}.log")
    bars = [bar for name in records for bar in records[name].get("bars", [])]
    summary = {
        "benchmark": "gpu",
        "ok": all(part["status"] == "ok" for part in parts.values()) and bool(parts),
        "not_ok": {name: part["status"] for name, part in parts.items() if part["status"] != "ok"},
        "seconds": sum(part["seconds"] for part in parts.values()) if seconds is None else seconds,
        "environment": records.get("environment"),
        "bars": bars,
        "parts": parts,
    }
    return summary, records


def last_line(path: Path) -> str:
    """Return the last line of a log, cut to 300 characters."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tell", metavar="PART", help="print one line on this part instead of the summary")
    parser.add_argument("--seconds", type=int, help="wall time of all parts")
    given = parser.parse_args(arguments)
    summary, records = build_summary(given.work, given.out, seconds=given.seconds)
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (given.out / "records.json").write_text(json.dumps(records) + "\n")
    if given.tell:
        part = summary["parts"].get(given.tell, {"status": "left no trace", "seconds": 0})
        print(f"{given.tell}: {part['status']}, {part['seconds']} s {part.get('last_line', '')}".rstrip())
        return 0
    for bar in sorted(summary["bars"], key=lambda bar: str(bar["bar"])):
        print(format_bar(bar) + (f" {bar['note']}" if bar["note"] else ""))
    print(json.dumps(summary, separators=(",", ":")))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
