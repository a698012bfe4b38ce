"""2N steps = N + resume + N, bit for bit: weights, optimizer, random states, sample ids and metrics."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest
import toy_run
from rich.console import Console
from toy_run import assert_same_state, make_tree, numbers_of, run_here, run_process

from unetfast.checkpoint import load_checkpoint
from unetfast.errors import UserError
from unetfast.train import epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run: 4 epochs of 10 samples in 10 steps of 4."""
    folder = tmp_path_factory.mktemp("straight")
    result = run_here(shards, folder / "run", make_tree(), ids=folder / "ids")
    assert (result.steps, result.epochs) == (10, 4)
    return folder


def test_the_run_meets_what_it_is_for(straight: Path) -> None:
    """Dropout, augmentation, accumulation and a lowered rate all took part; an epoch ended inside a batch."""
    checkpoint = load_checkpoint(straight / "run" / "last.pt")
    assert checkpoint.schedule["factor"] < 1
    assert [row["step"] for row in numbers_of(straight / "run") if row["kind"] == "val"] == [3, 5, 8, 10]


@pytest.mark.parametrize("cut", [1, 5])
def test_resume_in_a_new_process(shards: Path, straight: Path, tmp_path: Path, cut: int) -> None:
    run_here(shards, tmp_path / "run", make_tree(train={"max_steps": cut}), ids=tmp_path / "ids")
    assert run_process(shards, tmp_path / "run", make_tree(), "resume", ids=tmp_path / "ids") == 0
    assert_same_state(tmp_path / "run", straight / "run")
    assert (tmp_path / "ids").read_text() == (straight / "ids").read_text()


def test_three_resumes_in_a_row(shards: Path, straight: Path, tmp_path: Path) -> None:
    for place, cut in enumerate((1, 4, 7, 0)):
        tree = make_tree(train={"max_steps": cut}, loader={"threads": 1 + place % 2})
        run_here(shards, tmp_path / "run", tree, resume=place > 0, ids=tmp_path / "ids")
    assert_same_state(tmp_path / "run", straight / "run")
    assert (tmp_path / "ids").read_text() == (straight / "ids").read_text()


def test_signal_saves_and_the_resume_is_exact(shards: Path, straight: Path, tmp_path: Path) -> None:
    tree = make_tree(checkpoint={"every_steps": 0})
    assert run_process(shards, tmp_path / "run", tree, "signal=SIGTERM:4", ids=tmp_path / "ids") == 143
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 4
    run_here(shards, tmp_path / "run", make_tree(), resume=True, ids=tmp_path / "ids")
    assert_same_state(tmp_path / "run", straight / "run")
    assert (tmp_path / "ids").read_text() == (straight / "ids").read_text()


@pytest.mark.parametrize("step", [3, 10])
def test_signal_in_an_epochs_last_step(shards: Path, straight: Path, tmp_path: Path, step: int) -> None:
    """The epoch's end (validation, plateau, best) is left to the resume, and done once."""
    result = run_here(shards, tmp_path / "run", make_tree(), signal_at=(signal.SIGTERM, step))
    assert (result.stopped, result.exit_code, result.steps) == ("signal", 143, step)
    result = run_here(shards, tmp_path / "run", make_tree(), resume=True)
    assert (result.stopped, result.exit_code) == ("", 0)
    assert_same_state(tmp_path / "run", straight / "run")


def test_signal_inside_validation(shards: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = epoch.validate
    calls: list[int] = []

    def validate_and_be_stopped(run: Any, stop: Any, **options: Any) -> Any:
        calls.append(run.step)
        if len(calls) == 4:  # behind the second epoch, while the model has its averaged weights
            signal.raise_signal(signal.SIGTERM)
        return original(run, stop, **options)

    monkeypatch.setattr(epoch, "validate", validate_and_be_stopped)
    result = run_here(shards, tmp_path / "run", make_tree())
    assert (result.stopped, result.steps, result.epochs) == ("signal", 5, 1)
    run_here(shards, tmp_path / "run", make_tree(), resume=True)
    assert_same_state(tmp_path / "run", straight / "run")


def test_signal_says_what_to_do(shards: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    run_here(shards, tmp_path / "run", make_tree(), signal_at=(signal.SIGINT, 2), console=Console(file=out, width=300))
    assert f"stopped by SIGINT at step 2; saved {tmp_path / 'run' / 'last.pt'}. To go on" in out.getvalue()


def test_more_epochs_go_on_from_the_end(shards: Path, straight: Path, tmp_path: Path) -> None:
    run_here(shards, tmp_path / "run", make_tree(train={"epochs": 2}))
    out = io.StringIO()
    run_here(shards, tmp_path / "run", make_tree(), resume=True, console=Console(file=out, width=300))
    assert "train.epochs: 2 in the run, 4 now" in out.getvalue()
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 10
    one, other = (load_checkpoint(folder / "run" / "last.pt").weights for folder in (tmp_path, straight))
    toy_run.assert_equal_trees(one, other, "weights")


def test_a_stretched_cosine_says_that_the_rate_goes_up(shards: Path, tmp_path: Path) -> None:
    cosine = {"name": "cosine", "warmup_steps": 0}
    run_here(shards, tmp_path / "run", make_tree(train={"epochs": 2}, schedule=cosine))
    out = io.StringIO()
    run_here(shards, tmp_path / "run", make_tree(schedule=cosine), resume=True, console=Console(file=out, width=300))
    assert "note: cosine over 10 steps rather than 5: the learning rate goes on at" in out.getvalue()


def test_run_stopped_before_its_first_checkpoint_begins_anew(shards: Path, straight: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.tmp-99").write_text("half")
    out = io.StringIO()
    run_here(shards, tmp_path / "run", make_tree(), resume=True, console=Console(file=out, width=300))
    assert "stopped before its first checkpoint; starting at step 0" in out.getvalue()
    assert_same_state(tmp_path / "run", straight / "run")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"seed": 12}}, "train.seed: 11 in the run, 12 now"),
        ({"loader": {"batch_size": 2}}, "loader.batch_size: 4 in the run, 2 now"),
        ({"augment": {"hflip": {"prob": 0.1}}}, "augment.hflip.prob: 0.5 in the run, 0.1 now"),
    ],
)
def test_another_runs_settings_are_refused(shards: Path, straight: Path, sections: dict[str, Any], said: str) -> None:
    before = (straight / "run" / "config.toml").read_bytes()
    with pytest.raises(UserError) as caught:
        run_here(shards, straight / "run", make_tree(**sections), resume=True)
    assert said in str(caught.value)
    assert (straight / "run" / "config.toml").read_bytes() == before


def test_other_data_is_refused(straight: Path, tmp_path: Path) -> None:
    toy_run.write_toy(tmp_path / "src", "carvana", num_groups=3, seed=1, images_per_group=5, size_hw=(40, 60))
    toy_run.pack(tmp_path / "src", tmp_path / "shards", options=toy_run.PackOptions(val_fraction=0.34), workers=1)
    with pytest.raises(UserError, match="other data"):
        run_here(tmp_path / "shards", straight / "run", make_tree(), resume=True)
