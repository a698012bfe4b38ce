"""How much memory a host says it has, and what a process holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from unetfast import hostmemory
from unetfast.hostmemory import available_host_bytes, resident_bytes

GIB = 2**30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 GiB free, whose files can be changed."""
    monkeypatch.setattr(hostmemory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(hostmemory, "_CGROUP", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", f"MemTotal: 99 kB\nMemAvailable:   {16 * 2**20} kB\n")
    return tmp_path


def test_machine_without_limits(system: Path) -> None:
    assert available_host_bytes() == 16 * GIB


def test_limit_of_a_container_counts_and_its_file_cache_is_free(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/jobs/mine\n")
    for name, limit, used in (("jobs", "max", 9 * GIB), ("jobs/mine", 4 * GIB, 3 * GIB)):
        write(system / "cgroup" / name / "memory.max", f"{limit}\n")
        write(system / "cgroup" / name / "memory.current", f"{used}\n")
    write(system / "cgroup" / "jobs" / "mine" / "memory.stat", f"anon 5\ninactive_file {2 * GIB}\n")
    assert available_host_bytes() == 3 * GIB
    write(system / "cgroup" / "jobs" / "memory.max", f"{10 * GIB}\n")  # a parent with less left
    assert available_host_bytes() == 1 * GIB


def test_limit_of_an_old_container_counts(system: Path) -> None:
    """cgroup version 1, seen from inside: the folder that is named exists only outside."""
    write(system / "proc" / "self" / "cgroup", "4:memory:/docker/abc\n0::/\n")
    write(system / "cgroup" / "memory" / "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(system / "cgroup" / "memory" / "memory.usage_in_bytes", f"{GIB // 2}\n")
    assert available_host_bytes() == 3 * GIB // 2


def test_system_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "_PROC", tmp_path)
    assert available_host_bytes() is None
    assert resident_bytes() == 0


TRIES_THE_PEAK = """
import mmap
from unetfast.hostmemory import PeakMemory, resident_bytes
def touch_pages(num_mib):  # from the system itself: what the C library keeps of freed memory does not matter here
    with mmap.mmap(-1, num_mib << 20) as pages:
        for place in range(0, len(pages), mmap.PAGESIZE):
            pages[place] = 1
peak = PeakMemory()
touch_pages(200)
peak.start()
before = resident_bytes()
touch_pages(100)
print(peak.read() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the mark is set back on Linux alone")
def test_peak_is_of_the_time_since_the_start() -> None:
    """In a process of its own: in this one, what other tests have left may take memory and give it back."""
    told = subprocess.run([sys.executable, "-c", TRIES_THE_PEAK], capture_output=True, text=True, check=True)
    assert 90 * 2**20 < int(told.stdout) < 140 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_machine_says_what_its_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read twice, the real file says two numbers: a copy of it says one."""
    text = Path("/proc/meminfo").read_text()
    write(tmp_path / "meminfo", text)
    monkeypatch.setattr(hostmemory, "_PROC", tmp_path)
    match = re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE)
    assert match is not None
    assert available_host_bytes() == int(match[1]) * 1024
    monkeypatch.undo()
    assert (available_host_bytes() or 0) > 0
