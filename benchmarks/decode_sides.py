"""Other ways to decode a split's images for training, as sides of gpu_decode.py: the image alone, no mask and no augmentation.

    torchvision-cuda   torchvision.io.decode_jpeg of a whole batch on the GPU (nvJPEG), then an antialiased resize there
    workers-N          a torch DataLoader with N worker processes: torchvision on the CPU, antialiased resize, pinned memory

Both read the very members that our loader reads, without checking them, and do less: a ratio against them is on their side.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side import BuiltSide

from unetfast.errors import UserError

_PREFETCHED = 2  # batches of each worker: torch's default
_READ_AHEAD = 2  # batches whose bytes are read while one is decoded


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One side, before it is built; travels to its process.

    Args:
        name: "torchvision-cuda" or "workers-N".
        shards: folder that it reads.
        device: "cpu", "cuda" or "cuda:N"; torchvision-cuda decodes there.
        size_hw: height and width of a batch, pixels.
        batch_size: images.
        seed: of the order.
        settings: none; there for the record.
    """

    name: str
    shards: Path
    device: str
    size_hw: tuple[int, int]
    batch_size: int
    seed: int = 0
    settings: tuple[str, ...] = ()

    @property
    def build(self) -> Callable[[DecodePlan], BuiltSide]:
        if self.name == "torchvision-cuda":
            return build_torchvision
        if self.name.startswith("workers-") and self.name.removeprefix("workers-").isdecimal():
            return build_workers
        raise UserError(f"--sides {self.name}: no such side; there are torchvision-cuda and workers-N")


def iter_orders(num_samples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of sample ids for ever, epoch after epoch, each shuffled."""
    draw = random.Random(seed)

    def samples() -> Iterator[int]:
        while True:
            yield from draw.sample(range(num_samples), num_samples)

    stream = samples()
    while True:
        yield list(itertools.islice(stream, batch_size))


def build_torchvision(plan: DecodePlan) -> BuiltSide:
    """Decode batches of JPEG members on the device.

    Raises:
        UserError: torchvision is missing, or the split holds images that are no JPEGs.
    """
    import numpy as np
    import torch

    from unetfast.data.reader import open_shards
    from unetfast.device import resolve_device

    decode_jpeg, mode = _import_torchvision()
    device = resolve_device(plan.device)
    reader = open_shards(plan.shards).split("train", checksum=False)
    if any(reader.image_codec(sample) != "jpeg" for sample in range(reader.num_samples)):
        raise UserError(f"{plan.name}: {plan.shards} holds images that are no JPEGs")
    orders = iter_orders(reader.num_samples, plan.batch_size, plan.seed)
    pool = ThreadPoolExecutor(1)

    def read(samples: list[int]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.frombuffer(reader.read_image(sample), np.uint8).copy()) for sample in samples]

    def batches() -> Iterator[tuple[Any, ...]]:
        under_way = [pool.submit(read, next(orders)) for _ in range(_READ_AHEAD)]
        while True:
            members = under_way.pop(0).result()
            under_way.append(pool.submit(read, next(orders)))
            decoded = decode_jpeg(members, mode=mode, device=device)
            yield (torch.stack([_resize(image_CHW, plan.size_hw) for image_CHW in decoded]),)

    def close() -> None:
        pool.shutdown(wait=True, cancel_futures=True)
        reader.close()

    return _finish(batches(), device, close, lead_in=_READ_AHEAD + 1)


def build_workers(plan: DecodePlan) -> BuiltSide:
    """Decode on worker processes, and copy batches to the device from pinned memory."""
    import torch
    from torch.utils.data import DataLoader

    from unetfast.device import resolve_device

    _import_torchvision()
    device = resolve_device(plan.device)
    num_workers = int(plan.name.removeprefix("workers-"))
    torch.set_num_threads(1)
    dataset = _Members(plan)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_EndlessBatches(len(dataset), plan.batch_size, plan.seed),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=_PREFETCHED if num_workers else None,
        persistent_workers=num_workers > 0,
    )
    stream = iter(loader)

    def close() -> None:
        if num_workers:
            stream._shutdown_workers()  # type: ignore[attr-defined]  # what its __del__ does, now

    copied = ((image_NCHW.to(device, non_blocking=True),) for image_NCHW in stream)
    return _finish(copied, device, close, lead_in=_PREFETCHED * num_workers + 1, at_once=max(1, num_workers))


class _EndlessBatches:
    """A batch sampler whose epochs have no seam.

    Args:
        num_samples: of an epoch.
        batch_size: images.
        seed: of the orders.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self._arguments = (num_samples, batch_size, seed)

    def __iter__(self) -> Iterator[list[int]]:
        return iter_orders(*self._arguments)


class _Members:
    """A data set of decoded, resized images; opens the shards anew in each worker."""

    def __init__(self, plan: DecodePlan) -> None:
        self._plan = plan
        self._reader: Any = None

    def __len__(self) -> int:
        return int(self._open().num_samples)

    def __getitem__(self, sample: int) -> Any:
        import numpy as np
        import torch

        decode_jpeg, mode = _import_torchvision()
        member = torch.from_numpy(np.frombuffer(self._open().read_image(sample), np.uint8).copy())
        return _resize(decode_jpeg(member, mode=mode), self._plan.size_hw)

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": self._plan, "_reader": None}

    def _open(self) -> Any:
        if self._reader is None:
            from unetfast.data.reader import open_shards

            self._reader = open_shards(self._plan.shards).split("train", checksum=False)
        return self._reader


def _import_torchvision() -> tuple[Any, Any]:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, OSError) as error:
        raise UserError(f"torchvision cannot be imported ({error}); it stands in benchmarks/peers.txt") from None
    return decode_jpeg, ImageReadMode.RGB


def _resize(image_CHW: Any, size_hw: tuple[int, int]) -> Any:
    """Resize bytes with antialiasing; on a GPU, where torch has no such kernel for bytes, in float32."""
    import torch
    import torch.nn.functional as F

    on_host = image_CHW.device.type == "cpu"
    pixels_NCHW = image_CHW[None] if on_host else image_CHW[None].float()
    resized_NCHW = F.interpolate(pixels_NCHW, size=size_hw, mode="bilinear", antialias=True)
    return (resized_NCHW if on_host else resized_NCHW.round_().clamp_(0, 255).to(torch.uint8))[0]


def _finish(stream: Iterator[Any], device: Any, close: Callable[[], None], *, lead_in: int, at_once: int = 1) -> BuiltSide:
    first = next(stream)[0]
    facts = {"batch": [f"{str(first.dtype).removeprefix('torch.')} {'x'.join(map(str, first.shape))} on {first.device}"]}
    return BuiltSide(stream, device, facts, close, lead_in, at_once)
