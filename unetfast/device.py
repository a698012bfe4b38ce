"""Which device, number format and compile mode a run uses, and why; the same answers for training, evaluation, prediction."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from unetfast.errors import UserError


@dataclass(frozen=True, slots=True)
class AmpPolicy:
    """The number format of convolutions.

    Args:
        name: "bf16", "fp16" or "off".
        reason: why, for people.
    """

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast dtype; None for float32 throughout."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[self.name]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)


def resolve_device(name: str) -> torch.device:
    """Turn `auto | cpu | cuda | cuda:N` into a device.

    Raises:
        UserError: the name is none of these, or a GPU is asked for and is not there; names the override.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device {name!r}: give auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"device {name}: this PyTorch ({torch.__version__}) sees no GPU; take --set train.device=cpu (eval, predict: "
                "--device cpu)"
            )
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise UserError(f"device {name}: the GPUs here are {', '.join(f'cuda:{index}' for index in range(count))}")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def resolve_amp(name: str, device: torch.device) -> AmpPolicy:
    """Turn `auto | bf16 | fp16 | off` into a policy; auto takes bf16 where the hardware multiplies it fast.

    Raises:
        UserError: fp16 is asked for on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError('train.amp = "fp16" needs a GPU; take --set train.amp=bf16 or --set train.amp=off')
    if name != "auto":
        return AmpPolicy(name, "asked for")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return AmpPolicy("bf16", "this GPU has bf16 matrix units")
        return AmpPolicy("fp16", "this GPU has no bf16 matrix units")
    # private, but the only way to ask; a torch without them counts as a CPU without bf16
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    if any(probe() for probe in probes if probe is not None):
        return AmpPolicy("bf16", "this CPU has bf16 instructions")
    return AmpPolicy("off", "this CPU has no bf16 instructions")


def resolve_compile(name: str, device: torch.device) -> bool:
    """Turn `auto | on | graphs | off` into whether to compile; auto compiles for CUDA."""
    return device.type == "cuda" if name == "auto" else name != "off"


def num_usable_cores() -> int:
    """Count the CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
