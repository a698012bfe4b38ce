"""The README's commands are real: the five lines run as they stand, every file that it links exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from unetfast.cli import app
from unetfast.data.toy import write_toy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def indented_commands() -> list[str]:
    """List the `unetfast ...` lines of the README's indented blocks."""
    return [line.strip() for line in README.splitlines() if line.startswith("    unetfast ")]


@pytest.mark.slow
def test_the_five_lines_run_as_they_stand(tmp_path: Path) -> None:
    write_toy(tmp_path / "Data", "carvana", num_groups=5, seed=0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((tmp_path / "Data").rglob("*.jpg"))[:2]:
        (photos / path.name).write_bytes(path.read_bytes())
    commands = indented_commands()
    assert [shlex.split(line)[1] for line in commands] == ["shard", "train", "eval", "predict"]
    for line in commands:
        words = shlex.split(line)
        if words[1] == "train":
            words += ["--set", "train.max_steps=2"]
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len(list((tmp_path / "pred").glob("*_overlay.*"))) == 2


def test_every_flag_that_the_readme_names_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for code in re.findall(r"`(unetfast [a-z]+[^`]*)`", README) + indented_commands():
        words = code.replace("[", " ").replace("]", " ").split()
        if words[1] not in commands:
            assert words[1] == "COMMAND", f"the README names {code!r}"
            continue
        known = {name for parameter in commands[words[1]].params for name in parameter.opts}
        named = {word for word in words if word.startswith("--")}
        assert named <= known | {"--help"}, f"the README names {sorted(named - known)} of unetfast {words[1]}"


def test_every_link_of_the_readme_and_the_docs_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links {target}"
