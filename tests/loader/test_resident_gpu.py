"""The resident backend's kernels as a GPU runs them: built for one on any machine, and tried where there is one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import loader_reference as reference
import pytest
import torch
from loader_backends import find_backend
from loader_batches import ALL, keep
from loader_shards import make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.reader import open_shards
from unetfast.loader.build import build_loader

pytest.importorskip("triton", reason="PyTorch brings Triton on Linux alone")

CPU = torch.device("cpu")
SIZE_HW = (24, 32)
FLIPS = {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}}
BLOCK = {"COLUMNS": 32, "BLOCK": 256}


def build_for_hopper(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: Any) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = types | dict.fromkeys(constants, "constexpr")
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32), options=options
    )


@pytest.fixture
def compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize(("mask_bits", "mask_type"), [(1, "*u8"), (16, "*i16")])
def test_the_last_steps_are_built_for_a_gpu(compiled_anew: None, mask_bits: int, mask_type: str) -> None:
    from unetfast.loader.resident_kernel import EXACT, _finish

    types = {"source": "*u8", "masks": mask_type, "numbers": "*fp64", "out_image": "*u8", "out_mask": mask_type}
    types |= dict.fromkeys(("height", "width", "ignore_index"), "i32")
    built = build_for_hopper(_finish, types, {**BLOCK, "ARE_RESIZED": mask_bits == 1, "MASK_BITS": mask_bits}, **EXACT)
    assert ".target sm_90" in built.asm["ptx"]
    assert "st.global.b8" in built.asm["ptx"]
    assert "fma.rn" not in built.asm["ptx"]  # positions are rounded as on the host


def test_the_resize_is_built_for_a_gpu(compiled_anew: None) -> None:
    from unetfast.loader.resident_kernel import _resize

    types = {"images": "*u8", "numbers": "*fp64", "out": "*u8", "out_height": "i32", "out_width": "i32"}
    built = build_for_hopper(_resize, types, BLOCK)
    assert ".target sm_90" in built.asm["ptx"]
    assert "local" not in built.asm["ptx"].partition(".entry")[2]  # nothing is spilled


@pytest.mark.gpu
@pytest.mark.parametrize("flip", ["hflip", "vflip"])
def test_on_a_gpu_a_flipped_mask_keeps_pixels_that_lie_on_an_edge(flip: str, tmp_path: Path) -> None:
    find_backend("cpu", "cuda")
    made = [make_sample(i, (128, 128), kind="lz4") for i in range(4)]
    # of the 160 positions of a flipped row 16 fall on an edge between two of the 128 pixels
    section = {"size_hw": (160, 160), "batch_size": 4, "threads": 1, "cache": "gpu"}
    config = build_config({"loader": section, "augment": {flip: {"prob": 1.0}}})
    on_host = build_config({"loader": {**section, "cache": "off", "backend": "cpu"}, "augment": {flip: {"prob": 1.0}}})
    device = torch.device("cuda", torch.cuda.current_device())
    with (
        open_shards(write_shards(tmp_path / "shards", made)).split("train") as reader,
        build_loader(reader, config, training=True, device=device) as loader,
        build_loader(reader, on_host, training=True, device=CPU) as cpu,
    ):
        found, expected = keep(loader, 1)[0], keep(cpu, 1)[0]
    assert torch.equal(found.mask.cpu(), expected.mask)
    assert torch.equal(found.image.cpu(), expected.image)


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [FLIPS, ALL], ids=["flips", "all"])
def test_on_a_gpu_batches_are_made_without_a_wait(shards: Path, augment: dict[str, Any]) -> None:
    find_backend("cpu", "cuda")
    section = {"size_hw": SIZE_HW, "batch_size": 4, "threads": 2, "cache": "gpu"}
    config = build_config({"loader": section, "augment": augment})
    reader = open_shards(shards).split("train")
    device = torch.device("cuda", torch.cuda.current_device())
    on_host = build_config({"loader": {**section, "cache": "off", "backend": "cpu"}, "augment": augment})
    with (
        build_loader(reader, config, training=True, device=device) as loader,
        build_loader(reader, on_host, training=True, device=CPU) as cpu,
    ):
        assert loader.backend == "resident"
        batches = iter(loader)
        next(batches)  # compiles the kernels
        for _ in itertools.islice(cpu, 1):
            pass
        torch.cuda.set_sync_debug_mode("error")
        try:
            kept = [next(batches) for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for batch, expected in zip(kept, keep(cpu, 3), strict=True):
            assert batch.image_NCHW.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(batch.mask_NHW.cpu(), expected.mask)
            for one, other in zip(batch.image_NCHW.cpu().numpy(), expected.image.numpy(), strict=True):
                assert reference.psnr(one, other) >= 45
    reader.close()
