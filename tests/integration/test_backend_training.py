"""Training fed by either backend: it learns the same, and a run begun with one goes on with the other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import toy_run
from rich.console import Console
from toy_run import numbers_of, run_here
from toy_thresholds import best_threshold_dice

from unetfast.checkpoint import load_checkpoint
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.reader import open_shards
from unetfast.data.toy import write_toy
from unetfast.train.loop import TrainResult

pytestmark = [pytest.mark.dali, pytest.mark.slow]

BACKENDS = ("cpu", "dali")
MOST_DICE_APART = 0.005
NUM_STEPS = 200

# cross-entropy alone and a low rate: the loss has few jumps that could drive two nearly equal runs apart
LEARNING: dict[str, Any] = {
    "model": {"base_channels": 8, "depth": 3},
    "loader": {"size_hw": [64, 96], "batch_size": 8, "threads": 1},
    "augment": {
        "hflip": {"prob": 0.5},
        "rotation": {"prob": 0.3, "degrees": [-15.0, 15.0]},
        "resized_crop": {"prob": 0.5},
        **{name: {"prob": 0.5} for name in ("brightness", "contrast", "saturation", "hue")},
    },
    "train": {"epochs": 100, "max_steps": NUM_STEPS, "amp": "off", "device": "cpu", "seed": 2},
    "loss": {"cross_entropy": 1.0, "dice": 0.0},
    "optimizer": {"name": "adam", "learning_rate": 2e-3},
    "schedule": {"name": "cosine", "warmup_steps": 10, "min_factor": 0.0},
    "eval": {"every_epochs": 100},
    "log": {"every_steps": 50, "tensorboard": False, "num_panels": 1, "num_saved_images": 0, "panels_every_epochs": 1000},
}


@pytest.fixture(scope="module", autouse=True)
def needs_dali() -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source and shards of 15 toy cars, larger than the batches: 44 pictures to train on, 16 to validate on."""
    root = tmp_path_factory.mktemp("cars")
    write_toy(root / "src", "carvana", num_groups=15, seed=0, images_per_group=4, size_hw=(96, 144))
    pack(root / "src", root / "shards", options=PackOptions(val_fraction=0.27), workers=1)
    return root / "src", root / "shards"


@pytest.fixture(scope="module")
def learned(cars: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    """A run from each backend, and the samples of each step."""
    out = tmp_path_factory.mktemp("runs")
    results = {}
    for backend in BACKENDS:
        tree = LEARNING | {"loader": LEARNING["loader"] | {"backend": backend}}
        results[backend] = run_here(cars[1], out / backend, tree, ids=out / f"{backend}.ids")
    return results


def dice_of_cars(result: TrainResult) -> float:
    scores = {one["name"]: one["dice"] for one in result.last["classes"]}
    return float(scores["car"])


def test_both_backends_teach_the_same(learned: dict[str, TrainResult]) -> None:
    assert {backend: result.steps for backend, result in learned.items()} == dict.fromkeys(BACKENDS, NUM_STEPS)
    found = {backend: (result.last["mean_dice"], dice_of_cars(result)) for backend, result in learned.items()}
    assert abs(found["cpu"][0] - found["dali"][0]) <= MOST_DICE_APART, found
    assert abs(found["cpu"][1] - found["dali"][1]) <= MOST_DICE_APART, found


def test_both_saw_the_same_samples(learned: dict[str, TrainResult]) -> None:
    seen = [(result.out.parent / f"{backend}.ids").read_text() for backend, result in learned.items()]
    assert len(seen[0].splitlines()) == NUM_STEPS
    assert seen[0] == seen[1]


def test_what_was_learned_is_more_than_a_threshold_finds(cars: tuple[Path, Path], learned: dict[str, TrainResult]) -> None:
    """The scores above would also agree if neither had learned anything."""
    source, shards = cars
    with open_shards(shards).split("val") as reader:
        images = [source / reader.read_json(sample_id)["source_path"] for sample_id in range(reader.num_samples)]
    assert len(images) == 16
    trivial = best_threshold_dice(images, [source / "train_masks" / f"{image.stem}_mask.gif" for image in images])
    for backend, result in learned.items():
        assert dice_of_cars(result) > trivial + 0.05, (backend, trivial)
        assert dice_of_cars(result) > 0.9, backend


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make_shards(tmp_path_factory.mktemp("toy"))


def tree_of(backend: str, max_steps: int = 0) -> dict[str, Any]:
    return toy_run.make_tree(loader={"backend": backend}, train={"max_steps": max_steps})


@pytest.fixture(scope="module")
def straight(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 10 steps of the CPU backend."""
    folder = tmp_path_factory.mktemp("straight")
    result = run_here(small, folder / "run", tree_of("cpu"), ids=folder / "ids")
    assert (result.steps, result.epochs) == (10, 4)
    return folder


@pytest.mark.parametrize("cut", [1, 5])
@pytest.mark.parametrize(("first", "second"), [("cpu", "dali"), ("dali", "cpu")])
def test_a_run_goes_on_with_the_other_backend(
    small: Path, straight: Path, tmp_path: Path, first: str, second: str, cut: int
) -> None:
    run_here(small, tmp_path / "run", tree_of(first, cut), ids=tmp_path / "ids")
    at_cut = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (at_cut.step, at_cut.loader["position"]) == (cut, 4 * cut)
    out = io.StringIO()
    console = Console(file=out, width=300)
    result = run_here(small, tmp_path / "run", tree_of(second), resume=True, ids=tmp_path / "ids", console=console)
    assert (result.steps, result.epochs) == (10, 4)
    assert f"loader.backend: {first!r} in the run, {second!r} now" in out.getvalue()
    assert (tmp_path / "ids").read_text() == (straight / "ids").read_text()
    mine, theirs = (load_checkpoint(folder / "run" / "last.pt") for folder in (tmp_path, straight))
    assert mine.loader == theirs.loader
    kinds = [
        [(row["kind"], row["step"], row["epoch"]) for row in numbers_of(folder / "run")] for folder in (tmp_path, straight)
    ]
    assert kinds[0] == kinds[1]
