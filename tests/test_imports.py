"""What each command imports before it has anything to say: seconds of start-up, told without a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unetfast.bench.toyshards import make_toy_shards

# runs command lines in turn, and tells after each its exit code and the heavy modules that are loaded by then
TRIAL = """
import json, sys
from unetfast import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as stop:
        code = stop.code or 0
    heavy = sorted({"torch", "cv2", "numpy", "PIL", "matplotlib", "pydantic", "rich", "nvidia"} & set(sys.modules))
    sys.stderr.write("TOLD " + json.dumps([arguments, code, heavy]) + chr(10))
"""


def run_in_turn(*commands: list[str]) -> list[tuple[list[str], int, list[str], str]]:
    """Return for each command line: itself, its exit code, heavy modules, and what it wrote to stderr."""
    done = subprocess.run([sys.executable, "-c", TRIAL, json.dumps(commands)], capture_output=True, text=True, check=False)
    found, said = [], ""
    for line in done.stderr.splitlines():
        if line.startswith("TOLD "):
            found.append((*json.loads(line.removeprefix("TOLD ")), said))
            said = ""
        else:
            said += line
    assert len(found) == len(commands), done.stderr
    return found


def test_help_imports_nothing_that_takes_long() -> None:
    ((_, code, heavy, _),) = run_in_turn(["--help"])
    assert code == 0
    assert heavy == []


def test_help_of_a_command_and_wrong_usage_import_no_numbers() -> None:
    for arguments, code, heavy, said in run_in_turn(["train", "--help"], ["frobnicate"], ["--version"], ["eval"]):
        assert code in (0, 2), said
        assert set(heavy) <= {"pydantic"}, arguments  # typer reads options by it


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_toy_shards("clevr", tmp_path_factory.mktemp("toy"), small=True).shards)


def test_mistakes_are_said_before_torch_is_imported(tmp_path: Path, shards: str) -> None:
    nowhere, image, text = str(tmp_path / "nowhere"), tmp_path / "a.jpg", tmp_path / "notes.txt"
    image.write_bytes(b"")
    text.write_text("no checkpoint")
    commands = [
        ["train", "--shards", nowhere],
        ["train", "--shards", shards, "--preset", "nowhere"],
        ["train", "--shards", shards, "--config", f"{nowhere}.toml"],
        ["train", "--shards", shards, "--set", "train.nowhere=1"],
        ["train", "--shards", shards, "--preset", "clevr", "--set", "train.epochs=nowhere"],
        ["train", "--shards", shards, "--preset", "clevr", "--config", f"{nowhere}.toml"],
        ["train", "--shards", shards, "--resume"],
        ["lr-find", "--shards", shards, "--preset", "nowhere"],
        ["eval", "--shards", nowhere, "--checkpoint", nowhere],
        ["eval", "--shards", shards, "--checkpoint", nowhere],
        ["eval", "--shards", shards, "--checkpoint", str(text)],
        ["predict", "--checkpoint", nowhere, nowhere, "--out", str(tmp_path / "out")],
        ["predict", "--checkpoint", nowhere, str(image), "--out", str(tmp_path / "out")],
        ["export", "--checkpoint", nowhere, "--out", "a.onnx"],
        ["report", nowhere],
        ["compare", nowhere, f"{nowhere}2"],
        ["inspect", nowhere],
        ["bench", "model", "--shards", nowhere],
        ["bench", "--shards", shards, "--compare", nowhere],
        ["shard", "--src", nowhere, "--out", str(tmp_path / "out")],
    ]
    for arguments, code, heavy, said in run_in_turn(*commands):
        assert code == 2, (arguments, said)
        assert said.startswith("error: "), arguments
        assert ("nowhere" in said) or (arguments[-1] == "--resume") or (str(text) in said), arguments
        assert "torch" not in heavy, arguments


def test_looking_into_shards_needs_no_torch(shards: str) -> None:
    for arguments, code, heavy, said in run_in_turn(["inspect", shards, "--verify"]):
        assert code == 0, said
        assert "torch" not in heavy, arguments
