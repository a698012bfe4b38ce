"""Picks the backend, says why, and builds a loader."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unetfast.config import Config
from unetfast.data.reader import SplitReader
from unetfast.device import num_usable_cores
from unetfast.errors import UserError
from unetfast.loader.batch import Loader
from unetfast.loader.cpu import CpuLoader
from unetfast.loader.dali_install import examine_dali, find_nvcomp_problem
from unetfast.loader.stream import SampleStream

if TYPE_CHECKING:
    from unetfast.loader.dali_loader import DaliLoader


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which loader backend is used.

    Args:
        name: "cpu", "dali" or "resident".
        reason: why, for people.
    """

    name: str
    reason: str


def choose_backend(config: Config, device: torch.device, *, training: bool = False) -> BackendChoice:
    """Turn `loader.backend` into a choice: "auto" takes DALI where batches go to a GPU and DALI works, else the CPU backend.

    `loader.cache` decides before it, for training alone: a validation pass reads every sample once, and nothing is to be kept.
    Does not import DALI.

    Args:
        config: the loader and dali sections.
        device: where batches are wanted.
        training: whether the loader is that of the training stream.

    Raises:
        UserError: DALI or a cache is asked for and cannot be used; says what to install or set.
    """
    backend = config.loader.backend
    if training and config.loader.cache == "gpu":
        _check_resident(device)
        return BackendChoice("resident", 'loader.cache = "gpu"')
    if training and config.loader.cache == "ram" and backend != "cpu":
        if backend == "dali":
            raise UserError(
                'loader.cache = "ram" keeps what the CPU backend has decoded, and loader.backend is "dali"; '
                "take --set loader.backend=cpu or --set loader.cache=off"
            )
        return BackendChoice("cpu", 'loader.cache = "ram"')
    if backend == "cpu":
        return BackendChoice("cpu", "asked for")
    if backend == "auto" and device.type != "cuda":
        return BackendChoice("cpu", "no GPU is used")
    state = examine_dali(device.type)
    problem = state.problem
    if not problem and device.type == "cuda" and config.dali.inflate == "gpu":
        problem = find_nvcomp_problem()
    if backend == "auto":
        return BackendChoice("cpu", problem) if problem else BackendChoice("dali", f"a GPU is used, DALI is {state.version}")
    if problem:
        raise UserError(f'loader.backend = "dali": {problem}\n  or take --set loader.backend=cpu')
    return BackendChoice("dali", "asked for")


def _check_resident(device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(
            f'loader.cache = "gpu" needs a GPU, and this run is on {device}; '
            "take --set loader.cache=ram or --set loader.cache=off"
        )
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            'loader.cache = "gpu" needs Triton, which is not installed: pip install triton (PyTorch for Linux brings it), '
            "or take --set loader.cache=ram or --set loader.cache=off"
        )


def build_loader(
    reader: SplitReader,
    config: Config,
    *,
    training: bool,
    device: torch.device,
    size_hw: tuple[int, int] | None = None,
    batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    local_size: int = 1,
) -> Loader:
    """Build the loader of one split.

    Args:
        reader: the split; it is read from threads, and stays open when the loader is closed.
        config: the loader, order and augment sections, and train.seed.
        training: an endless shuffled, augmented stream of full batches. Else each sample once, in index order, not augmented,
            the last batch smaller.
        device: where batches are wanted.
        size_hw: height and width of the batches, pixels; None takes `loader.size_hw`.
        batch_size: global, over all ranks; None takes `loader.batch_size`.
        rank: of this process.
        world_size: number of processes, on all machines.
        local_size: number of processes on this machine, which share its memory.

    Raises:
        UserError: the settings do not fit together, or the backend cannot be had.
        CorruptShardError: the split's class table, which the balanced sampler reads, is damaged.
    """
    choice = choose_backend(config, device, training=training)
    batch_size = config.loader.batch_size if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} of {world_size} processes: ranks run from 0 to {world_size - 1}")
    if training and batch_size % world_size:
        raise UserError(
            f"a global batch of {batch_size} cannot be shared by {world_size} processes; "
            f"set loader.batch_size to a multiple of {world_size}, such as {-(-batch_size // world_size) * world_size}"
        )
    if config.loader.on_bad == "skip" and world_size > 1:
        raise UserError(
            'loader.on_bad = "skip" with several processes: they cannot agree on what is left out; '
            "take --set loader.on_bad=error, and pack again without the bad samples (unetfast inspect --verify names them)"
        )
    stream = SampleStream(
        reader,
        config,
        training=training,
        target_hw=size_hw or config.loader.size_hw,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
    num_threads = config.loader.threads or num_usable_cores()
    if choice.name == "resident":
        from unetfast.loader.resident import ResidentLoader  # imports Triton

        return ResidentLoader(stream, config, num_threads=num_threads, device=device)
    if choice.name == "dali":
        return _import_dali_loader()(stream, config, num_threads=num_threads, device=device)
    return CpuLoader(stream, config.loader, num_threads=num_threads, device=device, local_size=local_size)


def _import_dali_loader() -> type[DaliLoader]:
    try:
        from unetfast.loader.dali_loader import DaliLoader
    except (ImportError, OSError) as error:  # one of DALI's own requirements, or a library, is missing
        raise UserError(
            f"DALI is installed, but cannot be imported ({type(error).__name__}: {error})\n"
            "  install it anew, or take --set loader.backend=cpu"
        ) from error
    return DaliLoader
