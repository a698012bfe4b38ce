"""The command line: help, exit codes, one-line errors; what the commands do is tested where it is done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from unetfast import cli
from unetfast.cli.choices import parse_size
from unetfast.cli.program import WholeSentences
from unetfast.errors import UserError

COMMANDS = ("shard", "inspect", "train", "lr-find", "eval", "predict", "export", "report", "compare", "bench", "demo", "doctor")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unetfast", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"unetfast {command}" in capsys.readouterr().out.replace("\n", " ")


def test_the_list_of_commands_cuts_no_sentence_off(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "..." not in text.split("Commands:")[1]
    assert "a learning rate: a short training in which it grows; nothing of it is kept but a picture." in text


def test_help_names_what_options_take(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        texts[command] = capsys.readouterr().out
    assert "runs/DATASET-NUMBER" in texts["train"]
    assert "KEY=VALUE" in texts["train"]
    assert "VALUE=CLASS" in texts["shard"]
    assert "HEIGHTxWIDTH" in texts["shard"]
    for text in texts.values():
        options = "\n".join(line for line in text.splitlines() if "--" in line)
        assert not re.search(r"<(list|int|float|path|str)\b", options)
        assert "`" not in text  # nothing turns it into type of another face


def test_a_hidden_command_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    made = typer.Typer(cls=WholeSentences, rich_markup_mode=None)

    @made.command()
    def shown() -> None:
        """Is for all."""

    @made.command(hidden=True)
    def unseen() -> None:
        """Is for nobody."""

    with pytest.raises(SystemExit):
        made(["--help"])
    text = capsys.readouterr().out
    assert "Is for all." in text
    assert "unseen" not in text


def test_a_wrong_choice_is_told_without_words_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--toy", "lego"])
    assert capsys.readouterr().err.startswith("error: Invalid value for '--toy': 'lego' is not one of 'carvana'")


@pytest.mark.parametrize(
    ("arguments", "named", "hint"),
    [
        (["frobnicate"], "frobnicate", "unetfast --help"),
        (["--frobnicate"], "--frobnicate", "unetfast --help"),
        (["train", "--shards", "a", "--frobnicate"], "--frobnicate", "unetfast train --help"),
        (["eval"], "--shards", "unetfast eval --help"),
        (["shard", "--src", "a", "--workers", "many"], "--workers", "unetfast shard --help"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], named: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert f"`{hint}`" in captured.err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "predict" in captured.out + captured.err
    assert "error:" not in captured.err


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("unetfast ")


def test_user_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = run("shard", "--src", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("size", ["160", "160x", "x240", "0x240", "axb", "160x240x3", "²x3"])
def test_size_must_be_height_x_width(size: str) -> None:
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        parse_size(size)


def test_size_is_height_first() -> None:
    assert parse_size("160x240") == (160, 240)
    assert parse_size(None) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "NOWHERE"],
        ["train", "--shards", "NOWHERE"],
        ["eval", "--shards", "NOWHERE", "--checkpoint", "NOWHERE/best.pt"],
        ["predict", "--checkpoint", "NOWHERE/best.pt", "NOWHERE/a.jpg", "--out", "OUT"],
    ],
)
def test_missing_paths_are_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [word.replace("NOWHERE", str(tmp_path / "nowhere")).replace("OUT", str(tmp_path / "out")) for word in arguments]
    with pytest.raises(SystemExit) as stop:
        cli.main(paths)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ")
    assert "nowhere" in captured.err
    assert captured.out == ""
