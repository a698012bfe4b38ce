"""The whole job: the folders that both sides get, R1's program, and what is made of the times."""

from __future__ import annotations

import json
import time
from pathlib import Path

import loader_data
import peers
import pytest
import torch
import whole_job
from whole_job import Took, find_ahead, make_four_folders, sum_up

from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.detect import scan_source
from unetfast.errors import UserError


@pytest.fixture(scope="module")
def folders(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small toy cars in R1's four folders: 8 images to train, 4 to validate."""
    source = loader_data.draw_toy("carvana", toy_root, small=True)
    out = tmp_path_factory.mktemp("four") / "Data"
    assert make_four_folders(loader_data.list_pairs(source, "carvana"), out, num_train=8, num_val=3) == (8, 4)
    return out


def test_both_sides_get_the_same_pairs_and_no_car_twice(folders: Path) -> None:
    scan = scan_source(folders, "auto", SourceOptions())
    assert (scan.dataset, scan.layout, scan.problems) == ("carvana", "four folders", [])
    by_split = {split: [ref for ref in scan.samples if ref.split == split] for split in ("train", "val")}
    assert [len(refs) for refs in by_split.values()] == [8, 4]
    assert not {ref.group for ref in by_split["train"]} & {ref.group for ref in by_split["val"]}


def test_too_few_cars(folders: Path, tmp_path: Path) -> None:
    pairs = [pair for pair in loader_data.list_pairs(folders, "carvana") if pair.image.stem.startswith("x")]
    with pytest.raises(UserError, match="0 cars: too few to hold 3 images back"):
        make_four_folders(pairs, tmp_path, num_train=8, num_val=3)


@pytest.mark.skipif(not peers.FOLDER.is_dir(), reason="no .peers/: make peers")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # R1 leaves its files open
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_r1_trains_scores_and_saves_each_epoch(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peers import r1_job

    began = time.time()
    small = ["--epochs", "2", "--base-channels", "2", "--batch-size", "4", "--workers", "0", "--size", "32", "48"]
    torch.manual_seed(0)
    assert r1_job.main([str(folders), str(tmp_path), *small]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert began <= told["epoch_ends"][0] <= told["epoch_ends"][1] <= time.time()
    assert all(0 <= score <= 1 for scores in told["scores"] for score in scores.values())
    first, second = (torch.load(tmp_path / f"my_checkpoint_{epoch}.pth.tar", weights_only=True) for epoch in (1, 2))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert not torch.equal(first["state_dict"]["head.weight"], second["state_dict"]["head.weight"])
    assert {file.name for file in (tmp_path / "saved_images").iterdir()} == {"0.png", "pred_0.png"}


def took(*ends_s: float, pack_s: float = 0.0) -> Took:
    return Took(pack_s, list(ends_s), ends_s[-1] + 1, 2 * ends_s[-1], {"pixel_accuracy": 0.9, "dice": 0.8})


@pytest.mark.parametrize(
    ("ours_s", "theirs_s", "epoch"),
    [
        ([3.0, 4.0], [5.0, 9.0], 1),
        ([6.0, 7.0], [5.0, 9.0], 2),
        # 20 + 1 an epoch against 5 + 5 an epoch: the fifth ends at 24 and 25
        ([20.0, 21.0], [5.0, 10.0], 5),
        ([20.0, 25.0], [5.0, 10.0], None),
        ([6.0, 7.0, 8.0], [5.0, 9.0], 2),
    ],
)
def test_the_epoch_from_which_ours_is_ahead(ours_s: list[float], theirs_s: list[float], epoch: int | None) -> None:
    assert find_ahead(ours_s, theirs_s) == epoch


def test_figures_follow_from_rounds() -> None:
    rounds = {
        whole_job.R1: [took(10.0, 19.0), took(12.0, 21.0)],
        whole_job.AT_SIZE: [took(5.0, 6.5, pack_s=2.0), took(4.0, 6.0, pack_s=1.0)],
        whole_job.AS_THEY_ARE: [],
    }
    sides = sum_up(rounds, {whole_job.AS_THEY_ARE: "no end within 1 s"})
    ours = sides[whole_job.AT_SIZE]
    assert ours["pack_s"]["rounds"] == [2.0, 1.0]
    assert ours["epoch_s"]["rounds"] == [1.5, 2.0]
    assert ours["ratio_to_first_epoch"]["rounds"] == [2.0, 3.0]
    assert ours["ratio_total"]["rounds"] == pytest.approx([20 / 7.5, 22 / 7], rel=1e-3)
    assert ours["ahead_from_epoch"] == [1, 1]
    assert sides[whole_job.AS_THEY_ARE] == {"error": "no end within 1 s"}
    table = whole_job.format_sides(sides)
    assert "ours, originals packed: no end within 1 s" in table
    assert [line.split()[-1] for line in table.splitlines()[1:3]] == ["-", "1"]


def test_one_epoch_cannot_tell_a_later_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        whole_job.main(["--epochs", "1"])
    assert "--epochs must be at least 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not peers.FOLDER.is_dir(), reason="no .peers/: make peers")
def test_all_three_ways(toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    assert whole_job.main(["--quick", "--originals", "--data", str(toy_root), "--json", str(out)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert (record["benchmark"], record["rounds"], record["bars"]) == ("whole_job", 1, [])
    assert record["sides"].keys() == {whole_job.R1, whole_job.AS_THEY_ARE, whole_job.AT_SIZE}
    for name, side in record["sides"].items():
        assert 0 < side["first_epoch_s"]["min"] < side["total_s"]["min"]
        assert (side["pack_s"]["min"] > 0) == (name != whole_job.R1)
        assert side["core_s"]["min"] > 0
