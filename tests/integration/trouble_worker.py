"""One of two processes that train together, one of which has trouble of its own.

    torchrun --nproc-per-node 2 trouble_worker.py SHARDS OUT CASES_JSON

As distributed_worker.py, with two more keys of a case: `spoils` ([rank, pass]: that training pass's loss is nan there) and
`full` ([rank, pass]: memory runs out there). While `loader.batch_size` is "auto", four images fit on rank 0 and two on rank 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distributed_worker
import torch
from torch import Tensor

from unetfast.distributed import current_world
from unetfast.model.losses import SegmentationLoss
from unetfast.train.autobatch import Probe, Trial

run_case = distributed_worker.run_case
forward = SegmentationLoss.forward


def run_troubled_case(shards: Path, out: Path, case: dict[str, Any]) -> None:
    rank, passes = current_world().rank, [0]

    def troubled(self: SegmentationLoss, logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
        loss = forward(self, logits_NKHW, mask_NHW)
        if not torch.is_grad_enabled():
            return loss
        passes[0] += 1
        if [rank, passes[0]] == case.get("full"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss * float("nan") if [rank, passes[0]] == case.get("spoils") else loss

    SegmentationLoss.forward = troubled  # type: ignore[method-assign]
    run_case(shards, out, case)


def try_size(_probe: Probe, num_images: int) -> Trial | None:
    return Trial(num_images, float(num_images), num_images) if num_images <= (2 if current_world().rank else 4) else None


if __name__ == "__main__":
    distributed_worker.run_case = run_troubled_case
    Probe.__call__ = try_size  # type: ignore[method-assign]
    distributed_worker.main()
