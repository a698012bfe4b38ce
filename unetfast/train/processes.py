"""A run in several processes: which device each has, how its network averages gradients, who speaks."""

from __future__ import annotations

import inspect
import io
import socket
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unetfast.config import Config
from unetfast.device import num_usable_cores, resolve_device
from unetfast.distributed import World
from unetfast.errors import UserError
from unetfast.model.sync_norm import synchronize_batch_norm


def choose_device(name: str, world: World) -> torch.device:
    """Turn `train.device` into this process's device: with several processes, GPU `local_rank` of its machine.

    Where a launcher shows each process one GPU of its own, it is that one. A collective.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        world: the processes.

    Raises:
        UserError: one GPU is named for several processes, some machines have GPUs and others none, or a machine has more
            processes than GPUs.
    """
    if world.size == 1:
        return resolve_device(name)
    if ":" in name:
        raise UserError(f"train.device = {name!r} names one GPU for {world.size} processes; take --set train.device=cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = world.gather(count)
    if name == "cpu" or (name == "auto" and not any(counts)):
        return torch.device("cpu")
    if not any(counts):
        return resolve_device(name)  # says that there is none
    if not all(counts):
        without = ", ".join(str(rank) for rank, found in enumerate(counts) if not found)
        raise UserError(f"the processes of rank {without} see no GPU, the others do; mend that, or take --set train.device=cpu")
    device = torch.device("cuda", world.local_rank % count)
    # GPUs are told apart by their serial numbers: their indices depend on what each process is shown
    places = world.gather((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
    for host in sorted({host for host, _ in places}):
        gpus = [uuid for name_of_host, uuid in places if name_of_host == host]
        num_gpus = len(set(gpus))
        if num_gpus < len(gpus):
            raise UserError(
                f"{len(gpus)} processes on {host}, which has {num_gpus} GPU{'s' * (num_gpus != 1)} for them; "
                f"take torchrun --nproc-per-node {num_gpus}, or --set train.device=cpu"
            )
    torch.cuda.set_device(device)
    return device


def share_cores(config: Config, world: World) -> Config:
    """Let the processes of a machine share its cores: `loader.threads` = 0 is each one's part of them."""
    if world.local_size == 1 or config.loader.threads:
        return config
    threads = max(1, num_usable_cores() // world.local_size)
    return config.model_copy(update={"loader": config.loader.model_copy(update={"threads": threads})})


def wrap_network(model: nn.Module, config: Config, world: World) -> nn.Module:
    """Return what training steps call: the model itself, or with several processes one that averages their gradients.

    Args:
        model: on its final device, compiled or not; weights of the main process are given to all.
        config: a network of the user's own (`model.factory`) may leave weights unused in a step, which costs a search in each.
        world: the processes.
    """
    if world.size == 1:
        return model
    # running statistics are evened out where they are needed (`even_out_buffers`), not in each step; torch 2.14 renamed it
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    quiet: dict[str, Any] = {next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known): False}
    return DistributedDataParallel(
        model, gradient_as_bucket_view=True, find_unused_parameters=bool(config.model.factory), **quiet
    )


def synchronize(model: nn.Module, config: Config, world: World) -> int:
    """Let batch norm see the batches of all processes where `train.sync_batch_norm` asks for it; returns its layers."""
    return synchronize_batch_norm(model) if config.train.sync_batch_norm and world.size > 1 else 0


def describe_processes(world: World, num_synchronized: int) -> list[str]:
    """Say in a line how many processes there are; nothing for one."""
    if world.size == 1:
        return []
    machines = world.size // world.local_size
    where = f" on {machines} machines" if machines > 1 else ""
    norm = f", batch norm over all of them ({num_synchronized} layers)" if num_synchronized else ""
    return [f"world   {world.size} processes{where}; loader.batch_size is of all together{norm}"]


def speaking_console(console: Console | None, world: World) -> Console:
    """Return where a run speaks to: the given console, else stderr; for all but the main process, nowhere."""
    if not world.is_main:
        return Console(file=io.StringIO(), quiet=True)
    return console or Console(stderr=True, highlight=False)
