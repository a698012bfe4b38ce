"""The doctor: what is here, what is missing and how to get it; on this machine, and on others played by the test."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from unetfast.app import doctor
from unetfast.app.doctor import PackageState, examine, format_report, look_up_package, read_memory_gib, run_doctor
from unetfast.loader.dali_install import DaliState


def run(*, as_json: bool = False) -> tuple[doctor.DoctorReport, str]:
    stream = io.StringIO()
    report = run_doctor(console=Console(file=stream, width=80), json=as_json)
    return report, stream.getvalue()


def find_all(name: str, module: str) -> PackageState:
    return PackageState(name, "1.0")


def find_all_but(*missing: str, broken: str = "") -> doctor.Callable[[str, str], PackageState]:
    def find(name: str, module: str) -> PackageState:
        if name in missing:
            return PackageState(name, "")
        return PackageState(name, "1.0", "OSError: no libGL" if name == broken else "")

    return find


def test_this_machine_can_train() -> None:
    report, text = run()
    assert report.ok
    assert not report.problems
    assert torch.__version__.split("+")[0] in text
    assert f"loader backend: {report.backend}, because {report.backend_reason}" in text
    for package in ("simplejpeg", "opencv-python-headless", "lz4", "torchvision"):
        assert package in text
    assert report.num_cores >= 1
    assert text.rstrip().endswith("all that training needs is here")


def test_json_is_one_object_with_all_findings() -> None:
    report, text = run(as_json=True)
    tree = json.loads(text)
    assert tree["ok"] is True
    assert tree["backend"] == report.backend
    assert {state["name"] for state in tree["packages"]} == set(doctor.CORE_PACKAGES)


def test_the_core_packages_are_those_that_the_project_depends_on() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [entry.split(">=")[0] for entry in project["dependencies"]] == list(doctor.CORE_PACKAGES)
    assert [entry.split(">=")[0] for entry in project["optional-dependencies"]["export"]] == list(doctor.EXPORT_PACKAGES)


@pytest.mark.parametrize("missing", ["simplejpeg", "torch"])
def test_a_missing_core_package_is_a_problem_with_its_remedy(missing: str) -> None:
    report = examine(find_all_but(missing))
    assert not report.ok
    assert report.problems == [f"{missing} is not installed. To get it: pip install unetfast"]
    assert f"{missing} not installed" in "\n".join(format_report(report))


def test_a_package_that_does_not_load_is_a_problem() -> None:
    report = examine(find_all_but(broken="opencv-python-headless"))
    assert "opencv-python-headless 1.0 does not work (OSError: no libGL)" in report.problems[0]
    assert "opencv-python-headless 1.0 (broken)" in "\n".join(format_report(report))


def test_missing_extras_are_hints_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine_dali", lambda device_type: DaliState((), "", "DALI is not installed: pip install it"))
    report = examine(find_all_but("onnx"))
    assert report.ok
    assert "DALI loader: DALI is not installed: pip install it" in report.hints
    assert any("unetfast[export]" in hint for hint in report.hints)
    assert "DALI not installed" in format_report(report)[0]


@pytest.mark.parametrize(
    ("find", "said"),
    [
        (
            find_all_but("numba"),
            "numba not installed: the CPU loader has no compiled steps, and takes longer. To get it: pip install",
        ),
        (
            find_all_but(broken="numba"),
            "numba 1.0 does not work (OSError: no libGL): the CPU loader has no compiled steps, and takes longer",
        ),
    ],
)
def test_what_the_loader_does_without_is_a_hint(find: doctor.Callable[[str, str], PackageState], said: str) -> None:
    report = examine(find)
    assert report.ok
    assert said in "\n".join(format_report(report))
    assert not any("numba" in hint for hint in examine(find_all).hints)


def test_what_is_installed_of_dali_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = (("nvidia-dali-cuda120", "2.4.0"), ("nvidia-dali-cuda130", "2.4.0"))
    monkeypatch.setattr(doctor, "examine_dali", lambda device_type: DaliState(packages, "2.4.0", "both overwrite each other"))
    report = examine(find_all)
    assert report.ok
    lines = format_report(report)
    assert lines[0].endswith("   nvidia-dali-cuda120 2.4.0   nvidia-dali-cuda130 2.4.0")
    assert "DALI loader: both overwrite each other" in lines
    monkeypatch.setattr(doctor, "examine_dali", lambda device_type: DaliState((), "2.5.0", ""))
    monkeypatch.setattr(doctor, "find_import_error", lambda module: "")
    assert format_report(examine(find_all))[0].endswith("   DALI 2.5.0")


def test_dali_is_examined_where_torch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine_dali", lambda device_type: DaliState((), "", f"examined for {device_type}"))
    assert "DALI loader: examined for cpu" in examine(find_all_but("torch")).hints


def test_dali_that_does_not_load_is_a_hint_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine_dali", lambda device_type: DaliState((), "2.4.0", ""))
    monkeypatch.setattr(doctor, "find_import_error", lambda module: f"ImportError: {module}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = examine(find_all)
    assert not [problem for problem in report.problems if "DALI" in problem]
    assert any(hint.startswith("DALI 2.4.0 does not load (ImportError: nvidia.dali)") for hint in report.hints)


def test_gpus_are_listed_with_memory_driver_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(doctor, "read_driver_version", lambda: "580.159")
    text = "\n".join(format_report(examine(find_all)))
    assert "GPU 0  NVIDIA H200, 139 GiB, driver 580.159, compute 9.0" in text
    assert "number format: bf16" in text


def test_a_driver_without_a_gpu_for_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "sees no GPU" in examine(find_all).problems[0]


def test_packages_are_looked_up_by_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_up_package("no-such-package-anywhere", "x").version == ""
    assert look_up_package("numpy", "numpy").error == ""
    assert "ModuleNotFoundError" in look_up_package("numpy", "no_such_module_anywhere").error


def test_memory_is_told_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_gib = read_memory_gib()
    assert memory_gib is None or 0.1 < memory_gib < 1e5
    monkeypatch.setattr(doctor.os, "sysconf_names", {})
    monkeypatch.setattr(doctor.Path, "read_text", lambda *_, **__: "max\n")
    assert read_memory_gib() is None


def test_the_driver_is_unknown_where_nvidia_smi_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert doctor.read_driver_version() == ""


@pytest.mark.parametrize(("package", "is_examined"), [("matplotlib", True), ("tensorboard", True), ("torch", False)])
def test_devices_are_looked_at_unless_what_that_takes_is_missing(package: str, is_examined: bool) -> None:
    report = examine(find_all_but(package))
    text = "\n".join(format_report(report))
    assert bool(report.amp) == bool(report.backend) == is_examined
    assert ("devices: not looked at" in text) != is_examined
    assert ("CPU build" in text) <= is_examined
    assert not report.ok
