"""Which backend is taken, and that it says why: on this machine, and on others played by the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dali_machines import Machine, play_machine

from unetfast.app import doctor
from unetfast.config import Config, build_config
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.loader.batch import Loader
from unetfast.loader.build import BackendChoice, build_loader, choose_backend
from unetfast.loader.dali_install import examine_dali

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with play_machine(tmp_path / "site", monkeypatch) as played:
        yield played


def config_for(backend: str, **dali: object) -> Config:
    return build_config({"loader": {"backend": backend, "size_hw": [24, 32], "batch_size": 4, "threads": 2}, "dali": dali})


def build(shards: Path, backend: str) -> Loader:
    return build_loader(open_shards(shards).split("train"), config_for(backend), training=True, device=CPU)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_cpu_backend_is_taken_where_it_is_asked_for(machine: Machine, device: torch.device) -> None:
    machine.install(12)
    assert choose_backend(config_for("cpu"), device) == BackendChoice("cpu", "asked for")


def test_auto_takes_no_dali_without_a_gpu(machine: Machine) -> None:
    machine.install(12)
    assert choose_backend(config_for("auto"), CPU) == BackendChoice("cpu", "no GPU is used")


@pytest.mark.parametrize("cuda", [12, 13])
def test_auto_takes_dali_with_a_gpu(machine: Machine, cuda: int) -> None:
    machine.install(cuda)
    assert choose_backend(config_for("auto"), GPU) == BackendChoice("dali", "a GPU is used, DALI is 2.4.0")


@pytest.mark.parametrize("remedy", ["pip install 'unetfast[dali]'", "pip install nvidia-nvjpeg-cu12"])
def test_auto_says_what_keeps_dali_from_a_gpu(machine: Machine, remedy: str) -> None:
    if "nvjpeg" in remedy:
        machine.install(12)
        machine.remove("nvidia/nvjpeg")
    choice = choose_backend(config_for("auto"), GPU)
    assert choice == BackendChoice("cpu", examine_dali("cuda").problem)
    assert remedy in choice.reason


@pytest.mark.parametrize("device", [CPU, GPU])
def test_dali_is_taken_where_it_is_asked_for(machine: Machine, device: torch.device) -> None:
    machine.install(12)
    machine.set_driver(13000 if device == GPU else None)
    assert choose_backend(config_for("dali"), device) == BackendChoice("dali", "asked for")


@pytest.mark.parametrize(("device", "remedy"), [(CPU, "pip install 'unetfast[dali]'"), (GPU, "525 line")])
def test_dali_that_cannot_be_had_is_refused(machine: Machine, device: torch.device, remedy: str) -> None:
    if device == GPU:
        machine.install(12)
        machine.set_driver(11040)
    with pytest.raises(UserError) as caught:
        choose_backend(config_for("dali"), device)
    assert str(caught.value).startswith('loader.backend = "dali": ')
    assert remedy in str(caught.value)
    assert str(caught.value).endswith("\n  or take --set loader.backend=cpu")


def test_nvcomp_is_wanted_for_inflation_on_a_gpu_alone(machine: Machine) -> None:
    machine.install(12)
    machine.remove("nvidia/libnvcomp")
    assert choose_backend(config_for("auto", inflate="host"), GPU).name == "dali"
    choice = choose_backend(config_for("auto", inflate="gpu"), GPU)
    assert (choice.name, "pip install nvidia-libnvcomp-cu12" in choice.reason) == ("cpu", True)
    with pytest.raises(UserError, match="nvCOMP"):
        choose_backend(config_for("dali", inflate="gpu"), GPU)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_the_loader_is_of_the_backend_that_was_chosen(shards: Path, backend: str) -> None:
    with build(shards, backend) as loader:
        assert loader.backend == choose_backend(config_for(backend), CPU).name == "cpu"


@pytest.mark.dali
def test_the_dali_loader_is_built_where_it_is_asked_for(shards: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    with build(shards, "dali") as loader:
        assert loader.backend == "dali"


def test_dali_that_is_not_there_stops_the_loader(machine: Machine, shards: Path) -> None:
    with pytest.raises(UserError, match=r"--set loader\.backend=cpu"):
        build(shards, "dali")


def test_dali_that_does_not_load_is_said(machine: Machine, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(12)  # its __init__.py raises
    for name in ("unetfast.loader.dali_loader", "unetfast.loader.dali"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=r"DALI is installed, but cannot be imported \(ImportError: DALI itself\)") as caught:
        build(shards, "dali")
    assert "--set loader.backend=cpu" in str(caught.value)


# what is on the machine -> whether doctor calls it a problem
MACHINES = {"nothing": False, "whole": True, "no nvJPEG": False, "old driver": False, "too old": False}


def set_up(machine: Machine, name: str) -> None:
    if name != "nothing":
        machine.install(12, "2.0.0" if name == "too old" else "2.4.0")
    if name == "no nvJPEG":
        machine.remove("nvidia/nvjpeg")
    if name == "old driver":
        machine.set_driver(11040)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("name", MACHINES)
def test_the_doctor_agrees(machine: Machine, name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(machine, name)
    monkeypatch.setattr("unetfast.device.resolve_device", lambda name: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    report = doctor.examine(lambda name, module: doctor.PackageState(name, "1.0"))
    assert BackendChoice(report.backend, report.backend_reason) == choose_backend(Config(), device)
    assert report.dali == examine_dali(device.type)
    # the played DALI is whole, but raises when it is imported: that stops a run on a GPU alone
    stops = MACHINES[name] and device == GPU
    assert [line for line in report.problems if "DALI" in line] == (
        ["DALI 2.4.0 does not load (ImportError: DALI itself): install it anew, or take --set loader.backend=cpu"]
        if stops
        else []
    )
    text = "\n".join(doctor.format_report(report))
    if report.dali.problem:
        assert text.count(report.dali.problem) == 1
