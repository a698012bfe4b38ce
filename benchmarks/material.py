"""What packing, reading, masks and seeking are measured on: encoded samples of toy data in real sizes, and of the real files.

Every side of a comparison gets the very same bytes. Toy data is drawn by --seed; the real sample files are taken from --real,
UNETFAST_REAL_DATA or ../shared/data beside the checkout, and where there are none, the record says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bar import format_bar

from unetfast.bench.harness import (
    SideError,
    add_record_argument,
    describe_environment,
    finish,
    format_figure,
    format_spread,
    format_table,
    percentile,
    spread,
)
from unetfast.bench.toyshards import default_root, make_toy_shards
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS, Sample
from unetfast.errors import UserError

_MEMORY = Path("/dev/shm")
# data set -> its folder among the real sample files
_REAL_FOLDERS = {
    "carvana": "carvana",
    "clevr": "clevr/Dataset_Student",
    "ade20k": "ade20k/ADEChallengeData2016",
}


@dataclass(frozen=True, slots=True)
class Took:
    """Time of one run of a side.

    Args:
        wall_s: on the clock, seconds.
        core_s: of processors, over the process and the children it waited for, seconds.
    """

    wall_s: float
    core_s: float


def time_call(function: Callable[[], object]) -> Took:
    """Call a function once, and tell its time."""
    wall_s, cores_s = time.perf_counter(), _core_s()
    function()
    return Took(time.perf_counter() - wall_s, _core_s() - cores_s)


def _core_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def add_arguments(parser: argparse.ArgumentParser, *, reads_real: bool = True) -> None:
    """Let a benchmark be told its data, rounds and record; `reads_real` where it takes the real sample files."""
    if reads_real:
        parser.add_argument("--real", type=Path, default=None, help="folder of the real sample files")
    parser.add_argument("--data", type=Path, default=default_root(), help="keeps toy data and shards (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the toy data: another one draws other contents and sizes")
    parser.add_argument("--rounds", type=int, default=5, help="of each side (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds on little, small data: does it work at all?")
    add_record_argument(parser)


def add_all_sides(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark be asked for the sides that stand in no bar, too."""
    parser.add_argument(
        "--all-sides", action="store_true", help="also the sides that stand in no bar; `make bench` leaves them out"
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse what `add_arguments` added; under --quick there are two rounds."""
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.seed < 0:
        parser.error("--seed must be 0 or more")
    if given.quick:
        given.rounds = min(given.rounds, 2)
    return given


def run_program(
    name: str,
    doc: str | None,
    arguments: list[str] | None,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    *,
    add: Callable[[argparse.ArgumentParser], None] | None = None,
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None,
    reads_real: bool = True,
) -> int:
    """Run a benchmark from its arguments to its record.

    Args:
        name: of the benchmark.
        doc: of its module; the first line is told under --help.
        arguments: of the command line; None takes the process's own.
        measure: prints what people read, and returns `data`, `sides` (a failed one holds "error"), `bars` and more.
        add: adds arguments of its own.
        check: settles what follows from them, and calls the parser's `error` for what is wrong.
        reads_real: as in `add_arguments`.

    Returns:
        Exit code: 0, 1 where a side failed, 2 where the arguments or the data are at fault.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add_arguments(parser, reads_real=reads_real)
    if add is not None:
        add(parser)
    given = parse(parser, arguments)
    if check is not None:
        check(parser, given)
    try:
        measured = measure(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for bar in measured["bars"]:
        print("\n  ".join(filter(None, (format_bar(bar), bar["note"]))))
    record = {
        "benchmark": name,
        "command": [f"benchmarks/{name}.py", *(sys.argv[1:] if arguments is None else arguments)],
        "environment": describe_environment(),
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()},
        **measured,
    }
    finish({**record, "rounds": given.rounds, "quick": given.quick, "seed": given.seed}, given.json)
    return 1 if any("error" in side for side in measured["sides"].values()) else 0


def find_real(named: Path | None) -> Path | None:
    """Return the folder of the real sample files; None where there is none.

    Raises:
        UserError: a folder was named, and does not exist.
    """
    told = named or (Path(os.environ["UNETFAST_REAL_DATA"]) if os.environ.get("UNETFAST_REAL_DATA") else None)
    if told is not None:
        if not told.is_dir():
            raise UserError(f"--real {told}: no such folder; leave it (and UNETFAST_REAL_DATA) away to measure on toy data")
        return told
    usual = Path(__file__).parents[2] / "shared" / "data"
    return usual if usual.is_dir() else None


@dataclass(frozen=True, slots=True)
class Shards:
    """One data set, packed twice.

    Args:
        label: for people, such as "real Carvana".
        shards: as `unetfast shard` packs by default.
        png_shards: the same samples with PNG masks.
    """

    label: str
    shards: Path
    png_shards: Path


def make_shards(
    name: str, given: argparse.Namespace, *, real: Path | None = None, num_samples: int | None = None, shard_mib: float = 16.0
) -> Shards:
    """Pack a data set, once: the real files where `real` is given, else toy data in its sizes.

    Args:
        name: "carvana", "clevr" or "ade20k".
        given: parsed by `parse`.
        real: folder of the real sample files.
        num_samples: of toy data; None is as many as the set has by default.
        shard_mib: of the real files' shards.
    """
    if real is None:
        made = make_toy_shards(name, given.data, num_samples=num_samples, small=given.quick, seed=given.seed)
        return Shards(f"toy {name}", made.shards, made.png_shards)
    folders = [given.data / f"real-{name}{suffix}" for suffix in ("-shards", "-png")]
    options = PackOptions(val_fraction=0.0, shard_mib=shard_mib, on_bad="skip")
    # what lies there may be of other files, which have taken these files' place
    pack(real / _REAL_FOLDERS[name], folders[0], dataset=name, options=options, overwrite=True)
    pack(real / _REAL_FOLDERS[name], folders[1], dataset=name, options=replace(options, mask_codec="png"), overwrite=True)
    return Shards(f"real {name}", *folders)


def describe_packing(folder: Path) -> dict[str, Any]:
    """Tell the options that shaped the bytes of a shard folder, from its manifest; JSON."""
    return open_shards(folder).manifest.options


def read_samples(folder: Path, count: int | None = None) -> list[Sample]:
    """Read the training samples of a shard folder as they were packed, again and again until there are `count`.

    Keys are numbered where samples come again, so that each stands once in what is written.
    """
    with open_shards(folder).split("train") as reader:
        found = []
        for number in range(reader.num_samples):
            row, tree = reader.rows[number], reader.read_json(number)
            sizes = {"height": int(row["height"]), "width": int(row["width"]), "mask_bits": int(row["mask_bits"])}
            sample = Sample(
                key=reader.key(number),
                image=reader.read_image(number),
                image_codec=IMAGE_CODECS[row["image_codec"]],
                mask=reader.read_mask(number),
                mask_codec=MASK_CODECS[row["mask_codec"]],
                source_path=tree["source_path"],
                group=tree["group"],
                **sizes,
            )
            found.append(sample)
    if count is None:
        return found
    distinct = len(found)
    return [
        replace(found[number % distinct], key=f"{found[number % distinct].key[:70]}_{number // distinct:06d}")
        for number in range(count)
    ]


@contextmanager
def folder_in_memory(fallback: Path, num_bytes: int) -> Iterator[Path]:
    """Make a folder that waits for no disk, and take it away; below `fallback` where memory cannot hold `num_bytes` twice."""
    holds = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * num_bytes
    root = _MEMORY if holds else fallback
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unetfast-bench-", dir=root) as name:
        yield Path(name)


def settle(side: Callable[[], Took], name: str, failed: dict[str, str]) -> Callable[[], Took]:
    """Guard a side that runs foreign code: what it raises is noted under its name, and the other sides go on."""

    def guarded() -> Took:
        try:
            return side()
        except Exception as error:  # a stranger's package may raise anything
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise SideError(name) from error

    return guarded


def say_failed(failed: Mapping[str, str], *names: str) -> str:
    """Say which of the sides of a bar failed, and how; empty where none did."""
    return "; ".join(f"{name}: {failed[name]}" for name in names if name in failed)


def sum_up(took: Sequence[Took], num_images: int, num_bytes: int) -> dict[str, Any]:
    """Turn the rounds of a side into its figures: images/s, MB/s and core-microseconds an image."""
    return {
        "images_per_s": spread([num_images / one.wall_s for one in took]),
        "mb_per_s": spread([num_bytes / one.wall_s / 1e6 for one in took]),
        "core_us_per_image": spread([one.core_s / num_images * 1e6 for one in took]),
    }


def ratios(ours: Sequence[Took], theirs: Sequence[Took]) -> list[float]:
    """How many times as fast ours was, round by round, on the clock."""
    return [their.wall_s / own.wall_s for own, their in zip(ours, theirs, strict=True)]


def core_ratios(ours: Sequence[Took], theirs: Sequence[Took]) -> list[float]:
    """The same in processor time, which other programs on the machine disturb less."""
    return [their.core_s / max(own.core_s, 1e-6) for own, their in zip(ours, theirs, strict=True)]


def say_share(what: str, part: Sequence[Took], ours: Sequence[Took], theirs: Sequence[Took]) -> str:
    """Say how much of our time a part takes that nothing can be saved of, and what ratio that part alone would have.

    Args:
        what: the part, for people.
        part: its rounds, of the same work as those of ours and theirs.
        ours: rounds.
        theirs: rounds of the peer.
    """
    share = percentile([alone.wall_s / own.wall_s for alone, own in zip(part, ours, strict=True)], 0.5)
    ratio = percentile(ratios(part, theirs), 0.5)
    return f"{what} takes {format_figure(100 * share, 2)} % of our time; it alone would be {ratio:.3g}x"


def print_sides(title: str, sides: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a table: a side a row; `columns` maps headings to figures (spreads or numbers)."""
    rows = [[title, *columns]]
    for name, side in sides.items():
        if "error" in side:
            continue
        rows.append([name, *(_write(side.get(figure)) for figure in columns.values())])
    print(format_table(rows))
    for name, side in sides.items():
        if "error" in side:
            print(f"{name}: {side['error']}")


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return format_spread(value)
    return "-" if value is None else format_figure(value, 4) if isinstance(value, int | float) else str(value)
