"""The config: strict, helpful about mistakes, and the same after a trip through TOML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from unetfast.config import (
    Config,
    apply_overrides,
    build_config,
    config_to_toml,
    known_keys,
    preset_names,
    read_config_tree,
    read_preset_tree,
)
from unetfast.errors import UserError

DOCS = Path(__file__).parents[1] / "docs" / "config.md"


def default_of(key: str) -> Any:
    node: Any = Config().model_dump(mode="json")
    for part in key.split("."):
        node = node[part]
    return node


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_an_empty_tree_gives_the_defaults() -> None:
    assert build_config({}) == Config()


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("batch_size", "loader.batch_size"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("optimiser.name", "optimizer"),
        ("optimiser", "optimizer"),
        ("augment.hflip.p", "augment.hflip.prob"),
        ("num_workers", "loader.threads"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(key: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)here\.toml.*unknown key; did you mean {re.escape(suggestion)}"):
        build_config(nested(key, 1), where="here.toml")


def test_an_unknown_key_like_no_other_lists_those_of_its_section() -> None:
    with pytest.raises(UserError, match=r"eval\.zzz: unknown key; \[eval\] has every_epochs, size, batch_size"):
        build_config({"eval": {"zzz": 1}})
    with pytest.raises(UserError, match=r"docs/config\.md"):
        build_config({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loader.batch_size", "8", "valid integer"),
        ("loader.batch_size", True, "valid integer"),
        ("loader.batch_size", 8.0, "valid integer"),
        ("loader.batch_size", 0, "greater than 0"),
        ("loader.size_hw", [160.0, 240], "valid integer"),
        ("loader.size_hw", [0, 240], "greater than 0"),
        ("loader.size_hw", [1, 2, 3], "at most 2"),
        ("loader.size_hw", "160x240", "must be a list of 2 numbers, as its default [256, 256]"),
        ("loader.backend", "gpu", "'auto', 'dali' or 'cpu'"),
        ("loader.prefetch_batches", 65, "less than or equal to 64"),
        ("loader.checksum", 1, "valid boolean"),
        ("augment.hflip.prob", 1.5, "less than or equal to 1"),
        ("augment.hflip.prob", -0.1, "greater than or equal to 0"),
        ("augment.rotation.degrees", [30, -30], "first number must not exceed"),
        ("augment.rotation.degrees", ["-30", 30], "valid number"),
        ("augment.rotation.degrees", [float("nan"), 30], "finite"),
        ("augment.resized_crop.area", [0.5, 1.5], "larger than its image"),
        ("augment.resized_crop.area", [0.0, 1.0], "must be above 0"),
        ("augment.scale.range", [0.0, 1.0], "must be above 0"),
        ("augment.crop.size_hw", [-1, 5], "both above 0"),
        ("augment.crop.size_hw", [0, 5], "both above 0"),
        ("model.depth", 9, "less than or equal to 8"),
        ("model.down", "avg", "must be 'maxpool', 'strided', 'none' or a list of"),
        ("model.down", ["maxpool", "strided"], "names 2 levels, model.depth is 4"),
        ("model.head_kernel", 2, "1 or 3"),
        ("model.dropout", 1.0, "less than 1"),
        ("loss.cross_entropy", 0, "every weight"),
        ("loss.class_weights", "median", "'none', 'auto' or a list of numbers"),
        ("loss.class_weights", [1.0, -1.0], "0 or more for each class"),
        ("loss.class_weights", [0.0, 0.0], "not all 0"),
        ("loss.class_weights", [], "0 or more for each class"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("optimizer.learning_rate", 0, "greater than 0"),
        ("optimizer.betas", [0.9, 1.0], "both from 0 to below 1"),
        ("schedule.plateau_factor", 1.0, "less than 1"),
        ("train.device", "tpu", "pattern"),
        ("train.seed", 2**63, "less than"),
        ("checkpoint.name", "{step", "only {epoch} and {step}"),
        ("checkpoint.name", "{loss}.pt", "only {epoch} and {step}"),
        ("checkpoint.name", "{}.pt", "only {epoch} and {step}"),
        ("checkpoint.name", "{epoch.x}.pt", "only {epoch} and {step}"),
        ("checkpoint.name", "{epoch[0]}.pt", "only {epoch} and {step}"),
        ("checkpoint.name", "a/b.pt", "plain file name"),
        ("checkpoint.name", "best.pt", "plain file name"),
        ("checkpoint.name", "metrics.jsonl", "plain file name"),
        ("checkpoint.name", "saved_images", "plain file name"),
        ("checkpoint.name", "predictions_epoch_{epoch}.png", "plain file name"),
        ("checkpoint.name", "", "plain file name"),
        ("loader", 3, "is a section"),
    ],
)
def test_wrong_values_are_refused_with_key_and_reason(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_config(nested(key, value))
    lines = str(caught.value).splitlines()
    assert message in str(caught.value)
    assert len(lines) == 2, "one line for each mistake"
    assert key in lines[1] or message == "every weight"


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        build_config({"optimizer": {"lr": 1}, "train": {"epochs": 0}})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"augment": {"crop": {"prob": 1.0}, "resized_crop": {"prob": 1.0}}}, "exclude each other"),
        ({"loader": {"batch_size": 10}, "train": {"accumulation": 4}}, "not divisible"),
        ({"train": {"device": "cpu", "amp": "fp16"}}, "needs a GPU"),
        ({"train": {"device": "cpu", "compile": "graphs"}}, "CUDA graphs and needs a GPU"),
        ({"train": {"device": "cuda", "compile": "graphs", "accumulation": 2}}, r"train\.accumulation = 2: take"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augment.contrast.range", [0, 2]),
        ("model.down", ["maxpool", "strided", "none", "maxpool"]),
        ("loss.class_weights", [0.0, 1.0, 2.5]),
        ("optimizer.learning_rate", 1),  # an integer is a number
        ("train.device", "cuda:3"),
        ("checkpoint.name", "Unet_checkpoint_epoch_{epoch}.pt"),
        ("checkpoint.name", "my_checkpoint.pth.tar"),
        ("checkpoint.name", "{epoch:04d}_{step}.pt"),
        ("augment.crop.size_hw", [0, 0]),
        ("train.seed", 2**63 - 1),
    ],
)
def test_good_values_survive_a_trip_through_toml(key: str, value: Any, tmp_path: Path) -> None:
    config = build_config(nested(key, value))
    assert config != Config() or value == default_of(key)
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert build_config(read_config_tree(path)) == config


@given(
    learning_rate=st.floats(1e-12, 1e3),
    size_hw=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    weights=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=5),
    name=st.text(st.characters(exclude_characters="/\\{}\0", exclude_categories=("Cs",)), min_size=1).map(
        lambda text: f"c{text}"
    ),
)
def test_any_valid_config_survives_a_trip_through_toml(
    learning_rate: float, size_hw: tuple[int, int], weights: list[float], name: str
) -> None:
    tree = {
        "loader": {"size_hw": list(size_hw)},
        "optimizer": {"learning_rate": learning_rate},
        "loss": {"class_weights": weights},
        "checkpoint": {"name": name if name != "config.toml" else "c"},
    }
    config = build_config(tree)
    import tomllib

    assert build_config(tomllib.loads(config_to_toml(config))) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=7", "train.epochs", 7),
        ("optimizer.name=sgd", "optimizer.name", "sgd"),
        ('optimizer.name="sgd"', "optimizer.name", "sgd"),
        (" optimizer.learning_rate = 1e-3 ", "optimizer.learning_rate", 1e-3),
        ("loader.size_hw=[64, 96]", "loader.size_hw", [64, 96]),
        ("augment.rotation.degrees=[-5.0,5.0]", "augment.rotation.degrees", [-5.0, 5.0]),
        ("log.tensorboard=false", "log.tensorboard", False),
        ("train.device=cuda:1", "train.device", "cuda:1"),
        ("checkpoint.name=a=b.pt", "checkpoint.name", "a=b.pt"),
        ("train.init_checkpoint=", "train.init_checkpoint", ""),
        ("checkpoint.name=1\nx=2", "checkpoint.name", "1\nx=2"),
    ],
)
def test_overrides_are_toml_or_text(override: str, key: str, value: Any) -> None:
    assert apply_overrides({}, [override]) == nested(key, value)


def test_overrides_win_and_leave_the_tree_as_it_was() -> None:
    tree = {"train": {"epochs": 3, "seed": 1}}
    assert apply_overrides(tree, ["train.epochs=5", "train.epochs=9"]) == {"train": {"epochs": 9, "seed": 1}}
    assert tree == {"train": {"epochs": 3, "seed": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write key=value"),
        ("=3", "write key=value"),
        ("train.epoch=3", r"did you mean train\.epochs"),
        ("lr=3", r"did you mean optimizer\.learning_rate"),
        ("train=3", "unknown key train"),
    ],
)
def test_bad_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_overrides({}, [override])


def test_an_override_below_something_that_is_no_section_is_refused() -> None:
    with pytest.raises(UserError, match="not a section"):
        apply_overrides({"train": 3}, ["train.epochs=3"])


@pytest.mark.parametrize(
    ("text", "message"), [("a = = 1", "not a TOML file"), (b"\xff\xfe", "not a TOML file"), (None, "cannot read")]
)
def test_unreadable_files_are_refused_by_name(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"mine\.toml.*{message}"):
        read_config_tree(path)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no preset 'nope'; there are: .*carvana, carvana-cpu"):
        read_preset_tree("nope")
    assert {"carvana", "clevr", "ade20k", "folder"} <= set(preset_names())


def test_the_documentation_lists_every_key_with_its_default() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9_.]+)` \| `(.+?)` \| (.+?) \| (.+?) \|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert [key for key, *_ in rows] == known_keys()
    for key, default, _, _ in rows:
        assert read_toml_value(default) == default_of(key), key


def read_toml_value(text: str) -> Any:
    return apply_overrides({}, [f"train.init_checkpoint={text}"])["train"]["init_checkpoint"]


def test_the_default_config_is_written_section_by_section() -> None:
    assert tomli_w.dumps(Config().model_dump(mode="json")) == config_to_toml(Config())
    assert "[augment.resized_crop]" in config_to_toml(Config())
