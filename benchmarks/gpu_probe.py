"""What works of DALI on this machine, step by step: for the first run on a GPU that nobody has tried.

    python benchmarks/gpu_probe.py --device cuda

Every step runs in a process of its own and says what it found, or how it failed. `--steps works`: versions, the libraries that
were loaded, JPEGs of several kinds decoded on the GPU against the host, LZ4 inflated there, DLPack's device, operators against
their CPU forms. `--steps rates`: how fast the decoders are, and whether the GPU's JPEG unit takes part. The exit code is 1 when
a step failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import probe_steps
from apart import Apart

from unetfast.bench.harness import SideError, add_record_argument, describe_environment, finish

Steps = dict[str, Callable[[str], dict[str, Any]]]

WORKS: Steps = {
    "torch": probe_steps.ask_torch,
    "dali": probe_steps.ask_dali,
    "decode": probe_steps.decode_baseline,
    "kinds": probe_steps.decode_kinds,
    "dlpack": probe_steps.pass_by_dlpack,
    "operators": probe_steps.compare_operators,
    "inflate": probe_steps.inflate_blocks,
    "region": probe_steps.decode_region,
}
# these time something, so they run one by one
RATES: Steps = {"jpeg_unit": probe_steps.measure_decoders, "decode_rates": probe_steps.measure_pipeline}


def run_steps(device: str, chosen: str, timeout_s: float) -> dict[str, dict[str, Any]]:
    """Run the steps `works`, `rates` or `all`; a failed one has `error`."""
    results: dict[str, dict[str, Any]] = {}
    if chosen != "rates":
        jobs = {name: Apart(step, device) for name, step in WORKS.items()}
        results |= {name: _wait(name, job, timeout_s) for name, job in jobs.items()}
    if chosen != "works":
        results |= {name: _wait(name, Apart(step, device), timeout_s) for name, step in RATES.items()}
    return results


def _wait(name: str, job: Apart, timeout_s: float) -> dict[str, Any]:
    try:
        found: dict[str, Any] = job.result(timeout_s)
    except SideError as error:
        found = {"error": str(error)}
    print(f"{name}: {found}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", choices=("all", "works", "rates"), default="all")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a step")
    add_record_argument(parser)
    given = parser.parse_args(arguments)
    record: dict[str, Any] = {"benchmark": "gpu_probe", "device": given.device, "environment": describe_environment()}
    record["steps"] = run_steps(given.device, given.steps, given.timeout)
    finish(record, given.json)
    return 1 if any("error" in found for found in record["steps"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
