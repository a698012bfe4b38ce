"""A run's network compiled: one static graph, launched kernel by kernel or replayed as a CUDA graph.

`train.compile = "graphs"` records the kernels of a forward and of a backward pass once and replays each record by one call: it
pays where a step is short (small batches, small images) and the host cannot start kernels as fast as the GPU ends them. A
record has its memory to itself, so gradients cannot be added up in it from one pass to the next: there is no accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from unetfast.compilecache import keep_compiled
from unetfast.compiler import allow_many_graphs, compiler_errors, say_why
from unetfast.config import Config
from unetfast.distributed import World
from unetfast.errors import UserError
from unetfast.model.network import Network
from unetfast.train.memory import is_out_of_memory

GRAPHS = "graphs"
_REMEDY = "take --set train.compile=on"


def compile_network(model: Network, config: Config, device: torch.device, world: World) -> int:
    """Compile a network in place, as `train.compile` asks for; its state_dict keeps its names.

    Args:
        model: on its final device.
        config: of a run that compiles.
        device: of the model.
        world: the processes that train together.

    Returns:
        Passes that torch has run without CUDA graphs until now, where they are asked for; see `warn_of_skipped_graphs`.

    Raises:
        UserError: `train.compile = "graphs"`, and these passes cannot be recorded.
    """
    mode: dict[str, Any] = {}
    if config.train.compile == GRAPHS:
        check_graphs(config, device, world)
        mode["mode"] = "reduce-overhead"  # TorchInductor's name for CUDA graphs
    keep_compiled()
    allow_many_graphs()
    # a factory's module may do what cannot be compiled; then only what can is
    model.compile(fullgraph=not config.model.factory, dynamic=False, **mode)
    return count_skipped_graphs(config)


def check_graphs(config: Config, device: torch.device, world: World) -> None:
    """Refuse CUDA graphs where they cannot be had; the config itself refuses them with accumulation.

    Raises:
        UserError: there is no GPU, the network is of the user's own, or several processes train.
    """
    asked = 'train.compile = "graphs"'
    if device.type != "cuda":
        raise UserError(f"{asked} replays CUDA graphs and needs a GPU, this run is on the {device.type}; {_REMEDY}")
    if config.model.factory:
        raise UserError(
            f"{asked} wants the network as one graph, which is not sure of what {config.model.factory} builds "
            f"(model.factory); {_REMEDY}"
        )
    if world.size > 1:
        raise UserError(f"{asked} is for one process, and {world.size} train together; {_REMEDY}")


def check_parts(config: Config, accumulation: int) -> None:
    """Refuse to go on with the smaller micro-batches of a run whose memory ran out, where CUDA graphs are asked for.

    Raises:
        UserError: gradients would be accumulated.
    """
    if config.train.compile == GRAPHS and accumulation > 1:
        raise UserError(
            f'train.compile = "graphs" has no accumulation, and this run cuts its batches into {accumulation} parts, since its '
            f"memory ran out; {_REMEDY}"
        )


@contextmanager
def explaining_compiler(compiled: bool) -> Iterator[None]:
    """Say in a line what a compiler's failure inside the block means, such as that there is no C++ compiler.

    torch compiles at the first pass of a size: in a run that is a picture before the first step, a step, or a validation pass.
    Memory that runs out while it does so stays what it is.

    Args:
        compiled: whether the network that the block calls is; errors of other networks stay as they are.

    Raises:
        UserError: the error is one of torch.compile, or of the compiler that it hands its graphs to.
    """
    try:
        yield
    except Exception as error:  # the compiler's are not all RuntimeErrors
        if compiled and not is_out_of_memory(error) and isinstance(error, compiler_errors()):
            raise UserError(
                f"train.compile: torch cannot compile the network ({say_why(error)}); take --set train.compile=off"
            ) from error
        raise


def count_skipped_graphs(config: Config) -> int:
    """Return how many passes torch has run without CUDA graphs in this process, by any network; 0 where none are asked for."""
    if config.train.compile != GRAPHS:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def warn_of_skipped_graphs(config: Config, num_before: int) -> str | None:
    """Say, once steps were taken, whether torch ran passes of a run with CUDA graphs without them; else None.

    Args:
        config: of the run.
        num_before: of `compile_network`: those are other networks'.
    """
    if count_skipped_graphs(config) <= num_before:
        return None
    return (
        'train.compile = "graphs": torch runs some passes without CUDA graphs; TORCH_LOGS=cudagraphs says why, and '
        "--set train.compile=on leaves them out"
    )
