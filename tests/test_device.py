"""Which device, number format and compile mode: the answers on a CPU, and on GPUs played by the test."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from unetfast import device as device_module
from unetfast import hostmemory
from unetfast.device import num_usable_cores, resolve_amp, resolve_compile, resolve_device
from unetfast.errors import UserError
from unetfast.hostmemory import FreedMemory

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "expected"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_devices_with_two_gpus(name: str, expected: str) -> None:
    assert str(resolve_device(name)) == expected


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="cuda:2: the GPUs here are cuda:0, cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert resolve_device("auto") == CPU
    with pytest.raises(UserError, match=r"sees no GPU; take --set train\.device=cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "mps", "cpu:0"])
def test_names_that_are_no_device_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="give auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs a GPU; take --set train\.amp=bf16"):
        resolve_amp("fp16", CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_bf16_where_a_gpu_multiplies_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_amp("auto", torch.device("cuda", 0)).name == expected


@pytest.mark.parametrize(
    ("has_amx", "has_avx512", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "off")]
)
def test_auto_takes_bf16_where_a_cpu_multiplies_it(
    has_amx: bool, has_avx512: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512, raising=False)
    assert resolve_amp("auto", CPU).name == expected


def test_a_torch_that_cannot_be_asked_counts_as_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert resolve_amp("auto", CPU).name == "off"


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_autocast_computes_in_the_format_asked_for(name: str, dtype: torch.dtype) -> None:
    policy = resolve_amp(name, CPU)
    with policy.autocast(CPU):
        assert torch.nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)).dtype == dtype


def test_compile_is_automatic_for_cuda_alone() -> None:
    assert resolve_compile("auto", torch.device("cuda", 0))
    assert not resolve_compile("auto", CPU)
    assert resolve_compile("on", CPU)
    assert resolve_compile("graphs", torch.device("cuda", 0))
    assert not resolve_compile("off", torch.device("cuda", 0))


def test_usable_cores_follow_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_usable_cores() >= 1
    monkeypatch.setattr(device_module.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert num_usable_cores() == 3
    monkeypatch.delattr(device_module.os, "sched_getaffinity")
    monkeypatch.setattr(device_module.os, "cpu_count", lambda: None)
    assert num_usable_cores() == 1


TRIES_THE_ALLOCATOR = """
import ctypes, resource, torch
from unetfast.hostmemory import keep_freed_memory, release_freed_memory
torch.set_num_threads(1)
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: the same pages on every kernel
def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(20_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident_mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024
fresh, kept, held = count_faults(), keep_freed_memory(), count_faults()
again, full = count_faults(), resident_mib()
release_freed_memory()
print(kept.largest_block, fresh, again, full - resident_mib())
"""


def try_allocator(**environment: str) -> list[int]:
    """Bytes of the largest block that is kept, page faults before and after, MiB given back; in a process of its own."""
    command = [sys.executable, "-c", TRIES_THE_ALLOCATOR]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return [int(word) for word in told.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_and_can_be_given_back() -> None:
    largest, fresh, again, given_back = try_allocator()
    if largest < 80_000_000:
        pytest.skip(f"this glibc keeps blocks of up to {largest} bytes alone")
    # 76 MiB four times: 78,125 pages of 4 KiB
    assert again < fresh / 10
    assert given_back > 60


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_thresholds_of_the_users_own_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert hostmemory.keep_freed_memory.__wrapped__() == FreedMemory(0, "MALLOC_TRIM_THRESHOLD_ is set")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "_load_glibc", lambda: None)
    assert hostmemory.keep_freed_memory.__wrapped__() == FreedMemory(0, "the C library is not glibc")
    hostmemory.release_freed_memory()


class _OldGlibc:
    """The mallopt of a glibc that takes no threshold above `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(parameter == -1 or value <= self.most)


@pytest.mark.parametrize(
    ("most", "largest", "reason"),
    [
        (2**31 - 1, 2**31 - 1, ""),
        (32 * 2**20, 32 * 2**20, "the C library refuses larger ones"),
        (0, 0, "the C library refuses"),
    ],
)
def test_an_old_glibc_keeps_what_it_can(most: int, largest: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    libc = _OldGlibc(most)
    monkeypatch.setattr(hostmemory, "_load_glibc", lambda: libc)
    assert hostmemory.keep_freed_memory.__wrapped__() == FreedMemory(largest, reason)
    assert libc.calls[0] == (-3, 2**31 - 1)
    assert ((-1, 2**31 - 1) in libc.calls) == bool(largest)
