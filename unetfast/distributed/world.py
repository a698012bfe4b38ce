"""Several processes that train one model, started by torchrun: who is who, and sums over all of them.

One process is a `World` of size 1: nothing is started, and every sum is the identity. With several, batches and gradients are
of the whole run: a loss is a quotient of sums over the global batch, so `World.total` adds these up with their gradients, and
every process computes the same number.

A collective is a call that all processes must make, in the same order. So nothing that only one of them knows (its clock, its
memory, whether it is the main one) may decide whether one is made.

What happens when a process fails stands in unetfast/distributed/failures.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unetfast.distributed.failures import Witness, end_if_stuck
from unetfast.errors import ToldError, UserError, say_briefly

TIMEOUT_S = 600  # how long a process waits for another one before it gives up
TIMEOUT_VARIABLE = "UNETFAST_TIMEOUT_S"

T = TypeVar("T")


class _Total(torch.autograd.Function):
    """Sum over all processes. Its gradient is the sum of theirs: what each adds enters the results of all."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as one of them sees them. The default is one process alone.

    Args:
        rank: number of this process, from 0.
        size: number of processes on all machines.
        local_rank: number of this process on its machine.
        local_size: processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, with its gradient; a collective, forward and backward.

        Where each process goes on to compute the same number L from totals and calls `L.backward()`, the mean of the
        processes' gradients (what DistributedDataParallel leaves) is the gradient of L.

        Args:
            tensor: float, on any device; the same shape everywhere.
        """
        return tensor if self.size == 1 else cast(Tensor, _Total.apply(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, without gradient; a collective. Does not wait for the GPU."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a float tensor over all processes, without gradient; a collective."""
        return tensor if self.size == 1 else self.sum(tensor) / self.size

    def gather(self, item: T) -> list[T]:
        """Collect a picklable object of each process, in the order of ranks, on all of them; a collective on the host."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def broadcast(self, item: T) -> T:
        """Return the main process's object to all; a collective on the host."""
        if self.size == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]

    def from_main(self, make: Callable[[], T]) -> T:
        """Let the main process make something, which all get; a collective on the host."""
        return make() if self.size == 1 else cast(T, self.broadcast(make() if self.is_main else None))

    def min_int(self, number: int) -> int:
        """Return the smallest number of all processes; a collective on the host."""
        return min(self.gather(number))

    def max_int(self, number: int) -> int:
        """Return the largest number of all processes; a collective on the host."""
        return max(self.gather(number))

    def barrier(self) -> None:
        """Wait for all processes; a collective on the host."""
        self.gather(None)

    def check_batch(self, batch_size: int, num_parts: int, *, key: str = "loader.batch_size") -> None:
        """Prove that a global batch can be cut into equal micro-batches for all processes.

        Args:
            batch_size: global, samples.
            num_parts: micro-batches of an optimizer step.
            key: of the batch size, for the message.

        Raises:
            UserError: it cannot; names the next size that can.
        """
        share = self.size * num_parts
        if batch_size % share:
            fitting = -(-batch_size // share) * share
            parts = f" in {num_parts} micro-batches each (train.accumulation)" if num_parts > 1 else ""
            raise UserError(
                f"{key} = {batch_size}: the global batch cannot be shared equally by {self.size} processes{parts}; "
                f"the next size that can is {fitting}: --set {key}={fitting}"
            )


class RunningMax:
    """The largest number of all processes, one call late, so that nobody waits for the all-reduce just begun.

    Every process must ask equally often; all then get the same answers.

    Args:
        world: the processes; alone, a call answers with its own number at once.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: tuple[Tensor, dist.Work | None] | None = None

    def ask(self, number: int) -> int:
        """Put in this process's number; return the largest of those put in at the call before, 0 at the first."""
        if self._world.size == 1:
            return number
        largest = self.finish()
        box = torch.tensor(number, dtype=torch.int64)
        self._asked = (box, dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True))
        return largest

    def finish(self) -> int:
        """Wait for what is under way; return the largest number that was put in."""
        if self._asked is None:
            return 0
        box, work = self._asked
        self._asked = None
        if work is not None:
            work.wait()
        return int(box)


_joined: World | None = None
_witness: Witness | None = None


def current_world() -> World:
    """Return the processes that this one has joined; one alone where it has joined none."""
    return _joined or World()


@contextmanager
def join_world() -> Iterator[World]:
    """Meet the other processes that torchrun started, and part from them at the end; alone, do nothing.

    Tensors on the CPU are summed by gloo, those on a GPU by NCCL. Inside another `join_world` it changes nothing.

    When a process fails, all end: see `unetfast.distributed.failures`.

    Raises:
        UserError: the environment is not torchrun's, or the others do not come within the time limit.
        ToldError: this process ends because of another one, or another one has said the same.
    """
    global _joined, _witness
    world = read_environment()
    if _joined is not None or world.size == 1:
        yield _joined or world
        return
    timeout = timedelta(seconds=_read_timeout_s())
    _witness = _meet(world, timeout)
    _joined = world
    try:
        with failing_together():
            _witness.introduce(world.gather(f"{socket.gethostname()}, process {os.getpid()}"))
            yield world
            world.barrier()  # nobody goes while the main process still writes, or holds the meeting point
        dist.destroy_process_group()  # not behind a failure: it could wait for those that are gone
    finally:
        _joined = _witness = None


@contextmanager
def failing_together() -> Iterator[None]:
    """Around work in which processes wait for each other: a failure is told to all, and to people by one.

    The closer to the failure the better: what tidies up behind it may wait for a GPU, and that for a process that is gone.

    Raises:
        RankError: a mistake or a lost process, for this process to say.
        ToldError: another process says it.
    """
    try:
        yield
    except (GeneratorExit, SystemExit):
        raise
    except BaseException as error:
        if _witness is None:
            raise
        told = _witness.tell(error)
        if torch.cuda.is_available():
            end_if_stuck("" if isinstance(told, ToldError) else f"{told}")
        if told is error:
            raise
        raise told from error


def read_environment() -> World:
    """Read torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; without them this process is alone.

    Raises:
        UserError: only some of them are set, or they contradict each other.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, but not {', '.join(missing)}: start the processes with "
            "`torchrun --nproc-per-node N -m unetfast train ...`, or unset WORLD_SIZE to train in one"
        )
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names[:4])
    except ValueError:
        rank = size = -1
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        told = ", ".join(f"{name}={os.environ[name]}" for name in names[:4])
        raise UserError(f"{told}: not what torchrun sets; start the processes with `torchrun --nproc-per-node N`")
    return World(rank, size, local_rank, local_size)


def _read_timeout_s() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: give seconds above 0")
    return seconds


def _meet(world: World, timeout: timedelta) -> Witness:
    # torch.distributed shows the first of these to no type checker; and there are builds of torch without them
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timeout))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = say_briefly(error)
        raise UserError(
            f"rank {world.rank} of {world.size} did not meet the others at {where} within {timeout.total_seconds():g} s "
            f"({reason})\n  start torchrun on every machine with the same --nnodes and --rdzv-endpoint, and let them reach "
            "each other (firewall; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network card)"
        ) from error
    return Witness(PrefixStore("unetfast", store), world.rank, world.size)


def even_out_buffers(module: nn.Module, world: World) -> None:
    """Average the running statistics of batch norm over all processes; a collective. Does not wait for the GPU.

    Without synchronised batch norm each process has seen its own part of each batch. Running statistics are moving averages,
    and averaging commutes with that: it does not matter how often or when it is done, up to rounding.
    """
    if world.size == 1:
        return
    running = [
        buffer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and not getattr(layer, "is_synchronized", False)
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    if not running:
        return
    averages = world.mean(torch.cat([buffer.detach().float() for buffer in running]))
    parts = torch.split(averages, [len(buffer) for buffer in running])
    for buffer, average in zip(running, parts, strict=True):
        buffer.copy_(average)
