"""Runs a benchmark's program in this process, on toy data alone, and returns its record."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import material
import pytest


def run_quick(
    program: ModuleType, toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, rounds: int = 2
) -> tuple[dict[str, Any], str]:
    """Run `main` under --quick; the record is the last line, and the file that --json names holds the same."""
    monkeypatch.setattr(material, "find_real", lambda _: None)
    out = toy_root / f"{program.__name__}.json"
    code = program.main(["--quick", "--rounds", str(rounds), "--data", str(toy_root), "--json", str(out)])
    text = capsys.readouterr().out
    record: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert code == 0
    assert json.loads(out.read_text()) == record
    assert record["benchmark"] == program.__name__
    assert record["rounds"] == rounds
    assert str(toy_root) not in text  # records hold no places of this machine
    assert record["environment"]["git_revision"]
    for bar in record["bars"]:
        assert bar["verdict"] in ("pass", "short")  # none is missing
        assert len(bar["ratio"]["rounds"]) == rounds
        assert min(bar["ratio"]["rounds"]) > 0
        assert f"| {bar['bar']} | {bar['what']} |" in text
    return record, text
