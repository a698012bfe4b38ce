"""docs/claims.toml: every claim stands in the README's table, its commands parse, its test exists."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from unetfast.cli import app
from unetfast.config import apply_overrides, known_keys, preset_names

ROOT = Path(__file__).parents[1]
CLAIMS = tomllib.loads((ROOT / "docs" / "claims.toml").read_text(encoding="utf-8"))["claim"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
IDS = [f"{claim['system']}: {claim['row'][:50]}" for claim in CLAIMS]
# how many rows each project has: a claim that is taken away is missed
NUM_CLAIMS = {"R0 CLEVR": 7, "R1 Carvana": 6, "R2 Carvana, JSON": 7, "R3 ADE20K": 11, "R4 generic": 5}


def table_rows() -> list[tuple[str, str, str]]:
    """List (system, row, command) of the README's table; the system stands in the first row of its rows alone."""
    section = README.split("## The five projects that this replaces")[1].split("\n## ")[0]
    rows, system = [], ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        if len(cells) != 3 or cells[0] == "from" or set(cells[0]) == {"-"}:
            continue
        system = cells[0] or system
        rows.append((system, cells[1], cells[2]))
    return rows


def commands(claim: dict[str, Any]) -> list[list[str]]:
    codes = re.findall(r"`([^`]+)`", claim["command"])
    return [shlex.split(code) for code in codes if code.startswith(("unetfast ", "--"))]


def test_each_project_has_all_its_claims() -> None:
    found = {system: sum(claim["system"] == system for claim in CLAIMS) for system in NUM_CLAIMS}
    assert found == NUM_CLAIMS
    assert len(CLAIMS) == sum(NUM_CLAIMS.values())


def test_the_readmes_table_holds_the_same_rows() -> None:
    assert table_rows() == [(claim["system"], claim["row"], claim["command"]) for claim in CLAIMS]


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_each_claim_is_complete(claim: dict[str, Any]) -> None:
    assert set(claim) == {"system", "row", "command", "test"}
    assert all(isinstance(text, str) and text.strip() == text and text for text in claim.values())


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_each_claim_has_a_command_that_exists(claim: dict[str, Any]) -> None:
    if claim["command"].startswith("["):
        target = re.findall(r"\]\(([^)]+)\)", claim["command"])[0]
        assert (ROOT / target).is_file()
        return
    assert commands(claim), "no command"
    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(claim):
        if words[0] == "unetfast":
            options = {name for parameter in known[words[1]].params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options
        settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        assert {setting.partition("=")[0] for setting in settings} <= set(known_keys())
        apply_overrides({}, settings)
        assert {words[place + 1] for place, word in enumerate(words) if word == "--preset"} <= set(preset_names())


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_each_claim_has_a_test_that_exists(claim: dict[str, Any]) -> None:
    name, _, function = claim["test"].partition("::")
    path = ROOT / name
    assert path.is_file(), f"{name} is not there"
    found = [node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]
    tests = [entry for entry in found if entry.startswith("test_")]
    assert tests, f"{name} holds no test"
    assert function in tests, f"{name} has no {function}"
