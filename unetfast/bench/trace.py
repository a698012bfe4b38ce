"""Every operation of one training step: the arithmetic it does, the bytes it reads and writes, the time it takes.

The step is that of `train.step` on the run itself, seen operation by operation as torch dispatches them: forward, backward,
loss and scores of any module, uncompiled, since a compiled step has no layers. What a compiler would make of it is told by
fusion.py.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from unetfast.loader.batch import Batch
from unetfast.train.memory import free_memory, is_out_of_memory
from unetfast.train.run import Run
from unetfast.train.step import begin_step, compute_gradients, finish_step

_REPEATS = 3  # of a step; the median time of each operation is told

POINTWISE, REDUCTION, OPAQUE = "pointwise", "reduction", "opaque"

_KINDS = (  # the first word found in an operation's name says its kind
    ("convolution", "convolution"),
    ("mm", "matrix product"),
    ("batch_norm", "norm"),
    ("group_norm", "norm"),
    ("layer_norm", "norm"),
    ("relu", "activation"),
    ("threshold", "activation"),
    ("sigmoid", "activation"),
    ("gelu", "activation"),
    ("silu", "activation"),
    ("pool", "pooling"),
    ("upsample", "up-sampling"),
    ("dropout", "dropout"),
)
_KIND_OF = {"cat": "concatenation", "stack": "concatenation", "_to_copy": "cast", "clone": "copy", "copy_": "copy"}
# without torch's tag, and yet each pixel by itself, or a copy
_POINTWISE = {
    *("_to_copy", "clone", "copy_", "cat", "stack", "fill_", "zero_", "zeros", "ones", "full", "gather", "native_dropout"),
    *("_log_softmax", "_log_softmax_backward_data", "_softmax", "_softmax_backward_data"),
}
_REDUCTIONS = {
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "argmax",
    "any",
    "all",
    "var_mean",
    "nll_loss_forward",
    "nll_loss2d_forward",
}
_TRANSPOSED_AT = {"convolution": 6, "convolution_backward": 7}  # place of that argument
_NO_READ = {"fill_", "zero_", "copy_"}  # write their first argument without reading it
_NO_TRAFFIC = {"empty", "empty_like", "empty_strided", "new_empty", "device", "lift_fresh", "alias", "_unsafe_view"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A value in memory, or a part of one.

    Args:
        storage: number of its memory within the trace; negative where it stands for memory outside of it.
        version: how often that memory had been written before the value was there.
        offset: of the part, bytes.
        num_bytes: that are read or written.
    """

    storage: int
    version: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a step.

    Args:
        name: torch's, such as "convolution_backward".
        module: path in the network, such as "encoder.0.1"; "loss", "scores" or "update" outside of it.
        kind: convolution, transposed convolution, norm, activation, concatenation, pooling, ... for people.
        style: how a compiler may treat it: "pointwise", "reduction" (may end a chain of pointwise ones) or "opaque".
        backward: whether it computes gradients.
        flop: as torch's FlopCounterMode counts (a multiplication and an addition are two).
        dtype: of its arithmetic.
        level_hw: height and width of its largest feature map, pixels, without padding; None where it touches weights or
            statistics alone.
        reads: what it reads.
        second_reads: what its own kernels read a second time (norms: statistics first; convolutions: both gradients).
        writes: what it writes.
    """

    name: str
    module: str
    kind: str
    style: str
    backward: bool
    flop: int
    dtype: torch.dtype
    level_hw: tuple[int, int] | None
    reads: tuple[Piece, ...]
    second_reads: tuple[Piece, ...]
    writes: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that move when the operation runs by itself, as without a compiler."""
        return sum(piece.num_bytes for piece in (*self.reads, *self.second_reads, *self.writes))


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step's operations in order, its update of the weights last.

    Args:
        ops: all that move bytes.
        seconds: that each took, run by itself; the whole update stands at the optimizer's.
        flop: of the whole step, by torch's FlopCounterMode.
        forward_flop: of its forward pass.
        num_images: of the step.
    """

    ops: tuple[Op, ...]
    seconds: tuple[float, ...]
    flop: int
    forward_flop: int
    num_images: int


class NotTraceableError(Exception):
    """A step does not fit into memory uncompiled."""


def trace_step(run: Run, batch: Batch) -> StepTrace:
    """Trace a step. The run takes three on the way. On a GPU it waits after each operation.

    Raises:
        NotTraceableError: memory runs out, as it may where a compiled step just fits.
    """
    plain = replace(run, network=copy.copy(run.model))  # the same layers and weights; a copy is not compiled
    took: list[list[float]] = []
    for _ in range(_REPEATS):
        recorder, counter = _Recorder(plain, batch), FlopCounterMode(display=False)
        begin_step(run)
        loss, confusion_KK = _record(plain, batch, recorder, counter)
        took.append([*recorder.seconds, _time_update(run, batch, loss, confusion_KK)])
    # kernels may be chosen by values, and a step may so have other operations than the one before
    same = [times for times in took if len(times) == len(took[-1])]
    updates = tuple(_trace_update(run))
    seconds = [statistics.median(times) for times in zip(*same, strict=True)] + [0.0] * (len(updates) - 1)
    forward_flop = sum(op.flop for op in recorder.ops if not op.backward)
    return StepTrace((*recorder.ops, *updates), tuple(seconds), counter.get_total_flops(), forward_flop, len(batch.sample_ids))


def _record(run: Run, batch: Batch, recorder: _Recorder, counter: FlopCounterMode) -> tuple[Tensor, Tensor]:
    try:
        with recorder, counter:
            return compute_gradients(run, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside of `except`: the error's traceback holds the activations of the pass that failed
    run.optimizer.zero_grad(set_to_none=True)
    free_memory(run.device)
    raise NotTraceableError(f"out of memory on {run.device} where a step runs uncompiled")


def _time_update(run: Run, batch: Batch, loss: Tensor, confusion_KK: Tensor) -> float:
    _wait(run.device)
    began_s = time.perf_counter()
    finish_step(run, batch, loss, confusion_KK)
    _wait(run.device)
    return time.perf_counter() - began_s


def _trace_update(run: Run) -> Iterator[Op]:
    """Tell what the optimizer and the average of the weights move: their kernels read and write all tensors once."""
    weights = [weight for group in run.optimizer.param_groups for weight in group["params"]]
    states = [part for weight in weights for part in run.optimizer.state.get(weight, {}).values() if isinstance(part, Tensor)]
    weight_bytes, state_bytes = _sum_bytes(weights), _sum_bytes(states)
    dtype = weights[0].dtype
    # the gradients are read twice: for their norm, which says whether the step counts, and by the optimizer
    read, written = weight_bytes + state_bytes + 2 * weight_bytes, weight_bytes + state_bytes
    yield _update_op("optimizer", dtype, read, written, place=-1)
    if run.ema is not None:
        # of every weight the average and its share (ema.py); the shares are filled in anew
        yield _update_op("moving average", dtype, 3 * weight_bytes, 2 * weight_bytes, place=-3)


def _update_op(name: str, dtype: torch.dtype, read: int, written: int, *, place: int) -> Op:
    reads, writes = (Piece(place, 0, 0, read),), (Piece(place - 1, 0, 0, written),)
    return Op(name, "update", name, OPAQUE, False, 0, dtype, None, reads, (), writes)


def _sum_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Recorder(TorchDispatchMode):
    """Keeps every operation that torch dispatches, and times it.

    Args:
        run: whose step is seen.
        batch: of the step.
    """

    def __init__(self, run: Run, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.seconds: list[float] = []
        self._device = run.device
        # class name of an outermost module -> what paths in it begin with
        self._roots = {type(run.model).__name__: "", type(run.loss).__name__: "loss"}
        self._weight_shapes = {weight.shape for weight in run.model.parameters()}  # a tensor of such a shape is no feature map
        height, width = batch.mask_NHW.shape[-2:]
        self._image_hw = (int(height), int(width))
        self._modules = ModuleTracker()
        self._numbers: dict[int, int] = {}  # address of a storage -> its number
        self._versions: dict[int, int] = {}

    def __enter__(self) -> _Recorder:
        self._modules.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._modules.__exit__(*exc)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if func.is_view or name in _NO_TRAFFIC:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        changed = _changed(func, args, kwargs) if func._schema.is_mutable else []
        unread = changed[:1] if name in _NO_READ else []
        reads = self._pieces([tensor for tensor in given if not any(tensor is other for other in unread)])
        second = self._pieces(_read_twice(name, args))
        _wait(self._device)
        began_s = time.perf_counter()
        result = func(*args, **kwargs)
        _wait(self._device)
        took_s = time.perf_counter() - began_s
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        writes = self._note_writes(given, changed, results)
        if reads or writes:
            count = flop_registry.get(func._overloadpacket)
            flop = int(count(*args, **kwargs, out_val=result)) if count is not None else 0
            dtype = next((tensor.dtype for tensor in (*given, *results)), torch.float32)
            path, style = self._path(), _style(name, func)
            kind = path if path in ("loss", "scores") else _kind(name, args, style)
            hw = self._level([*given, *results], path)
            is_backward = self._modules.is_bw
            self.ops.append(Op(name, path, kind, style, is_backward, flop, dtype, hw, reads, second, writes))
            self.seconds.append(took_s)
        return result

    def _note_writes(self, given: Sequence[Tensor], changed: Sequence[Tensor], results: Sequence[Tensor]) -> tuple[Piece, ...]:
        """Give new results a number, and what was written in place its next version."""
        old = {tensor.untyped_storage()._cdata for tensor in given}
        fresh = [tensor for tensor in results if tensor.untyped_storage()._cdata not in old]
        for address in {tensor.untyped_storage()._cdata for tensor in fresh}:
            # an address may have been another tensor's before
            self._numbers[address] = len(self._versions)
            self._versions[len(self._versions)] = 0
        for number in {self._number(tensor) for tensor in changed}:
            self._versions[number] += 1
        return self._pieces([*changed, *fresh])

    def _level(self, tensors: Sequence[Tensor], path: str) -> tuple[int, int] | None:
        """Height and width of the largest feature map; of the image for what is padded, or has all pixels in a row."""
        hw = _find_level(tensors, self._weight_shapes)
        height, width = self._image_hw
        in_row = path == "scores" or (path == "loss" and hw is None)
        return self._image_hw if in_row or (hw is not None and hw[0] >= height and hw[1] >= width) else hw

    def _path(self) -> str:
        """Path of the innermost module at work."""
        deepest = max(self._modules.parents - {"Global"}, key=lambda name: (name.count("."), name), default="")
        root, _, rest = deepest.partition(".")
        prefix = self._roots.get(root)
        if prefix is None:
            return deepest or "scores"
        return prefix or rest or "network"

    def _number(self, tensor: Tensor) -> int:
        number = self._numbers.setdefault(tensor.untyped_storage()._cdata, len(self._versions))
        self._versions.setdefault(number, 0)
        return number

    def _pieces(self, tensors: Sequence[Tensor]) -> tuple[Piece, ...]:
        pieces: dict[Piece, None] = {}  # in order, each once
        for tensor in tensors:
            size = tensor.element_size()
            # an expanded tensor has more elements than memory
            extent = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
            num_bytes = size * min(tensor.numel(), extent) if tensor.numel() else 0
            number = self._number(tensor)
            piece = Piece(number, self._versions[number], size * int(tensor.storage_offset()), num_bytes)
            pieces[piece] = None
        return tuple(piece for piece in pieces if piece.num_bytes)


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors that an operation writes in place."""
    found: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _read_twice(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if name == "convolution_backward":  # one kernel for each gradient that is wanted
        wanted = args[-1]
        return tensors[:1] if wanted[0] and wanted[1] else []
    if "batch_norm" in name or "group_norm" in name or "layer_norm" in name:
        largest = max(tensor.numel() for tensor in tensors)
        return [tensor for tensor in tensors if tensor.numel() == largest]
    return []


def _kind(name: str, args: tuple[Any, ...], style: str) -> str:
    if name in _KIND_OF:
        return _KIND_OF[name]
    kind = next((kind for word, kind in _KINDS if word in name), style if style != OPAQUE else "other")
    is_transposed = name in _TRANSPOSED_AT and args[_TRANSPOSED_AT[name]]
    return "transposed convolution" if is_transposed else kind


def _style(name: str, func: Any) -> str:
    if name in _REDUCTIONS:
        return REDUCTION
    return POINTWISE if name in _POINTWISE or torch.Tag.pointwise in func.tags else OPAQUE


def _find_level(tensors: Sequence[Tensor], weight_shapes: set[torch.Size]) -> tuple[int, int] | None:
    """Height and width of the largest feature map among tensors: of images (N, C, H, W), of class ids (N, H, W)."""
    maps = [tensor for tensor in tensors if tensor.ndim in (3, 4) and tensor.shape not in weight_shapes]
    found = [(int(tensor.shape[-2]), int(tensor.shape[-1])) for tensor in maps if tensor.shape[-2] > 1 or tensor.shape[-1] > 1]
    return max(found, key=lambda hw: hw[0] * hw[1], default=None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
