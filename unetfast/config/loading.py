"""How shards become batches: loader, DALI, order."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator

from unetfast.config.section import Section, SizeHW

AUTO_BATCH_SIZE = 0  # what `loader.batch_size = "auto"` is until a probing run has found the number


class LoaderConfig(Section):
    """How shards become batches."""

    backend: Literal["auto", "dali", "cpu"] = "auto"
    size_hw: SizeHW = (256, 256)  # height, width of a training batch, pixels
    batch_size: int = Field(16, ge=0)  # global: over all ranks, before accumulation; "auto" (0): found by a probing run
    threads: int = Field(0, ge=0)  # 0: all cores this process may use
    prefetch_batches: int = Field(2, ge=1, le=64)
    decode: Literal["exact", "fast", "full"] = "exact"  # see docs/architecture.md, "What a pixel is"
    sampler: Literal["shuffle", "sequential", "balanced"] = "shuffle"
    on_bad: Literal["error", "skip"] = "error"
    checksum: bool = True  # test every member's xxh3 before it is decoded
    cache: Literal["off", "ram", "gpu"] = "off"  # where pixels stay that were decoded once
    cache_mib: int = Field(0, ge=0)  # most memory that the cache takes; 0: half of what is free

    @field_validator("batch_size", mode="before")
    @classmethod
    def _read_auto(cls, given: Any) -> Any:
        if given == AUTO_BATCH_SIZE:
            raise ValueError('loader.batch_size = 0: must be greater than 0, or "auto"')
        return AUTO_BATCH_SIZE if given == "auto" else given

    @field_serializer("batch_size")
    def _write_auto(self, number: int) -> int | str:
        return number or "auto"


class DaliConfig(Section):
    """How the DALI backend decodes; no setting changes what is decoded."""

    hw_decoder_load: float = Field(0.65, ge=0, le=1)  # share of a batch's JPEGs for the GPU's JPEG unit; DALI's own default
    region_decode: Literal["auto", "always", "never"] = "auto"  # decode only the region of a JPEG that its crop needs
    inflate: Literal["host", "gpu"] = "host"  # where LZ4 members are inflated


class OrderConfig(Section):
    """How the shuffling sampler permutes an epoch."""

    shuffle: Literal["global", "block"] = "global"
    block_size: int = Field(1024, gt=0)  # samples; only for shuffle = "block"
