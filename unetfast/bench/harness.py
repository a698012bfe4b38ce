"""What every benchmark shares: the machine and versions a figure belongs to, rounds in turn, spreads, records.

A figure is the median of several rounds, with the least and the greatest. The sides of a comparison take turns within one
run, so that a machine which gets slower hits all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from unetfast.errors import UserError

T = TypeVar("T")

_ROOT = Path(__file__).parents[2]
# the folders of an absolute path, wherever in a text it stands; not those of an address, and no "images/s"
_FOLDERS = re.compile(r"(?<![\w./:~-])/(?:[^\s/'\",:]+/)+")

PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "lz4", "xxhash")
# of these a machine has one name or another, or none
_OTHER_PACKAGES = (
    *("torchvision", "triton", "numba", "pydantic", "webdataset", "nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    *("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "nvidia-nvjpeg-cu12"),
    *("nvidia-libnvcomp-cu12", "nvidia-libnvcomp-cu13"),
)


def make_folder(folder: Path, option: str) -> None:
    """Make a folder for results, and refuse what cannot be written before minutes of measuring, not behind them.

    Args:
        folder: may be there.
        option: of the command line, with its value, for the error.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{option}: {folder} is a file, and no folder; name another one") from None
    except OSError as error:
        raise UserError(f"{option}: the folder {folder} cannot be made ({error.strerror}); name another one") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: the folder {folder} cannot be written to; name another one")


def add_record_argument(parser: argparse.ArgumentParser, words: str = "write the record here too") -> None:
    """Let a program be told where its record goes: `--json FILE`, whose folder is made before anything is measured."""
    parser.add_argument("--json", type=_record_file, default=None, metavar="FILE", help=words)


def _record_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give a file")
    try:
        make_folder(path.parent, text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def describe_environment() -> dict[str, Any]:
    """Name what a figure depends on: processor, cores, GPU, versions, revision, time. Imports nothing heavy."""
    found = {name: installed_version(name) or "not installed" for name in PACKAGES}
    found |= {name: there for name in _OTHER_PACKAGES if (there := installed_version(name))}
    return {
        "processor": read_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_features": read_cpu_features(),
        "gpus": read_gpus(),
        "python": platform.python_version(),
        "packages": found,
        "git_revision": read_revision(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_processor() -> str:
    """Name the processor, from /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def read_cpu_features() -> list[str]:
    """Name the vector and matrix instructions of the processor that the figures here depend on, from /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return sorted({*line.split()} & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "amx_tile"})
    return []


def read_gpus() -> list[str]:
    """Name each NVIDIA GPU with memory and driver, as nvidia-smi tells it; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return told.stdout.strip().splitlines() if told.returncode == 0 else []


def read_revision() -> str:
    """Return the commit of this checkout, `-dirty` where tracked files differ; elsewhere UNETFAST_REVISION or "unknown"."""
    revision = ""
    if (_ROOT / ".git").exists():  # an installed copy may lie inside somebody else's
        command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
        with contextlib.suppress(OSError):
            told = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
            revision = told.stdout.strip()
    return revision or os.environ.get("UNETFAST_REVISION", "unknown")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, interpolated between neighbours.

    Raises:
        ValueError: there is no value, or the share is outside [0, 1].
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"percentile {share} of {len(values)} values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Sum up the rounds of one figure: median, min, max and the rounds themselves, to `digits` significant digits."""
    rounds = [float(f"{value:.{digits}g}") for value in values]
    return {
        "median": float(f"{percentile(values, 0.5):.{digits}g}"),
        "min": min(rounds),
        "max": max(rounds),
        "rounds": rounds,
    }


def format_spread(figure: Mapping[str, Any] | None, digits: int = 4) -> str:
    """Write a `spread` as `median (min..max)`; "-" where there is none."""
    if figure is None:
        return "-"
    return "{} ({}..{})".format(*(format_figure(figure[name], digits) for name in ("median", "min", "max")))


def format_figure(value: float, digits: int) -> str:
    """Write a number with `digits` significant digits; from a thousand on in full, with commas, not as a power of ten."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(value) >= 1000 or "e+" in text else text


def take_turns(sides: Mapping[str, Callable[[], T]], num_rounds: int) -> dict[str, list[T]]:
    """Run every side once a round, `num_rounds` times; each round begins with another side.

    A side that raises is left out from then on; the caller's functions say why by raising, and keep what they know.

    Returns:
        What each side returned, in the order of rounds.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    going = list(sides)
    for number in range(num_rounds):
        first = number % max(1, len(going))
        for name in going[first:] + going[:first]:
            try:
                results[name].append(sides[name]())
            except SideError:
                going = [other for other in going if other != name]
    return results


class SideError(Exception):
    """A side of a comparison cannot go on; the others can."""


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def without_places(value: Any) -> Any:
    """Leave the folders of absolute paths out of all strings of a record: places of this machine say nothing to others.

    Args:
        value: JSON: a string, or lists and dicts of them; the names of paths stay, keys are left as they are.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    return value


def finish(record: dict[str, Any], path: Path | None) -> None:
    """Print a record, without places of this machine, as the last line, and write it to `path`, where one is given."""
    record = without_places(record)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record), flush=True)
