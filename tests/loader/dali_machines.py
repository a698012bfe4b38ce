"""Machines played for tests: a folder laid out as pip lays out DALI's wheels, and a driver."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from unetfast.loader import dali_install

NVJPEG_FOLDER = {12: "nvjpeg/lib", 13: "cu13/lib"}
NVJPEG_PACKAGE = {12: "nvidia-nvjpeg-cu12", 13: "nvidia-nvjpeg"}


@dataclass(frozen=True)
class Machine:
    """A site-packages folder, in front of the path; no library of the system's can be found."""

    site: Path
    monkeypatch: pytest.MonkeyPatch

    def install(self, cuda: int, version: str = "2.4.0") -> None:
        """Put DALI and all that its wheels require there; what is there already is overwritten."""
        self.list_package(f"nvidia-dali-cuda{cuda}0", version)
        self.list_package(f"nvidia-nvimgcodec-cu{cuda}", "0.9.0.20")
        self.list_package(f"nvidia-libnvcomp-cu{cuda}", "5.3.0.16")
        self.list_package(NVJPEG_PACKAGE[cuda], f"{cuda}.4.0")
        built = {12: "12.9.86", 13: "13.4.92"}[cuda]
        self.write("nvidia/__init__.py", b"__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
        text = (
            f"__version__ = '{version}'\n__cuda_version__ = int('{built}'.replace('.', ''))\nraise ImportError('DALI itself')\n"
        )
        self.write("nvidia/dali/__init__.py", text.encode())
        self.write("nvidia/dali/libdali_operators.so", b"..libnvcomp.so.5\0libnvcomp.so\0$ORIGIN:$ORIGIN/../libnvcomp/lib64\0")
        self.write("nvidia/nvimgcodec/libnvimgcodec.so.0", b"")
        path = f"$ORIGIN/..:$ORIGIN/../../{NVJPEG_FOLDER[cuda]}:/usr/local/nowhere"
        content = f"..libnvjpeg.so\0libnvjpeg.so.{cuda}\0{path}\0rest"
        self.write("nvidia/nvimgcodec/extensions/libnvjpeg_ext.so.0.9.0", content.encode())
        self.write("nvidia/nvimgcodec/extensions/libnvjpeg2k_ext.so.0.9.0", b"libnvjpeg2k.so.0\0$ORIGIN\0")
        self.write(f"nvidia/{NVJPEG_FOLDER[cuda]}/libnvjpeg.so.{cuda}", b"")
        self.write("nvidia/libnvcomp/lib64/libnvcomp.so.5", b"")

    def list_package(self, name: str, version: str) -> None:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        self.write(f"{name.replace('-', '_')}-{version}.dist-info/METADATA", metadata.encode())

    def forget_packages(self) -> None:
        """Leave the files alone, as where a folder is put on PYTHONPATH."""
        for folder in self.site.glob("*.dist-info"):
            shutil.rmtree(folder)
        importlib.invalidate_caches()

    def write(self, path: str, content: bytes) -> None:
        file = self.site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        importlib.invalidate_caches()

    def remove(self, path: str) -> None:
        """Delete a file or a folder, which must be there."""
        file = self.site / path
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
        importlib.invalidate_caches()

    def set_driver(self, number: int | None) -> None:
        """Play a driver, by the CUDA version it can run: 1000 * major + 10 * minor."""
        self.monkeypatch.setattr(dali_install, "read_driver_cuda", lambda: number)

    def set_system(self, system: str, machine: str) -> None:
        self.monkeypatch.setattr(dali_install.platform, "system", lambda: system)
        self.monkeypatch.setattr(dali_install.platform, "machine", lambda: machine)


@contextmanager
def play_machine(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Make the packages of this interpreter's own nvidia folder invisible, and `site` the place where others are looked for."""
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "nvidia"}
    monkeypatch.setattr(sys, "path", [str(site), *(entry for entry in sys.path if not (Path(entry) / "nvidia").exists())])
    monkeypatch.setattr(dali_install, "_can_load", lambda soname: False)
    machine = Machine(site, monkeypatch)
    machine.set_driver(13000)
    machine.set_system("Linux", "x86_64")
    try:
        yield machine
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
            del sys.modules[name]
        sys.modules.update(mine)
