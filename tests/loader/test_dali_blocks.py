"""The way of LZ4 blocks through the pipeline. Only a GPU inflates them, so here the inflated rows are fed in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_batches import ALL
from loader_shards import make_labels, make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.loader.build import build_loader
from unetfast.loader.encoded import EncodedSample, FeedPlan, block_inputs, number_inputs
from unetfast.loader.lz4blocks import BLOCK_BYTES
from unetfast.loader.stream import SampleStream

pytestmark = pytest.mark.dali

SIZES = [(24, 32), (150, 201), (61, 47), (260, 340), (33, 9), (130, 170)]  # of one block and of several


def inflated_rows(data: bytes) -> np.ndarray:
    """What an inflater leaves: a row of 64 KiB for each block, rubbish behind the end."""
    rows = np.full(-(-len(data) // BLOCK_BYTES) * BLOCK_BYTES, 0xEE, dtype=np.uint8)
    rows[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return rows.reshape(-1, BLOCK_BYTES)


@pytest.mark.parametrize(("num_classes", "packed"), [(2, True), (6, False), (300, False)])
def test_blocks_become_the_pixels_of_the_cpu_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, packed: bool
) -> None:
    dali = pytest.importorskip("unetfast.loader.dali", reason="needs the extra dali")
    labels = make_labels(num_classes, has_ignore=not packed)
    made = [make_sample(i, hw, kind="lz4", labels=labels) for i, hw in enumerate(SIZES)]
    write_shards(tmp_path / "shards", made, labels=labels)
    reader = open_shards(tmp_path / "shards").split("train")
    target_hw, count, cpu = (40, 56), 12, torch.device("cpu")
    config = build_config(
        {"loader": {"size_hw": target_hw, "batch_size": count, "backend": "cpu", "threads": 1}, "augment": ALL}
    )
    with build_loader(reader, config, training=True, device=cpu) as loader:
        expected = next(iter(loader))
        plan = SampleStream(reader, config, training=True, target_hw=target_hw, batch_size=count).plan(0)
        assert plan is not None
        mask_bytes = 2 if num_classes > 255 else 1
        feed = FeedPlan("blocks", "blocks", packed=packed, mask_bytes=mask_bytes, region=False, warp=True, color=True)

        def feed_rows(name: str) -> Any:
            rows = dali.fn.external_source(name=name, ndim=2, dtype=dali.types.UINT8)
            sizes = dali.fn.external_source(name=f"{name}_blocks", ndim=1, dtype=dali.types.INT32)
            return rows | dali.fn.cast(dali.fn.reductions.sum(sizes) * 0, dtype=dali.types.UINT8)

        monkeypatch.setattr(dali, "_inflate_blocks", feed_rows)
        site = dali.DaliSite(cpu, 1, target_hw, (260, 340), labels.ignore_index, config.dali)
        samples = []
        for sample_id in plan.places.sample_ids.tolist():
            ids = made[sample_id].mask
            mask = np.packbits(ids.astype(np.uint8), axis=1) if packed else ids
            rows = [inflated_rows(np.ascontiguousarray(pixels).tobytes()) for pixels in (made[sample_id].image, mask)]
            sizes = [np.full(len(part), BLOCK_BYTES, dtype=np.int32) for part in rows]
            samples.append(EncodedSample(rows[0], sizes[0], rows[1], sizes[1]))
        stored_hw = np.array([made[i].mask.shape for i in plan.places.sample_ids])
        graph = dali.DaliGraph(count, feed, site)
        numbers = number_inputs(plan.augmentation, stored_hw, target_hw, feed)
        graph.schedule(samples, numbers | block_inputs(plan.augmentation, stored_hw, feed))
        image_NHWC, mask_NHW = graph.take()
        found = mask_NHW.view(torch.uint16) if mask_bytes == 2 else mask_NHW
        assert torch.equal(found, expected.mask_NHW)
        error = (image_NHWC.permute(0, 3, 1, 2).double() - expected.image_NCHW.double()).square().mean(dim=(1, 2, 3))
        assert float(10 * torch.log10(255**2 / error.max())) >= 45


def test_inflating_on_a_gpu_wants_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("unetfast.loader.dali", reason="needs the extra dali")
    write_shards(tmp_path / "shards", [make_sample(0, (24, 32), kind="lz4")])
    config = build_config({"loader": {"backend": "dali"}, "dali": {"inflate": "gpu"}})
    reader = open_shards(tmp_path / "shards").split("train")
    with pytest.raises(UserError, match=r"--set dali\.inflate=host"):
        build_loader(reader, config, training=True, device=torch.device("cpu"))
