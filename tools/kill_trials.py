"""Kill `unetfast shard` or `unetfast train` at random instants, start again, and compare with an undisturbed run.

    python tools/kill_trials.py shard --src Data/ --trials 20 --seed 0
    python tools/kill_trials.py train --shards shards/ --trials 20 --seed 0 --set train.max_steps=12 ...

The instants are drawn uniformly from the whole duration of the undisturbed run (start-up included), by the seed. A trial is
one kill of the whole process group and one restart to the end; a run that ends before its instant is no trial, and is
counted. The last line is one JSON object; the exit code is 1 when any trial ended with other bytes (shards) or other weights
(training).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, without output."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def run_to_end(command: list[str]) -> float:
    """Run a command to its end; returns seconds.

    Raises:
        SystemExit: the command failed; shows what it said.
    """
    began = time.monotonic()
    process = start(command)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said.decode()}")
    return time.monotonic() - began


def kill_after(command: list[str], seconds: float) -> str:
    """Start a command and kill its process group with SIGKILL after `seconds`; says "killed" or "ended before"."""
    process = start(command)
    try:
        process.communicate(timeout=seconds)
        return "ended before"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "killed"


def hash_shards(folder: Path) -> str:
    """Hash names and bytes of all files of a shard folder, but for the log of times."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "pack.log":
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def hash_weights(folder: Path) -> str:
    """Hash step, weights and optimizer state of a run's last checkpoint."""
    import torch

    tree = torch.load(folder / "last.pt", weights_only=True, map_location="cpu")
    digest = hashlib.sha256()

    def add(node: object, path: str) -> None:
        if isinstance(node, torch.Tensor):
            digest.update(path.encode() + node.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key in sorted(node, key=str):
                add(node[key], f"{path}/{key}")
        elif isinstance(node, list | tuple):
            for place, child in enumerate(node):
                add(child, f"{path}/{place}")
        else:
            digest.update(f"{path}={node!r}".encode())

    for part in ("weights", "optimizer", "step"):
        add(tree[part], part)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["shard", "train"])
    parser.add_argument("--src", type=Path, help="source folder (shard)")
    parser.add_argument("--shards", type=Path, help="shard folder (train)")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments, passed_on = parser.parse_known_args()
    unetfast = [sys.executable, "-m", "unetfast"]
    work = Path(tempfile.mkdtemp(prefix="kill-trials-"))

    def command(out: Path, *, again: bool) -> list[str]:
        if arguments.what == "shard":
            return [*unetfast, "shard", "--src", str(arguments.src), "--out", str(out), *passed_on]
        resume = ["--resume"] if again and out.exists() else []
        return [*unetfast, "train", "--shards", str(arguments.shards), "--out", str(out), *passed_on, *resume]

    fingerprint = hash_shards if arguments.what == "shard" else hash_weights
    seconds = run_to_end(command(work / "undisturbed", again=False))
    wanted = fingerprint(work / "undisturbed")
    print(f"undisturbed: {seconds:.2f} s, {wanted[:16]}")
    draw = random.Random(arguments.seed)
    num_killed, num_late, equal = 0, 0, 0
    while num_killed < arguments.trials:
        out, instant = work / "trial", draw.uniform(0, seconds)
        outcome = kill_after(command(out, again=False), instant)
        if outcome == "killed":
            num_killed += 1
            run_to_end(command(out, again=True))
        elif (num_late := num_late + 1) > arguments.trials:
            raise SystemExit("most runs end before their instant: the undisturbed run was slowed down by something else")
        found = fingerprint(out)
        equal += outcome == "killed" and found == wanted
        verdict = "same" if found == wanted else "DIFFERENT"
        print(f"trial {num_killed:2d}: {outcome} at {instant:6.2f} s, then {verdict} ({found[:16]})", flush=True)
        shutil.rmtree(out)
    shutil.rmtree(work)
    record = {"what": arguments.what, "trials": arguments.trials, "seed": arguments.seed, "equal": equal}
    print(json.dumps(record | {"ended_before": num_late, "undisturbed_s": round(seconds, 2)}))
    sys.exit(equal != arguments.trials)


if __name__ == "__main__":
    main()
