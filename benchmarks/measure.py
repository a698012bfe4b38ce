"""Run a command and record its wall time, processor time and peak memory over all its processes.

    python benchmarks/measure.py --name shard-carvana -- unetfast shard --src Data/ --out shards/

Memory is the sum of the proportional set sizes (PSS, shared pages counted once) of the process tree, sampled ten times a
second; Linux only. The record, with versions, processor, git revision and UTC time, goes to benchmarks/results/NAME.json and
to the last line of the output.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from unetfast.bench.harness import describe_environment, finish

RESULTS = Path(__file__).parent / "results"


def read_children() -> dict[int, list[int]]:
    """Map each process to its children, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    return children


def read_pss_mib(root: int) -> float:
    """Sum the proportional set sizes of a process and all its descendants, MiB."""
    children, total, todo = read_children(), 0.0, [root]
    while todo:
        process = todo.pop()
        todo += children.get(process, [])
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
        except OSError:
            continue  # the process ended between listing and reading
    return total


def measure(command: list[str]) -> dict[str, object]:
    """Run `command` to its end; returns exit code, wall_s, cpu_s and peak_pss_mib, None where it ended before it was looked at.

    Raises:
        OSError: it cannot be started.
    """
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command)
    looks, ended = list[float](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            looks.append(read_pss_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    wall_s = time.monotonic() - began
    ended.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak_mib = round(max(looks), 1) if any(looks) else None
    return {"exit_code": code, "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "peak_pss_mib": peak_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True, help="file name of the record, without .json")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("a command must follow --")
    try:
        figures = measure(command)
    except OSError as error:
        parser.error(f"{command[0]}: cannot be started ({error.strerror})")
    record = {"name": arguments.name, "command": command, **figures, "environment": describe_environment()}
    finish(record, RESULTS / f"{arguments.name}.json")
    sys.exit(int(str(record["exit_code"])))


if __name__ == "__main__":
    main()
