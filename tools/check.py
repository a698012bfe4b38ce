"""Runs every gate: format, lint, types, imports, tests. People and CI call this one program.

    python tools/check.py [arguments for pytest]

All gates run even when one fails; the exit code is 1 when any did.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Gate:
    """One check: its name, and the command that runs it."""

    name: str
    command: list[str]


def list_gates(pytest_arguments: list[str]) -> list[Gate]:
    """List all gates in the order in which they run, quick ones first; each runs in this Python's environment."""
    tool = [sys.executable, "-m"]
    return [
        Gate("format", [*tool, "ruff", "format", "--check", "."]),
        Gate("lint", [*tool, "ruff", "check", "."]),
        Gate("types", [*tool, "mypy"]),
        # import-linter has no module to run: its command stands beside this Python
        Gate("imports", [str(Path(sys.executable).parent / "lint-imports")]),
        # two processes: more would fight over memory, each imports torch
        Gate("tests", [*tool, "pytest", "-n", "2", *pytest_arguments]),
    ]


def run_gates(gates: list[Gate], *, root: Path) -> bool:
    """Run gates one after another and print the time of each; return whether all passed."""
    lines = []
    all_passed = True
    for gate in gates:
        print(f"== {gate.name}: {' '.join(gate.command)}", flush=True)
        start_s = time.perf_counter()
        try:
            code = subprocess.run(gate.command, cwd=root, check=False).returncode
        except FileNotFoundError:
            print(f"error: {gate.command[0]} is not installed: make venv")
            code = 127
        verdict = "passed" if code == 0 else f"FAILED (exit code {code})"
        all_passed = all_passed and code == 0
        lines.append(f"{gate.name:8} {time.perf_counter() - start_s:7.1f} s  {verdict}")
    print("\n".join(["== all gates", *lines]), flush=True)
    return all_passed


def main(arguments: list[str]) -> int:
    """Run all gates; arguments go to pytest."""
    return 0 if run_gates(list_gates(arguments), root=ROOT) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
