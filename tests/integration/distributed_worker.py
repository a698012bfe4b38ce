"""One of several processes that train together: started by torchrun, or by hand with its variables.

    torchrun --nproc-per-node 2 distributed_worker.py SHARDS OUT CASES_JSON

Runs the cases one after another, each in its folder of OUT, and leaves `<name>.<rank>.json` beside it: what this process was
told at the end, and the samples of its part of each batch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import toy_run

from unetfast.distributed import current_world, join_world
from unetfast.errors import RankError, ToldError, UserError


def run_case(shards: Path, out: Path, case: dict[str, Any]) -> None:
    """Train once.

    Args:
        shards: shard folder.
        out: folder of the results.
        case: `name`, `tree` (config), and maybe `resume`, `into` (name of the case that left the run folder), `dies` or `hangs`
            ([rank, step]), `signal` ([rank, step, name]), `eager` (compile without a compiler).
    """
    rank = current_world().rank
    ids = out / f"{case['name']}.{rank}.ids"
    signal_at = (0, 0)
    for key, number in (("dies", signal.SIGKILL), ("hangs", signal.SIGSTOP)):
        if case.get(key, [-1])[0] == rank:
            signal_at = (number, case[key][1])
    if case.get("signal", [-1])[0] == rank:
        signal_at = (signal.Signals[case["signal"][2]], case["signal"][1])
    compile_model = torch.nn.Module.compile
    if case.get("eager"):
        torch.nn.Module.compile = lambda self, **options: compile_model(self, **options | {"backend": "eager"})
    said: dict[str, Any] = {}
    try:
        folder = out / case.get("into", case["name"])
        result = toy_run.run_here(shards, folder, case["tree"], resume=case.get("resume", False), ids=ids, signal_at=signal_at)
        said = {"steps": result.steps, "stopped": result.stopped, "exit_code": result.exit_code, "last": result.last}
    except UserError as error:
        if isinstance(error, RankError | ToldError):
            raise
        said = {"error": str(error)}
    finally:
        torch.nn.Module.compile = compile_model
    (out / f"{case['name']}.{rank}.json").write_text(json.dumps(said))


def main() -> None:
    shards, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    torch.set_num_threads(1)
    try:
        with join_world():
            for case in cases:
                run_case(shards, out, case)
    except RankError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except ToldError:
        sys.exit(2)
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
