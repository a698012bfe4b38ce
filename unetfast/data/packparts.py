"""The end of a packing: its last shards are cut into parts, so that no worker waits long for another.

Whole shards are a worker's business from the first sample to the result file. Where there are only as many left as workers, the
slowest of them decides when all is done; so these are cut into parts whose samples are encoded by whoever is free, and the
parent writes a shard when all of its parts have come. A shard's bytes do not depend on who encoded its samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unetfast.data.encode import is_copied
from unetfast.data.options import PackOptions
from unetfast.data.packshard import Encoded, PartDone, ShardDone, ShardPacker, ShardPart
from unetfast.data.plan import MIB, ShardPlan

_NUM_PARTS = 8  # of a shard
# of sources of shards that are cut: the parent holds their encoded samples, hardly larger, until a shard is whole
_MAX_CUT_BYTES = 256 * MIB


def cut_last(shards: list[ShardPlan], num_workers: int, options: PackOptions) -> list[ShardPlan | ShardPart]:
    """Cut the last shards into parts, as many shards as there are workers; none where a worker is alone.

    Only shards of images that are stored as they are: what is encoded anew may be many times as large as its source, raw
    pixels 38 times as large as a JPEG, and memory for it would have no bound.

    Args:
        shards: that are to be packed, in order.
        num_workers: that there will be.
        options: of the packing.
    """
    num_cut, num_bytes = 0, 0
    if num_workers > 1:
        for shard in reversed(shards[-num_workers:]):
            num_bytes += sum(ref.num_bytes for ref in shard.samples)
            if num_bytes > _MAX_CUT_BYTES or not all(is_copied(ref, options) for ref in shard.samples):
                break
            num_cut += 1
    whole = shards[: len(shards) - num_cut]
    return [*whole, *(part for shard in shards[len(whole) :] for part in _cut(shard))]


def _cut(shard: ShardPlan) -> Iterator[ShardPart]:
    count = len(shard.samples)
    num_parts = min(_NUM_PARTS, count)
    for number in range(num_parts):
        start, stop = (count * place // num_parts for place in (number, number + 1))
        yield ShardPart(shard.name, start, shard.samples[start:stop])


@dataclass(slots=True)
class _Waiting:
    """What has come of one shard: encoded samples by the place of the first one, and how many in all."""

    parts: dict[int, list[Encoded]]
    count: int = 0


class PartGatherer:
    """Puts parts together, and writes a shard when it has all of them.

    Args:
        packer: writes shards.
        shards: whose parts may come.
    """

    def __init__(self, packer: ShardPacker, shards: list[ShardPlan]) -> None:
        self._packer = packer
        self._shards = {shard.name: shard for shard in shards}
        self._waiting: dict[str, _Waiting] = {}

    def take(self, done: ShardDone | PartDone) -> ShardDone | None:
        """Take what a worker has done; returns the shard that is finished by it, if one is.

        Raises:
            UserError: the disk is full, or may not be written.
        """
        if isinstance(done, ShardDone):
            return done
        shard, waiting = self._shards[done.shard], self._waiting.setdefault(done.shard, _Waiting({}))
        waiting.parts[done.start] = done.encoded
        waiting.count += len(done.encoded)
        if waiting.count < len(shard.samples):
            return None
        del self._waiting[done.shard]
        return self._packer.write(shard, (one for start in sorted(waiting.parts) for one in waiting.parts[start]))
