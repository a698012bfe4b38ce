"""What is known of DALI without importing it: each thing that can be wrong, on machines that the tests play."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dali_machines import NVJPEG_FOLDER, Machine, play_machine

from unetfast.loader import dali_install
from unetfast.loader.dali_install import examine_dali, find_nvcomp_problem, read_driver_cuda

CUDAS = [12, 13]
UNINSTALL = "pip uninstall -y nvidia-dali-cuda120 nvidia-nvimgcodec-cu12 nvidia-libnvcomp-cu12"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with play_machine(tmp_path / "site", monkeypatch) as played:
        yield played


@pytest.mark.parametrize("cuda", CUDAS)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_whole_installation_has_no_problem(machine: Machine, cuda: int, device_type: str) -> None:
    machine.install(cuda)
    state = examine_dali(device_type)
    assert state.problem == ""
    assert state.packages == ((f"nvidia-dali-cuda{cuda}0", "2.4.0"),)
    assert state.version == "2.4.0"
    assert find_nvcomp_problem() == ""
    assert "nvidia.dali" not in sys.modules


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_dali_on_the_path_without_a_distribution_is_found(machine: Machine, device_type: str) -> None:
    machine.install(13)
    machine.forget_packages()
    assert examine_dali(device_type) == dali_install.DaliState((), "2.4.0", "")


def test_two_builds_in_different_folders_do_not_overwrite_each_other(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install(12)
    other = Machine(tmp_path / "other", monkeypatch)
    other.install(13, "2.5.0")
    monkeypatch.setattr(sys, "path", [str(other.site), *sys.path])
    state = examine_dali("cuda")
    assert (state.version, state.problem) == ("2.5.0", "")
    assert len(state.packages) == 2


BROKEN: dict[str, tuple[Callable[[Machine], object], tuple[str, ...]]] = {
    "none": (lambda m: None, ("DALI is not installed: pip install 'unetfast[dali]'", "'unetfast[dali-cuda13]'", "580")),
    "none, but other packages of nvidia": (
        lambda m: m.write("nvidia/cudnn/lib/libcudnn.so.9", b""),
        ("DALI is not installed: pip install 'unetfast[dali]'",),
    ),
    "other system": (lambda m: m.set_system("Darwin", "arm64"), ("Linux on x86_64 and aarch64 alone; this is Darwin arm64",)),
    "other processor": (lambda m: m.set_system("Linux", "ppc64le"), ("this is Linux ppc64le",)),
    "both": (
        lambda m: [m.install(13), m.install(12)],
        (
            "nvidia-dali-cuda120 and nvidia-dali-cuda130 are both installed and overwrite each other",
            "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130 nvidia-nvimgcodec-cu12 nvidia-nvimgcodec-cu13 "
            "nvidia-libnvcomp-cu12 nvidia-libnvcomp-cu13 && pip install 'unetfast[dali]'",
        ),
    ),
    "too old": (lambda m: m.install(12, "1.52.0"), ("DALI 1.52.0 is too old, 2.3 or newer", "pip install 'unetfast[dali]'")),
    "a little too old": (lambda m: m.install(13, "2.2.9"), ("2.2.9 is too old", "pip install 'unetfast[dali-cuda13]'")),
    "unknown build": (
        lambda m: [m.install(12), m.write("nvidia/dali/__init__.py", b"__version__ = '3.0.0'\n")],
        ("what stands in ", "is no DALI for CUDA 12 or 13", UNINSTALL),
    ),
    "files gone": (
        lambda m: [m.install(13), m.remove("nvidia/dali")],
        (
            "the files of nvidia-dali-cuda130 2.4.0 are gone",
            "pip uninstall -y nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 nvidia-libnvcomp-cu13 && "
            "pip install 'unetfast[dali-cuda13]'",
        ),
    ),
    "files gone but for some": (
        lambda m: [m.install(12), m.remove("nvidia/dali/__init__.py")],
        ("the files of nvidia-dali-cuda120 2.4.0 are gone", f"{UNINSTALL} && pip install 'unetfast[dali]'"),
    ),
    "no nvImageCodec": (
        lambda m: [
            m.install(12),
            m.remove("nvidia/nvimgcodec"),
            m.remove("nvidia_nvimgcodec_cu12-0.9.0.20.dist-info"),
        ],
        ("nvImageCodec, with which DALI decodes images, is missing: pip install 'nvidia-nvimgcodec-cu12[nvjpeg]'",),
    ),
    "nvImageCodec's files gone": (
        lambda m: [m.install(12), m.remove("nvidia/nvimgcodec")],
        ("the files of nvImageCodec, with which DALI decodes images, are gone", UNINSTALL),
    ),
}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("case", BROKEN)
def test_what_stops_dali_is_said_with_its_remedy(machine: Machine, case: str, device_type: str) -> None:
    break_it, parts = BROKEN[case]
    break_it(machine)
    problem = examine_dali(device_type).problem
    for part in parts:
        assert part in problem
    assert find_nvcomp_problem() == ""  # of which nothing is said while more is wrong


GPU_ALONE: dict[str, tuple[Callable[[Machine], object], tuple[str, ...]]] = {
    "no nvJPEG, 12": (
        lambda m: [m.install(12), m.remove("nvidia/nvjpeg/lib/libnvjpeg.so.12")],
        ("nvJPEG (libnvjpeg.so.12) is missing", "decode JPEGs on the CPU and not say so", "pip install nvidia-nvjpeg-cu12"),
    ),
    "no nvJPEG, 13": (
        lambda m: [m.install(13), m.remove("nvidia/cu13/lib/libnvjpeg.so.13")],
        ("nvJPEG (libnvjpeg.so.13) is missing", "pip install 'nvidia-nvjpeg==13.*'"),
    ),
    "nvJPEG for the other CUDA alone": (
        lambda m: [m.install(13), m.remove("nvidia/cu13"), m.write("nvidia/nvjpeg/lib/libnvjpeg.so.12", b"")],
        ("nvJPEG (libnvjpeg.so.13) is missing",),
    ),
    "nvImageCodec without its part for nvJPEG": (
        lambda m: [m.install(12), m.remove("nvidia/nvimgcodec/extensions/libnvjpeg_ext.so.0.9.0")],
        ("has lost its part for JPEGs on a GPU", UNINSTALL),
    ),
    "nvImageCodec for the other CUDA": (
        # what is left of two builds after one was uninstalled, and DALI's other wheel installed again
        lambda m: [
            m.install(13),
            m.install(12),
            m.remove("nvidia_dali_cuda120-2.4.0.dist-info"),
            m.write("nvidia/dali/__init__.py", b"__version__ = '2.4.0'\n__cuda_version__ = int('13.4.92'.replace('.', ''))\n"),
        ],
        (
            "DALI is for CUDA 13, but nvImageCodec",
            "wants libnvjpeg.so.12",
            "pip uninstall -y nvidia-dali-cuda130 nvidia-nvimgcodec-cu12 nvidia-nvimgcodec-cu13 nvidia-libnvcomp-cu12 "
            "nvidia-libnvcomp-cu13 && pip install 'unetfast[dali-cuda13]'",
        ),
    ),
    "no driver": (
        lambda m: [m.install(12), m.set_driver(None)],
        ("no NVIDIA driver is found (libcuda.so.1): install one of the 525 line or newer",),
    ),
    "driver too old for 12": (
        lambda m: [m.install(12), m.set_driver(11080)],
        ("DALI for CUDA 12 needs a driver of the 525 line or newer, and the one here is for CUDA 11.8: update it",),
    ),
    "driver too old for 13": (
        lambda m: [m.install(13), m.set_driver(12090)],
        (
            "DALI for CUDA 13 needs a driver of the 580 line or newer, and the one here is for CUDA 12.9: update it, or take",
            "pip uninstall -y nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 nvidia-libnvcomp-cu13 && pip install 'unetfast[dali]'",
        ),
    ),
    "driver too old for both": (
        lambda m: [m.install(13), m.set_driver(11080)],
        ("DALI for CUDA 13 needs a driver of the 580 line or newer, and the one here is for CUDA 11.8: update it",),
    ),
}


@pytest.mark.parametrize("case", GPU_ALONE)
def test_what_stops_gpu_decode_is_a_problem_there_alone(machine: Machine, case: str) -> None:
    break_it, parts = GPU_ALONE[case]
    break_it(machine)
    assert examine_dali("cpu").problem == ""
    problem = examine_dali("cuda").problem
    for part in parts:
        assert part in problem
    assert ("take DALI for CUDA 12" in problem) == (case == "driver too old for 13")


@pytest.mark.parametrize(("cuda", "number"), [(12, 12000), (12, 12090), (12, 13000), (13, 13000), (13, 14010)])
def test_drivers_that_are_new_enough(machine: Machine, cuda: int, number: int) -> None:
    machine.install(cuda)
    machine.set_driver(number)
    assert examine_dali("cuda").problem == ""


@pytest.mark.parametrize("cuda", CUDAS)
def test_libraries_of_the_system_are_as_good(machine: Machine, cuda: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(cuda)
    for path in ("nvidia/nvimgcodec", f"nvidia/{NVJPEG_FOLDER[cuda]}", "nvidia/libnvcomp"):
        machine.remove(path)
    asked: list[str] = []
    monkeypatch.setattr(dali_install, "_can_load", lambda soname: asked.append(soname) or True)
    assert examine_dali("cuda").problem == ""
    assert find_nvcomp_problem() == ""
    assert asked == ["libnvimgcodec.so.0", f"libnvjpeg.so.{cuda}", "libnvcomp.so.5"]


@pytest.mark.parametrize("cuda", CUDAS)
def test_nvcomp_is_asked_for_by_inflation_alone(machine: Machine, cuda: int) -> None:
    machine.install(cuda)
    machine.remove("nvidia/libnvcomp/lib64/libnvcomp.so.5")
    assert examine_dali("cuda").problem == ""
    problem = find_nvcomp_problem()
    assert "nvCOMP (libnvcomp.so.5)" in problem
    assert problem.endswith(f"is missing: pip install nvidia-libnvcomp-cu{cuda}")


def test_a_library_is_loaded_by_name_or_not() -> None:
    assert dali_install._can_load("libc.so.6")
    assert not dali_install._can_load("libno-such-library.so.12")


class PlayedDriver:
    def __init__(self, result: int) -> None:
        self.result = result

    def cuDriverGetVersion(self, number: object) -> int:
        number._obj.value = 12080  # type: ignore[attr-defined]
        return self.result


@pytest.mark.parametrize(("result", "expected"), [(0, 12080), (34, None)])  # 34: a stub library
def test_the_driver_is_asked_for_its_cuda_version(monkeypatch: pytest.MonkeyPatch, result: int, expected: int | None) -> None:
    monkeypatch.setattr(dali_install.ctypes, "CDLL", lambda name: {"libcuda.so.1": PlayedDriver(result)}[name])
    assert read_driver_cuda() == expected


def test_no_driver_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(dali_install.ctypes, "CDLL", fail)
    assert read_driver_cuda() is None


def test_the_extras_are_those_that_the_remedies_name() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = ".".join(str(part) for part in dali_install.MIN_DALI_VERSION)
    for package, cuda in dali_install._CUDA_OF_PACKAGE.items():
        name = dali_install._EXTRA[cuda].removeprefix("unetfast[").removesuffix("]")
        (entry,) = project["optional-dependencies"][name]
        assert entry.startswith(f"{package}>={oldest}; ")
        assert all(f"platform_machine == '{machine}'" in entry for machine in dali_install._MACHINES)


@pytest.mark.dali
def test_the_installed_wheels_are_as_the_played_ones() -> None:
    """Everything in this process's own DALI that the rules look at is where they look for it."""
    dali = pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    state = examine_dali("cpu")
    assert (state.version, state.problem) == (dali.__version__, "")
    files = dali_install._find_files()
    assert files is not None
    assert files.folder == Path(dali.__file__).parent
    assert str(dali.__cuda_version__).startswith(str(files.cuda))
    assert files.cuda in CUDAS
    extension = next((files.folder.parent / "nvimgcodec").glob("extensions/libnvjpeg_ext.so*"), None)
    if extension is None:
        pytest.skip("nvImageCodec is not from a wheel here")
    soname, folders = dali_install._read_wants(extension, "libnvjpeg")
    assert soname == f"libnvjpeg.so.{files.cuda}"
    assert files.folder.parent / NVJPEG_FOLDER[files.cuda] in [Path(folder).resolve() for folder in folders]
    soname, folders = dali_install._read_wants(files.folder / "libdali_operators.so", "libnvcomp")
    assert soname.startswith("libnvcomp.so.")
    assert files.folder.parent / "libnvcomp/lib64" in [Path(folder).resolve() for folder in folders]


def test_the_examination_imports_neither_dali_nor_torch() -> None:
    script = """
import sys
from unetfast.loader.dali_install import examine_dali, find_nvcomp_problem
examine_dali("cpu"), examine_dali("cuda"), find_nvcomp_problem()
print([name for name in sys.modules if name in ("torch", "nvidia.dali", "nvidia.nvimgcodec", "numpy")])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
