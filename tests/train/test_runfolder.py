"""Who may write into a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from unetfast.config import build_config, read_config_tree
from unetfast.errors import UserError
from unetfast.train.runfolder import RunFolder, check_run_folder, next_free_folder, save_picture


def test_new_run_takes_a_new_or_empty_folder(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "runs" / "new", resume=False).prepare()
    assert (tmp_path / "runs" / "new").is_dir()
    check_run_folder(tmp_path / "runs" / "new", resume=False)


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_new_run_leaves_a_used_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty; go on with it by --resume, or take another --out"):
        check_run_folder(tmp_path, resume=False)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match="holds a run already"):
        check_run_folder(tmp_path, resume=False)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run to resume"):
        check_run_folder(tmp_path / "gone", resume=True)
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match="not a run folder"):
        check_run_folder(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["last.pt", "config.toml", ".config.toml.tmp-77"])
def test_resume_takes_a_run_at_any_age(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    check_run_folder(tmp_path, resume=True)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="a file, not a folder"):
        check_run_folder(tmp_path / "run", resume=False)


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "saved_images").mkdir()
    for name in (".last.pt.tmp-123", "saved_images/.a.png.tmp-9", "last.pt", ".hidden", "notes.tmp-1"):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).prepare()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", "last.pt", "notes.tmp-1"]


def test_next_free_folder_counts_on(tmp_path: Path) -> None:
    assert next_free_folder(tmp_path / "runs", "carvana") == tmp_path / "runs" / "carvana-1"
    for name in ("carvana-1", "carvana-7", "clevr-9", "carvana-x"):
        (tmp_path / name).mkdir()
    assert next_free_folder(tmp_path, "carvana") == tmp_path / "carvana-8"


def test_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = build_config({"checkpoint": {"name": "Unet_checkpoint_epoch_{epoch}.pt"}})
    assert folder.kept(config, epoch=5, step=90).name == "Unet_checkpoint_epoch_5.pt"
    assert [folder.predictions(when).name for when in ("initial", 5, "final")] == [
        "predictions_initial.png",
        "predictions_epoch_5.png",
        "predictions_epoch_final.png",
    ]


def test_config_and_pictures_are_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = build_config({"train": {"epochs": 7}})
    folder.write_config(config)
    assert build_config(read_config_tree(folder.config)) == config
    save_picture(Image.new("RGB", (3, 2)), folder.history)
    with Image.open(folder.history) as picture:
        assert picture.size == (3, 2)
