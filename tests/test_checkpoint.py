"""The checkpoint: what is written is read back, nothing half is ever read, and a run continues only as itself."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from unetfast import checkpoint as module
from unetfast.checkpoint import (
    Checkpoint,
    build_network,
    check_labels,
    check_resume,
    load_checkpoint,
    save_checkpoint,
)
from unetfast.config import Config, ModelConfig, build_config
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL: dict[str, Any] = {"base_channels": 4, "depth": 2}


def make_labels(*names: str) -> LabelTable:
    return LabelTable(
        classes=tuple(ClassInfo(name=name, color=(place % 256, 0, 0), value=place) for place, name in enumerate(names))
    )


def make_checkpoint(**changes: Any) -> Checkpoint:
    config = build_config({"model": SMALL, "augment": {"hflip": {"prob": 0.5}}})
    model = build_network(config.model, num_classes=2, mean=MEAN, std=STD)
    parts: dict[str, Any] = {
        "step": 7,
        "epoch": 1,
        "config": config,
        "labels": make_labels("background", "car"),
        "dataset": "carvana",
        "manifest_digest": "0123456789abcdef",
        "mean": MEAN,
        "std": STD,
        "weights": model.state_dict(),
        "loader": {"position": 12},
        "rng": [{"torch": torch.get_rng_state()}],
        "metrics": {"mean_iou": 0.5, "mean_dice": None},
    }
    return Checkpoint(**(parts | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_checkpoint())
    return path


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    written = make_checkpoint()
    save_checkpoint(tmp_path / "last.pt", written)
    found = load_checkpoint(tmp_path / "last.pt")
    assert found.config == written.config
    assert found.labels == written.labels
    assert (found.mean, found.std, found.step, found.epoch) == (MEAN, STD, 7, 1)
    assert (found.loader, found.metrics) == (written.loader, written.metrics)
    assert torch.equal(found.rng[0]["torch"], written.rng[0]["torch"])
    assert found.weights.keys() == written.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in written.weights.items())
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_builds_the_model_that_was_saved() -> None:
    checkpoint = make_checkpoint()
    model = checkpoint.build_model()
    assert not model.training
    assert all(torch.equal(tensor, checkpoint.weights[name]) for name, tensor in model.state_dict().items())


def test_model_choices_that_do_not_fit_are_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such model")

    monkeypatch.setattr(module, "UNet", refuse)
    with pytest.raises(UserError, match=r"\[model\]: no such model"):
        build_network(ModelConfig(), num_classes=2, mean=MEAN, std=STD)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_file_cut_short_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"last\.pt: .*cut short"):
        load_checkpoint(saved)


def test_run_folder_in_place_of_its_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder, not a checkpoint; give .*best\.pt"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("content", "said"), [(b"", "the file is empty"), (b"GIF89a", "it begins with b'GIF8'")])
def test_other_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "best.pt")


def test_flipped_bit_in_a_weight_is_refused(saved: Path) -> None:
    weight = max(load_checkpoint(saved).weights.values(), key=torch.Tensor.numel)
    content = bytearray(saved.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(saved)


def test_plain_weights_are_not_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a checkpoint of unetfast"):
        load_checkpoint(tmp_path / "other.pth")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("boom",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pt"
    torch.save({"weights": Bomb()}, path) if writer == "torch" else path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a checkpoint of unetfast"):
        load_checkpoint(path)
    assert not (tmp_path / "boom").exists()


def edit(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_newer_format_says_so(saved: Path) -> None:
    edit(saved, format_version=99)
    with pytest.raises(UserError, match="format 99, this unetfast reads 1; a newer unetfast wrote it"):
        load_checkpoint(saved)


def test_missing_part_is_damage(saved: Path) -> None:
    tree = torch.load(saved, weights_only=True)
    del tree["loader"]
    torch.save(tree, saved)
    with pytest.raises(UserError, match=r"damaged.*loader"):
        load_checkpoint(saved)


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(tmp_path / "gone" / "last.pt", make_checkpoint())


def change(config: Config, **sections: dict[str, Any]) -> Config:
    tree = config.model_dump(mode="json")
    for name, values in sections.items():
        tree[name] |= values
    return build_config(tree)


def test_resume_with_the_same_settings_says_nothing() -> None:
    checkpoint = make_checkpoint()
    assert check_resume(checkpoint, checkpoint.config, checkpoint.manifest_digest, path=Path("last.pt")) == []


def test_resume_lists_what_was_allowed_to_change() -> None:
    checkpoint = make_checkpoint()
    config = change(checkpoint.config, train={"epochs": 9, "device": "cpu"}, loader={"threads": 2}, log={"every_steps": 1})
    lines = check_resume(checkpoint, config, checkpoint.manifest_digest, path=Path("last.pt"))
    assert sorted(line.split(":")[0] for line in lines) == ["loader.threads", "log.every_steps", "train.device", "train.epochs"]


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("train", {"seed": 1}, "train.seed: 0 in the run, 1 now"),
        ("ema", {"decay": 0.9}, "ema.decay"),
        ("loader", {"batch_size": 8}, "loader.batch_size: 16 in the run, 8 now"),
        ("loader", {"size_hw": [64, 64]}, "loader.size_hw"),
        ("loader", {"sampler": "balanced"}, "loader.sampler"),
        ("order", {"shuffle": "block"}, "order.shuffle"),
        ("augment", {"hflip": {"prob": 0.0}}, "augment.hflip.prob: 0.5 in the run, 0.0 now"),
        ("model", {"depth": 3}, "model.depth"),
        ("loss", {"dice": 1.0}, "loss.dice"),
        ("optimizer", {"learning_rate": 0.1}, "optimizer.learning_rate"),
        ("schedule", {"name": "cosine"}, "schedule.name"),
        ("checkpoint", {"best_metric": "val_loss"}, "checkpoint.best_metric"),
    ],
)
def test_resume_refuses_other_settings_by_name(section: str, values: dict[str, Any], field: str) -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(UserError) as caught:
        check_resume(
            checkpoint, change(checkpoint.config, **{section: values}), checkpoint.manifest_digest, path=Path("runs/last.pt")
        )
    assert field in str(caught.value)
    assert str(caught.value).startswith("runs/last.pt: cannot resume")


def test_resume_lists_all_differences_at_once() -> None:
    checkpoint = make_checkpoint()
    config = change(checkpoint.config, train={"seed": 3}, optimizer={"name": "sgd"})
    with pytest.raises(UserError) as caught:
        check_resume(checkpoint, config, "f" * 16, path=Path("last.pt"))
    for part in ("other data", "train.seed: 0 in the run, 3 now", "optimizer.name: 'adam' in the run, 'sgd' now"):
        assert part in str(caught.value)


def test_same_class_table_passes_even_with_other_colours() -> None:
    checkpoint = make_checkpoint()
    other = LabelTable(
        classes=(
            ClassInfo(name="background", color=(9, 9, 9), value=7),
            ClassInfo(name="car", color=(8, 8, 8), value=255),
        )
    )
    check_labels(checkpoint, other, path=Path("best.pt"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("car", "background"), "class 0: 'background' in the checkpoint, 'car' in the shards"),
        (("background", "car", "sky"), "class 2: none in the checkpoint, 'sky' in the shards"),
        (("background",), "class 1: 'car' in the checkpoint, none in the shards"),
        (tuple(f"c{number}" for number in range(300)), "300 classes differ (2 and 300 in all)"),
    ],
)
def test_other_classes_are_refused_by_name(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_labels(make_checkpoint(), make_labels(*names), path=Path("best.pt"))
    assert said in str(caught.value)
