"""The README's table of bars, made from the records in results/; nothing in it is written by hand.

    python benchmarks/table.py
    python benchmarks/table.py --check

`make bench` and benchmarks/gpu.sh leave the records. --check writes nothing and exits with 1 where the README says something
else than they do; a test does that, so the page cannot drift from what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bar import format_bar, format_note
from bars import HEAD, MAX_LOAD

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECORDS = ("bench-cpu.json", "bench-gpu*.json")  # gpu.sh's groups may have run one by one, each with a summary of its own
PLOT = ROOT / "docs" / "images" / "bars.png"
BEGIN, END = "<!-- bars: made by benchmarks/table.py -->", "<!-- bars: end -->"
NOTHING_YET = "`make bench` measures this; no record of it stands in `benchmarks/results/` yet."


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of bars that are there, by file name.

    Raises:
        ValueError: there is no such folder, or a record is no JSON.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    paths = [path for pattern in RECORDS for path in sorted(folder.glob(pattern))]
    return {path.name: read_record(path) for path in paths}


def read_record(path: Path) -> dict[str, Any]:
    """Read one record.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    return record


def describe_origin(name: str, record: Mapping[str, Any]) -> str:
    """Say in a line where a record comes from: machine, revision, time, and its file."""
    around = record["environment"]
    gpus = around.get("gpus") or []
    features = [feature for feature in around.get("cpu_features", []) if feature in ("avx512f", "avx512_bf16", "amx_bf16")]
    machine = (
        ", ".join(gpus) if gpus else f"{around['cores']} cores of {around['processor']} ({', '.join(features) or 'no AVX-512'})"
    )
    torch = around.get("packages", {}).get("torch", "unknown")
    when = around["utc"][:10]
    load = record.get("load_before", 0.0)
    beside = f"; beside other work (load {load:.1f})" if load > MAX_LOAD else ""
    return f"{machine}; torch {torch}; revision {around['git_revision']}; {when}{beside}; `benchmarks/results/{name}`"


def make_table(records: Mapping[str, Mapping[str, Any]], *, plot: Path | None = None) -> str:
    """Write the table of all records' bars, where they come from, and what kept a bar from its floor, or else from its goal.

    Args:
        records: by file name, as `read_records` gives them.
        plot: a picture of the bars, shown below; its path relative to the page.
    """
    if not records:
        return NOTHING_YET
    bars = sorted((bar for record in records.values() for bar in record["bars"]), key=lambda bar: bar["bar"])
    lines = [HEAD, *(format_bar(dict(bar)) for bar in bars), ""]
    lines += [f"- {describe_origin(name, record)}" for name, record in records.items()]
    open_bars = [bar for bar in bars if bar["verdict"] != "pass" and bar["note"]]
    lines += dict.fromkeys(f"- {format_note(bar)}" for bar in open_bars)
    below_goal = [bar for bar in bars if bar["verdict"] == "pass" and bar["note"] and not reaches_goal(bar)]
    if below_goal:
        lines += ["", "<details><summary>Bars past their floors, not at their goals: what their time goes to</summary>", ""]
        lines += [*dict.fromkeys(f"- {format_note(bar)}" for bar in below_goal), "", "</details>"]
    if plot is not None:
        lines += ["", f"![Each bar over its floor, with its goal]({plot.as_posix()})"]
    return "\n".join(lines)


def reaches_goal(bar: Mapping[str, Any]) -> bool:
    """Say whether a bar that was measured is at its goal, or has none."""
    if bar["goal"] is None:
        return True
    median: float = bar["ratio"]["median"]
    return median <= bar["goal"] if bar["less_is_better"] else median >= bar["goal"]


def replace_table(page: str, table: str, *, name: str) -> str:
    """Put a table between the marks of a page.

    Raises:
        ValueError: a mark is missing, stands twice, or they stand in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{name}: the page must hold {BEGIN!r} and behind it {END!r}, once each")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page says something else")
    parser.add_argument("--page", type=Path, default=ROOT / "README.md", help="default: README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args(arguments)
    plot = PLOT.relative_to(ROOT) if PLOT.is_file() else None
    try:
        records = read_records(given.results)
        page = given.page.read_text(encoding="utf-8")
        made = replace_table(page, make_table(records, plot=plot), name=str(given.page))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if given.check:
        if made == page:
            return 0
        sys.stderr.write(f"{given.page}: its table differs from the records; run `python benchmarks/table.py`\n")
        return 1
    given.page.write_text(made, encoding="utf-8")
    num_bars = sum(len(record["bars"]) for record in records.values())
    print(f"{given.page.name}: {num_bars} bars of {', '.join(records) or 'no record'}{' (as before)' * (made == page)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
