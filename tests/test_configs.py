"""The shipped configs: each parses, and its header says what to run, on what, and what to expect."""

from __future__ import annotations

import re

import pytest

from unetfast.config import Config, build_config, config_to_toml, preset_folder, preset_names, read_preset_tree

HEADER = ("command", "hardware", "expected time", "expected metric")


@pytest.mark.parametrize("name", preset_names())
def test_each_config_parses(name: str) -> None:
    config = build_config(read_preset_tree(name), where=name)
    assert config_to_toml(config) != config_to_toml(Config())


@pytest.mark.parametrize("name", preset_names())
def test_each_config_has_its_header(name: str) -> None:
    lines = (preset_folder() / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("# ") for line in lines)
    for entry in HEADER:
        assert any(re.match(rf"# {entry}: +\S", line) for line in lines), entry
    command = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("# command:"))
    if name == "demo-carvana":
        assert command == "unetfast demo"
    elif name.startswith("demo-"):
        assert command == f"unetfast demo --dataset {name.removeprefix('demo-')}"
    else:
        assert command == f"unetfast train --shards shards/ --preset {name}"


def test_each_data_set_has_a_preset_for_gpu_and_cpu() -> None:
    expected = {f"{name}{suffix}" for name in ("carvana", "clevr", "ade20k", "folder") for suffix in ("", "-cpu")}
    expected |= {"demo-carvana", "demo-clevr", "demo-ade20k"}
    assert expected | {"r0", "r1", "r2", "r4"} == set(preset_names())


def test_presets_of_former_programs_keep_their_checkpoints_names() -> None:
    r0, r1 = (build_config(read_preset_tree(name)).checkpoint for name in ("r0", "r1"))
    assert (r0.every_epochs, r0.name) == (5, "Unet_checkpoint_epoch_{epoch}.pt")
    assert (r1.every_epochs, r1.name) == (1, "my_checkpoint.pth.tar")


def test_the_published_settings_stand() -> None:
    carvana = build_config(read_preset_tree("carvana"))
    assert (carvana.loader.size_hw, carvana.loader.batch_size, carvana.train.epochs) == ((160, 240), 16, 3)
    assert (carvana.optimizer.name, carvana.optimizer.learning_rate, carvana.model.up) == ("adam", 1e-4, "transposed")
    assert carvana.augment.hflip.prob > 0
    assert carvana.augment.rotation.prob > 0
    ade20k = build_config(read_preset_tree("ade20k"))
    assert (ade20k.loader.size_hw, ade20k.train.epochs, ade20k.model.up) == ((256, 256), 30, "bilinear")
    assert (ade20k.optimizer.name, ade20k.optimizer.learning_rate, ade20k.schedule.name) == ("adam", 1e-3, "plateau")
    assert build_config(read_preset_tree("clevr")).loader.size_hw == (160, 240)


def test_presets_hold_the_published_settings() -> None:
    for name in ("r0", "r1", "r2"):
        config = build_config(read_preset_tree(name))
        assert (config.loader.size_hw, config.loader.batch_size, config.optimizer.learning_rate) == ((160, 240), 16, 1e-4)
        assert (config.model.up, config.model.head_kernel, config.model.base_channels) == ("transposed", 1, 64)
    r1, r2, r4 = (build_config(read_preset_tree(name)) for name in ("r1", "r2", "r4"))
    assert r1.train.epochs == r2.train.epochs == 3
    assert min(r1.augment.rotation.prob, r1.augment.hflip.prob, r1.augment.vflip.prob) > 0
    assert min(r2.augment.scale.prob, r2.augment.hflip.prob) > 0
    assert (r4.model.conv_order, r4.model.head_kernel) == ("conv-act-norm", 3)
    assert min(r4.augment.hflip.prob, r4.augment.crop.prob) > 0
