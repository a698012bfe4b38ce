"""The sides of the loader benchmark: what their names mean, and how each is built in its own process.

    cpu        our CPU backend, decode = exact
    cpu-fast   the same with decode = fast
    dali       our DALI backend
    resident   the data set on the GPU, loader.cache = gpu
    yardstick  DALI as its own examples use it (yardstick.py)

Settings follow a name behind colons: `dali:hw_decoder_load=0.5:inflate=gpu`. A key without a dot is of the section [dali].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side import BuiltSide

from unetfast.config import Config, apply_overrides, build_config
from unetfast.errors import UserError

_BASES = {
    "cpu": ["loader.backend=cpu", "loader.decode=exact"],
    "cpu-fast": ["loader.backend=cpu", "loader.decode=fast"],
    "dali": ["loader.backend=dali", "loader.decode=exact"],
    "resident": ["loader.cache=gpu", "loader.decode=exact"],
    "yardstick": [],
}
_PREFETCHED_BY_DALI = 4  # batches: the reader's queue and the pipeline's


@dataclass(frozen=True, slots=True)
class SidePlan:
    """One side, before it is built; travels to its process.

    Args:
        name: as asked for.
        settings: what it changes in the config, `key=value`.
        config: resolved.
        shards: folder it reads.
        device: "cpu", "cuda" or "cuda:N".
    """

    name: str
    settings: list[str]
    config: Config
    shards: Path
    device: str

    @property
    def build(self) -> Callable[[SidePlan], BuiltSide]:
        return _build_yardstick if self.name.startswith("yardstick") else _build_loader


def plan_sides(
    names: list[str], tree: dict[str, Any], overrides: list[str], *, shards: Path, png_shards: Path | None, device: str
) -> list[SidePlan]:
    """Turn names into plans.

    Args:
        names: of sides, with their settings.
        tree: config that all share.
        overrides: on top of it, `key=value`.
        shards: folder that our loaders read.
        png_shards: the same samples with PNG masks, for the yardstick.
        device: of all sides.

    Raises:
        UserError: a name or setting does not exist, or the yardstick has no shards.
    """
    plans = []
    for name in dict.fromkeys(names):
        base, *variant = name.split(":")
        if base not in _BASES:
            raise UserError(f"--sides {name}: no side {base!r}; there are {', '.join(_BASES)}")
        settings = _BASES[base] + [setting if "." in setting.split("=")[0] else f"dali.{setting}" for setting in variant]
        config = build_config(apply_overrides(tree, overrides + settings), where=f"side {name}")
        if base == "yardstick" and png_shards is None:
            raise UserError("side yardstick: DALI's reader wants PNG masks; name such shards by --png-shards")
        folder = png_shards if base == "yardstick" and png_shards is not None else shards
        plans.append(SidePlan(name, settings, config, folder, device))
    return plans


def _build_loader(plan: SidePlan) -> BuiltSide:
    from unetfast.data.reader import open_shards
    from unetfast.device import resolve_device
    from unetfast.loader.build import build_loader

    device = resolve_device(plan.device)
    reader = open_shards(plan.shards).split("train", checksum=plan.config.loader.checksum)
    loader = build_loader(reader, plan.config, training=True, device=device)

    def batches() -> Iterator[tuple[Any, ...]]:
        for batch in loader:
            yield batch.image_NCHW, batch.mask_NHW

    def close() -> None:
        loader.close()
        reader.close()

    stream = batches()
    facts = {"backend": loader.backend, "batch": [_describe(tensor) for tensor in next(stream)]}
    return BuiltSide(stream, device, facts, close, lead_in=plan.config.loader.prefetch_batches + 2)


def _build_yardstick(plan: SidePlan) -> BuiltSide:
    from yardstick import build_yardstick

    from unetfast.device import num_usable_cores, resolve_device

    device = resolve_device(plan.device)
    loader = plan.config.loader
    iterator = build_yardstick(
        plan.shards / "train",
        plan.config.augment,
        size_hw=loader.size_hw,
        batch_size=loader.batch_size,
        num_threads=loader.threads or num_usable_cores(),
        device_id=device.index if device.type == "cuda" else None,
        seed=plan.config.train.seed,
    )

    def batches() -> Iterator[tuple[Any, ...]]:
        while True:
            for outputs in iterator:
                yield outputs[0]["image"].permute(0, 3, 1, 2), outputs[0]["mask"][..., 0]

    stream = batches()
    facts = {"backend": "dali's own reader", "batch": [_describe(tensor) for tensor in next(stream)]}
    return BuiltSide(stream, device, facts, lambda: None, lead_in=_PREFETCHED_BY_DALI)


def _describe(tensor: Any) -> str:
    """Say type, shape, device and layout of a tensor, so that a record shows what was made."""
    layout = ""
    if tensor.ndim == 4:
        import torch

        layout = ", channels_last" if tensor.is_contiguous(memory_format=torch.channels_last) else ", not channels_last"
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))} on {tensor.device}{layout}"
