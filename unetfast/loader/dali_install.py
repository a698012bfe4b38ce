"""What can be known of DALI's installation without importing it, and what is wrong with it: the one list of these rules.

DALI tells late that a part of it is missing, or not at all: without nvJPEG it decodes JPEGs on the CPU and says nothing. Its
wheels for CUDA 12 and 13 hold the same files, and so do those of nvImageCodec and of nvCOMP: the one installed last overwrites
the other, and uninstalling either deletes both. Which libraries are opened, and where they are looked for, is read from the
files themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

MIN_DALI_VERSION = (2, 3)  # the first whose inflate operator tests sizes; decoders.image knows adjust_orientation since 2.2
_CUDA_OF_PACKAGE = {"nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
# these share files between CUDA 12 and 13
_SHARING = tuple(
    f"nvidia-{name}-{cuda}"
    for name, cudas in (("dali", ("cuda120", "cuda130")), ("nvimgcodec", ("cu12", "cu13")), ("libnvcomp", ("cu12", "cu13")))
    for cuda in cudas
)
_EXTRA = {12: "unetfast[dali]", 13: "unetfast[dali-cuda13]"}
_DRIVER = {12: "525", 13: "580"}  # the oldest line of drivers, by CUDA version
_NVJPEG_PACKAGE = {12: "nvidia-nvjpeg-cu12", 13: "'nvidia-nvjpeg==13.*'"}
_NVCOMP_PACKAGE = {12: "nvidia-libnvcomp-cu12", 13: "nvidia-libnvcomp-cu13"}
_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True, slots=True)
class DaliState:
    """What was found.

    Args:
        packages: DALI's installed distributions, each with its version.
        version: of the DALI that would be imported; "" where there is none.
        problem: why it cannot be used, and what to do; "" where it can.
    """

    packages: tuple[tuple[str, str], ...]
    version: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Files:
    """DALI's folder, and what its __init__.py says: its version and the CUDA version it is built for ("" and 0 if nothing)."""

    folder: Path
    version: str
    cuda: int


def examine_dali(device_type: str) -> DaliState:
    """Find out whether DALI can be used, without importing it.

    Args:
        device_type: "cpu" or "cuda"; for "cuda" also what decoding on a GPU needs: nvJPEG and the driver.
    """
    packages = {name: version for name in _CUDA_OF_PACKAGE if (version := _find_version(name))}
    files = _find_files()
    version = files.version if files else ""
    if files is None:
        problem = _explain_absence(packages)
    else:
        problem = _find_problem(files) or (_find_gpu_problem(files) if device_type == "cuda" else "")
    return DaliState(tuple(packages.items()), version, problem)


def find_nvcomp_problem() -> str:
    """Tell why DALI cannot inflate LZ4 on a GPU (`dali.inflate = "gpu"`), and what to do; "" where it can."""
    files = _find_files()
    if files is None or files.cuda not in _NVCOMP_PACKAGE:
        return ""  # examine_dali has more to say
    soname, folders = _read_wants(files.folder / "libdali_operators.so", "libnvcomp")
    if _is_there(soname, folders):
        return ""
    return f"nvCOMP ({soname}), with which DALI inflates LZ4 on a GPU, is missing: pip install {_NVCOMP_PACKAGE[files.cuda]}"


def _find_version(package: str) -> str:
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return ""


def _find_files() -> _Files | None:
    """Find the DALI that would be imported, whether a distribution is listed or not; None where there is none."""
    try:
        spec = find_spec("nvidia.dali")
    except ModuleNotFoundError:  # there is no nvidia at all
        return None
    if spec is None or spec.origin is None:  # a folder without __init__.py is what is left of an uninstalled DALI
        return None
    text = Path(spec.origin).read_text(encoding="utf-8")
    version = re.search(r"^__version__ = '(.*)'", text, re.MULTILINE)
    cuda = re.search(r"^__cuda_version__ = int\('(\d+)\.", text, re.MULTILINE)
    return _Files(Path(spec.origin).parent, version[1] if version else "", int(cuda[1]) if cuda else 0)


def _explain_absence(packages: dict[str, str]) -> str:
    if packages:
        names = " and ".join(f"{name} {version}" for name, version in packages.items())
        advice = _advise_anew(_CUDA_OF_PACKAGE[next(reversed(packages))])
        return f"the files of {names} are gone, as when another build of DALI was uninstalled. {advice}"
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return f"DALI is for Linux on {' and '.join(_MACHINES)} alone; this is {platform.system()} {platform.machine()}"
    return (
        f"DALI is not installed: pip install '{_EXTRA[12]}', or '{_EXTRA[13]}' for drivers of the {_DRIVER[13]} line and newer"
    )


def _find_problem(files: _Files) -> str:
    """Look for what stops DALI on any device."""
    here = [name for name in _CUDA_OF_PACKAGE if _is_installed_in(name, files.folder)]
    if len(here) > 1:
        return f"{' and '.join(here)} are both installed and overwrite each other. {_advise_anew(files.cuda)}"
    number = re.match(r"(\d+)\.(\d+)", files.version)
    if files.cuda not in _EXTRA or number is None:
        return f"what stands in {files.folder} is no DALI for CUDA 12 or 13. {_advise_anew(12)}"
    if (int(number[1]), int(number[2])) < MIN_DALI_VERSION:
        wanted = ".".join(str(part) for part in MIN_DALI_VERSION)
        return f"DALI {files.version} is too old, {wanted} or newer is needed: pip install '{_EXTRA[files.cuda]}'"
    if not _is_there("libnvimgcodec.so.0", (_nvimgcodec_folder(files), Path(f"/opt/nvidia/nvimgcodec_cuda{files.cuda}/lib64"))):
        if any(_find_version(f"nvidia-nvimgcodec-cu{cuda}") for cuda in _EXTRA):
            return f"the files of nvImageCodec, with which DALI decodes images, are gone. {_advise_anew(files.cuda)}"
        package = f"nvidia-nvimgcodec-cu{files.cuda}[nvjpeg]"
        return f"nvImageCodec, with which DALI decodes images, is missing: pip install '{package}'"
    return ""


def _find_gpu_problem(files: _Files) -> str:
    """Look for what stops DALI from decoding on a GPU."""
    soname, folder = f"libnvjpeg.so.{files.cuda}", _nvimgcodec_folder(files)
    folders: tuple[Path, ...] = ()
    if folder.is_dir():  # else it is the system's own, of which nothing more is known
        extension = next(folder.glob("extensions/libnvjpeg_ext.so*"), None)
        if extension is None:
            return f"nvImageCodec ({folder}) has lost its part for JPEGs on a GPU. {_advise_anew(files.cuda)}"
        soname, folders = _read_wants(extension, "libnvjpeg")
    if not soname.endswith(f".{files.cuda}"):
        return f"DALI is for CUDA {files.cuda}, but nvImageCodec ({folder}) wants {soname}. {_advise_anew(files.cuda)}"
    if not _is_there(soname, folders):
        package = _NVJPEG_PACKAGE[files.cuda]
        return f"nvJPEG ({soname}) is missing, so DALI would decode JPEGs on the CPU and not say so: pip install {package}"
    return _find_driver_problem(files.cuda)


def _find_driver_problem(cuda: int) -> str:
    number = read_driver_cuda()
    if number is None:
        return f"no NVIDIA driver is found (libcuda.so.1): install one of the {_DRIVER[cuda]} line or newer"
    if number >= cuda * 1000:
        return ""
    there = f"CUDA {number // 1000}.{number % 1000 // 10}"
    problem = f"DALI for CUDA {cuda} needs a driver of the {_DRIVER[cuda]} line or newer, and the one here is for {there}"
    if cuda > 12 and number >= 12000:
        return f"{problem}: update it, or take DALI for CUDA 12. {_advise_anew(12)}"
    return f"{problem}: update it"


def read_driver_cuda() -> int | None:
    """Ask the driver for the newest CUDA version it can run, as 1000 * major + 10 * minor; None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    return number.value if driver.cuDriverGetVersion(ctypes.byref(number)) == 0 else None


def _is_installed_in(package: str, folder: Path) -> bool:
    try:
        return Path(str(distribution(package).locate_file("nvidia/dali"))).resolve() == folder.resolve()
    except PackageNotFoundError:
        return False


def _advise_anew(cuda: int) -> str:
    """Tell how to install DALI for one CUDA version anew; pip must first forget all that shares files with it."""
    there = " ".join(name for name in _SHARING if _find_version(name))
    install = f"pip install '{_EXTRA.get(cuda, _EXTRA[12])}'"
    return f"Install it anew: pip uninstall -y {there} && {install}" if there else f"Install it: {install}"


def _nvimgcodec_folder(files: _Files) -> Path:
    """Return where wheels put nvImageCodec: DALI looks for it beside itself."""
    return files.folder.parent / "nvimgcodec"


@lru_cache(maxsize=8)
def _read_wants(binary: Path, library: str) -> tuple[str, tuple[Path, ...]]:
    """Read from a shared object which version of a library it opens at run time, and the folders of its own search path.

    Returns:
        Such as "libnvjpeg.so.12", the name without a number where none stands there; and the folders of its RUNPATH.
    """
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        name = re.search(rf"{library}\.so\.\d+".encode(), content)
        path = re.search(rb"\$ORIGIN[^\0]*", content)
        soname = name[0].decode() if name else f"{library}.so"
        folders = path[0].decode().replace("$ORIGIN", str(binary.parent)).split(":") if path else []
    return soname, tuple(Path(folder) for folder in folders)


def _is_there(soname: str, folders: tuple[Path, ...]) -> bool:
    """Tell whether the dynamic linker would find a library: in these folders, in LD_LIBRARY_PATH, or among the system's."""
    return any((folder / soname).is_file() for folder in folders) or _can_load(soname)


def _can_load(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True
