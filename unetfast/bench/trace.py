"""Every operation of one training step: the arithmetic it does, the bytes it reads and writes. Nothing is computed.

The step is `train.step.compute_gradients` itself, on fake tensors (shapes, strides and dtypes, no memory) and a copy of the
run's network and loss. So forward, backward, loss and scores of any module are seen, at the price of no step, and neither
weights nor running statistics change. What a compiler would make of the step is another question: fusion.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from unetfast.loader.batch import Batch
from unetfast.train.run import Run
from unetfast.train.step import compute_gradients

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
        flop: of the whole step, by torch's FlopCounterMode.
        forward_flop: of its forward pass.
        num_images: of the step.
    """

    ops: tuple[Op, ...]
    flop: int
    forward_flop: int
    num_images: int


class NotTraceableError(Exception):
    """A network does not run on fake tensors: it looks at values on its way, or has kernels of which torch knows no shapes."""


def trace_step(run: Run, batch: Batch) -> StepTrace:
    """Trace one step of a run that has taken at least one (then its optimizer has its state).

    Raises:
        NotTraceableError: says why.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_run, weight_shapes = _fake(run, mode)
    counter = FlopCounterMode(display=False)
    height, width = batch.mask_NHW.shape[-2:]
    roots = {type(run.model).__name__: "", type(run.loss).__name__: "loss"}
    recorder = _Recorder(roots, weight_shapes, image_hw=(int(height), int(width)))
    try:
        fake_batch = replace(batch, image_NCHW=mode.from_tensor(batch.image_NCHW), mask_NHW=mode.from_tensor(batch.mask_NHW))
        with mode, recorder, counter:
            compute_gradients(fake_run, fake_batch)
    except Exception as error:
        raise NotTraceableError(
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error
    forward_flop = sum(op.flop for op in recorder.ops if not op.backward)
    ops = (*recorder.ops, *_trace_update(run))
    return StepTrace(ops, counter.get_total_flops(), forward_flop, len(batch.sample_ids))


def _fake(run: Run, mode: FakeTensorMode) -> tuple[Run, set[torch.Size]]:
    """Copy network and loss onto fake tensors; the copy is not compiled."""
    tensors = [tensor for module in (run.model, run.loss) for tensor in (*module.parameters(), *module.buffers())]
    memo: dict[int, Any] = {id(tensor): mode.from_tensor(tensor) for tensor in tensors}
    memo[id(run.world)] = run.world
    model, loss = copy.deepcopy(run.model, memo), copy.deepcopy(run.loss, memo)
    # a fresh one, since the run's own keeps its scale on the device; scaling does nothing that counts here
    scaler = torch.amp.GradScaler(run.device.type, enabled=False)
    weight_shapes = {parameter.shape for parameter in run.model.parameters()}
    return replace(run, model=model.train(), network=model, loss=loss, scaler=scaler), weight_shapes


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
    """Keeps every operation that torch dispatches.

    Args:
        roots: class name of an outermost module -> what paths in it begin with.
        weight_shapes: of the parameters: a tensor of such a shape is no feature map.
        image_hw: height and width of the images, pixels.
    """

    def __init__(self, roots: dict[str, str], weight_shapes: set[torch.Size], *, image_hw: tuple[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self._roots = roots
        self._weight_shapes = weight_shapes
        self._image_hw = image_hw
        self._modules = ModuleTracker()
        self._storages: dict[int, tuple[int, Any]] = {}  # kept, so that no address is used twice
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
        changed = [] if not func._schema.is_mutable else _changed(func, args, kwargs)
        unread = changed[:1] if name in _NO_READ else []
        reads = self._pieces([tensor for tensor in given if not any(tensor is other for other in unread)])
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        written = [*changed, *(tensor for tensor in results if not any(tensor is other for other in changed))]
        for storage in {self._storage(tensor) for tensor in written}:
            self._versions[storage] = self._versions.get(storage, -1) + 1
        writes = self._pieces(written)
        if reads or writes:
            second = self._pieces(_read_twice(name, args))
            count = flop_registry.get(func._overloadpacket)
            flop = int(count(*args, **kwargs, out_val=result)) if count is not None else 0
            dtype = next((tensor.dtype for tensor in (*given, *results)), torch.float32)
            path = self._path()
            style = _style(name, func)
            kind = path if path in ("loss", "scores") else _kind(name, args, style)
            hw = _find_level([*given, *results], self._weight_shapes)
            # pixels of all images in a row (scores, losses), or padded ones
            in_row = path == "scores" or (path == "loss" and hw is None)
            if in_row or (hw is not None and hw[0] >= self._image_hw[0] and hw[1] >= self._image_hw[1]):
                hw = self._image_hw
            is_backward = self._modules.is_bw
            self.ops.append(Op(name, path, kind, style, is_backward, flop, dtype, hw, reads, second, writes))
        return result

    def _path(self) -> str:
        """Path of the innermost module at work."""
        deepest = max(self._modules.parents - {"Global"}, key=lambda name: (name.count("."), name), default="")
        root, _, rest = deepest.partition(".")
        prefix = self._roots.get(root)
        if prefix is None:
            return deepest or "scores"
        return prefix or rest or "network"

    def _storage(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        return self._storages.setdefault(storage._cdata, (len(self._storages), storage))[0]

    def _pieces(self, tensors: Sequence[Tensor]) -> tuple[Piece, ...]:
        pieces: dict[Piece, None] = {}  # in order, each once
        for tensor in tensors:
            size = tensor.element_size()
            # an expanded tensor has more elements than memory
            extent = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
            num_bytes = size * min(tensor.numel(), extent) if tensor.numel() else 0
            number = self._storage(tensor)
            piece = Piece(number, self._versions.setdefault(number, 0), size * int(tensor.storage_offset()), num_bytes)
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
