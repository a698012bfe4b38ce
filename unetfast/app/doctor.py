"""What is installed, which devices there are, which loader backend is used and why, what is missing: `unetfast doctor`."""

from __future__ import annotations

import json as json_module
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from unetfast.loader.dali_install import DaliState, examine_dali

if TYPE_CHECKING:
    from rich.console import Console

# distribution -> module that proves it works
CORE_PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "simplejpeg": "simplejpeg",
    "lz4": "lz4.frame",
    "xxhash": "xxhash",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "tomli-w": "tomli_w",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
}
_FOR_PICTURES = ("matplotlib", "tensorboard")  # without these the devices can still be looked at
EXPORT_PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime", "safetensors": "safetensors"}
OTHER_PACKAGES = {"torchvision": "torchvision", "numba": "numba"}


@dataclass(frozen=True, slots=True)
class PackageState:
    """One package: its version ("" where it is not installed), and why it does not work ("" where it does)."""

    name: str
    version: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU; memory in GiB."""

    index: int
    name: str
    memory_gib: float
    driver: str
    capability: str


@dataclass(slots=True)
class DoctorReport:
    """What was found; `ok` is false where training cannot work.

    Args:
        python: version.
        system: operating system and machine.
        packages: core packages.
        extras: packages of the extras, and torchvision.
        dali: what is installed of DALI, and what is wrong with it for the device that training would use.
        cuda_build: CUDA version that torch was built with; "" for a CPU build.
        gpus: GPUs that torch sees.
        num_cores: cores that this process may use.
        memory_gib: of the machine; None where it cannot be told.
        amp: number format that training would use, and why.
        backend: loader backend that would be used.
        backend_reason: why.
        problems: what stops training, each with its remedy.
        hints: what could be had on top.
    """

    python: str
    system: str
    packages: list[PackageState] = field(default_factory=list)
    extras: list[PackageState] = field(default_factory=list)
    dali: DaliState = field(default_factory=lambda: DaliState((), "", ""))
    cuda_build: str = ""
    gpus: list[GpuState] = field(default_factory=list)
    num_cores: int = 1
    memory_gib: float | None = None
    amp: str = ""
    backend: str = ""
    backend_reason: str = ""
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def run_doctor(*, console: Console | None = None, json: bool = False) -> DoctorReport:
    """Examine the installation and print what was found.

    Args:
        console: where to print; None takes stdout.
        json: print one JSON object instead of lines.

    Returns:
        The report; the command exits with 1 where it is not `ok`.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    report = examine()
    text = json_module.dumps({"ok": report.ok, **asdict(report)}, indent=1) if json else "\n".join(format_report(report))
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return report


def examine(find_package: Callable[[str, str], PackageState] | None = None) -> DoctorReport:
    """Find out everything; `find_package` (distribution, module) is a parameter for tests."""
    find_package = find_package or look_up_package
    report = DoctorReport(platform.python_version(), f"{platform.system()} {platform.machine()}")
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        report.problems.append(f"Python {report.python}: unetfast needs 3.11 to 3.13")
    report.packages = [find_package(name, module) for name, module in CORE_PACKAGES.items()]
    report.extras = [find_package(name, module) for name, module in (OTHER_PACKAGES | EXPORT_PACKAGES).items()]
    report.memory_gib = read_memory_gib()
    report.num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for state in report.packages:
        if not state.version:
            report.problems.append(f"{state.name} is not installed. To get it: pip install unetfast")
        elif state.error:
            report.problems.append(
                f"{state.name} {state.version} does not work ({state.error}). pip install --force-reinstall {state.name}"
            )
    if all(state.version and not state.error for state in report.packages if state.name not in _FOR_PICTURES):
        _examine_devices(report)
    else:
        report.dali = examine_dali("cpu")
    _add_hints(report)
    return report


def look_up_package(name: str, module: str) -> PackageState:
    """Find a package's version and import it; its own errors are reported, never raised."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return PackageState(name, "")
    return PackageState(name, found, find_import_error(module))


def find_import_error(module: str) -> str:
    """Import a module; return its error in one line, "" where there is none."""
    try:
        import_module(module)
    except Exception as error:  # a broken library may raise anything while it is loaded
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _examine_devices(report: DoctorReport) -> None:
    import torch

    from unetfast.config import Config
    from unetfast.device import resolve_amp, resolve_device
    from unetfast.loader.build import choose_backend

    report.cuda_build = torch.version.cuda or ""
    driver = read_driver_version() if torch.cuda.is_available() else ""
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        report.gpus.append(GpuState(index, found.name, found.total_memory / 2**30, driver, f"{found.major}.{found.minor}"))
    device = resolve_device("auto")
    policy = resolve_amp("auto", device)
    report.amp = f"{policy.name}: {policy.reason}"
    report.dali = examine_dali(device.type)
    choice = choose_backend(Config(), device)
    report.backend, report.backend_reason = choice.name, choice.reason
    if not report.gpus and report.cuda_build and shutil.which("nvidia-smi"):
        report.problems.append(
            f"nvidia-smi is here, but torch (CUDA {report.cuda_build}) sees no GPU: the driver may be too old for it, or "
            "CUDA_VISIBLE_DEVICES hides it"
        )


def _add_hints(report: DoctorReport) -> None:
    if report.dali.problem and report.dali.problem != report.backend_reason:
        report.hints.append(f"DALI loader: {report.dali.problem}")
    elif report.dali.version and not report.dali.problem and (error := find_import_error("nvidia.dali")):
        lines = report.problems if report.backend == "dali" else report.hints
        lines.append(f"DALI {report.dali.version} does not load ({error}): install it anew, or take --set loader.backend=cpu")
    numba = next(state for state in report.extras if state.name == "numba")
    if numba.error or not numba.version:
        state = f"{numba.version} does not work ({numba.error})" if numba.error else "not installed"
        report.hints.append(
            f"numba {state}: the CPU loader has no compiled steps, and takes longer. To get it: pip install 'unetfast[numba]'"
        )
    missing = [state.name for state in report.extras if not state.version and state.name in EXPORT_PACKAGES]
    if missing:
        report.hints.append(f"{', '.join(missing)} not installed. To export to ONNX: pip install 'unetfast[export]'")


def read_memory_gib() -> float | None:
    """Tell the machine's memory in GiB, or the container's limit where that is less; None where neither can be told."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            sizes.append(int(text))
    return min(sizes) / 2**30 if sizes else None


def read_driver_version() -> str:
    """Ask nvidia-smi for the driver's version; "" where it cannot be asked."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else ""


def format_report(report: DoctorReport) -> list[str]:
    """Lay the report out in lines, for people."""
    versions = {state.name: state for state in [*report.packages, *report.extras]}
    torch_build = f" (CUDA {report.cuda_build})" if report.cuda_build else " (CPU build)" if report.amp else ""
    dali = "   ".join(f"{name} {version}" for name, version in report.dali.packages)
    dali = dali or (f"DALI {report.dali.version}" if report.dali.version else "DALI not installed")
    lines = [
        f"python {report.python}   {_show(versions['torch'])}{torch_build}   {_show(versions['torchvision'])}   {dali}",
        "   ".join(_show(state) for name, state in versions.items() if name not in ("torch", "torchvision")),
        f"{report.system}, {report.num_cores} cores usable, {_show_memory(report.memory_gib)}",
    ]
    lines += [
        f"GPU {gpu.index}  {gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver or 'unknown'}, compute {gpu.capability}"
        for gpu in report.gpus
    ] or ["no GPU: training runs on the CPU" if report.amp else "devices: not looked at, for the problems below"]
    if report.amp:
        lines.append(f"number format: {report.amp}")
    if report.backend:
        lines.append(f"loader backend: {report.backend}, because {report.backend_reason}")
    lines += report.hints
    lines += [f"problem: {problem}" for problem in report.problems] or ["all that training needs is here"]
    return lines


def _show(state: PackageState) -> str:
    return (
        f"{state.name} {state.version}" + (" (broken)" if state.error else "")
        if state.version
        else f"{state.name} not installed"
    )


def _show_memory(memory_gib: float | None) -> str:
    return "memory unknown" if memory_gib is None else f"{memory_gib:.1f} GiB memory"
