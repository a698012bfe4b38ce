"""The public names: lazy, documented, and the same whatever was imported before."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import unetfast
from unetfast.data.toy import write_toy
from unetfast.errors import UserError
from unetfast.train.api import _to_toml

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, unetfast\nheavy = {'torch', 'cv2', 'numpy', 'PIL', 'rich'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", unetfast.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(unetfast, name)
    assert callable(thing)
    assert f"`{name}(" in PAGE
    told = inspect.getdoc(sys.modules["unetfast.train.api"].train if name == "train" else thing)
    assert told is not None
    assert "Args:" in told


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        _ = unetfast.frobnicate


def test_train_can_be_called_before_and_after_its_modules_are_imported(tmp_path: Path) -> None:
    for first in ("", "import unetfast.train.loop; ", "from unetfast import train; "):
        code = f"import unetfast; {first}from unetfast.errors import UserError\n"
        code += "try: unetfast.train('nowhere')\nexcept UserError: print('ok')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "true"), (3, "3"), (1e-3, "0.001"), ([64, 96], "[64, 96]"), ('a"b\\', '"a\\"b\\\\"'), ({"k": [1]}, '{"k" = [1]}')],
)
def test_settings_are_written_as_toml(value: object, expected: str) -> None:
    assert _to_toml(value) == expected


def test_the_whole_job_from_plain_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy(tmp_path / "Data", "carvana", num_groups=4, images_per_group=2, size_hw=(48, 64), seed=0)
    data, shards, out, pred = (str(tmp_path / name) for name in ("Data", "shards", "run", "pred"))
    unetfast.pack(data, shards)
    settings = {
        "loader.size_hw": [32, 48],
        "loader.batch_size": 2,
        "loader.threads": 1,
        "model.base_channels": 4,
        "model.depth": 2,
        "train.max_steps": 2,
        "train.device": "cpu",
        "log.tensorboard": False,
    }
    result = unetfast.train(shards, out, preset="carvana-cpu", settings=settings)
    assert result.steps == 2
    capsys.readouterr()
    scores = unetfast.evaluate(shards, f"{out}/best.pt", threads=1)
    assert scores.metrics.mean_iou is not None
    report = unetfast.predict(f"{out}/best.pt", f"{data}/train", pred)
    assert (report.num_done, report.failures) == (8, [])
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="did you mean"):
        unetfast.train(shards, f"{out}2", settings={"train.epoch": 3})
