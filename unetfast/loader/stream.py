"""The stream of batches before any pixel: which samples, with which numbers, and where a run goes on.

Both backends read their batches' plans from here, so order, augmentation, skipping and resume are the same for both.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetfast.config import Config
from unetfast.config.section import Section
from unetfast.data.reader import SplitReader
from unetfast.errors import UserError
from unetfast.loader.augment import Augmentation, boxes_are_fixed, draw_augmentation
from unetfast.loader.foreground import CropRule
from unetfast.loader.order import Order, Places, balance_weights, rank_part, rank_places

# positions computed at once: numpy costs the same for 16 samples and for some hundreds
_WINDOW = 1024
_FIRST_WINDOW = 64  # a start waits for it, and on a large index a thousand scattered rows take some milliseconds
_STATE_FORMAT = 1
# settings that came later than the format, with what was done before there were any
_BEFORE = {"augment.max_class_share": "1.0"}
_NONE = np.empty(0, dtype=np.int64)
_logger = logging.getLogger("unetfast.loader")


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch is made of.

    Args:
        places: this rank's samples.
        augmentation: their numbers, one row each, of this plan alone: masks may still choose their crops in it.
        end: position after the last sample of the global batch.
        left_out: bad samples between the batch's start and `end`, int64.
    """

    places: Places
    augmentation: Augmentation
    end: int
    left_out: np.ndarray


class SampleStream:
    """Plans the batches of one split, and keeps the place of the last one handed out.

    Args:
        reader: the split.
        config: loader, order and augment sections, and train.seed.
        training: an endless shuffled augmented stream; else each sample once, in index order, as it is.
        target_hw: height and width of the batches, pixels.
        batch_size: global, samples.
        rank: of this process.
        world_size: number of processes.

    Attributes:
        position: place in the stream after the last batch handed out.
        skipped: keys of the samples left out so far, in the order of the stream.
        crop_rule: how a sample's mask chooses its crop.
        boxes_are_fixed: whether every crop box is the whole image.
    """

    def __init__(
        self,
        reader: SplitReader,
        config: Config,
        *,
        training: bool,
        target_hw: tuple[int, int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.reader = reader
        self.training = training
        self.target_hw = target_hw
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        self.skipped: list[str] = []
        self._num_parts = config.train.accumulation if training else 1
        self._seed = config.train.seed
        self._augment = config.augment if training else None
        self.boxes_are_fixed = boxes_are_fixed(self._augment)
        self.crop_rule = CropRule(config.augment.max_class_share, reader.manifest.labels.ignore_index, target_hw)
        sampler = config.loader.sampler if training else "sequential"
        self._order = Order(
            reader.num_samples,
            seed=self._seed,
            sampler=sampler,
            shuffle=config.order.shuffle,
            block_size=config.order.block_size,
            weights=balance_weights(reader.presence()) if sampler == "balanced" else None,
        )
        self._identity = self._describe(config, sampler)
        self._known_bad: dict[int, Exception] = {}
        self._told: set[str] = set()
        self._window: tuple[int, Places, Augmentation] | None = None

    @property
    def num_samples(self) -> int:
        return self.reader.num_samples

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def max_part(self) -> int:
        """Most samples of a batch on this rank."""
        part = rank_part(self.batch_size, self.rank, self.world_size)
        return int(part.stop) - int(part.start)

    def plan(self, start: int) -> BatchPlan | None:
        """Plan the batch that begins at a position; None after the last one of a validation pass.

        Raises:
            UserError: every sample of the split is bad.
        """
        stop = None if self.training else self.num_samples
        if self._known_bad and len(self._known_bad) >= self.num_samples:
            raise UserError(f"{self.reader.folder}: not one of its {self.num_samples} samples can be loaded")
        if not self._known_bad and self.world_size == 1:
            return self._plan_all(start, start + self.batch_size if stop is None else min(start + self.batch_size, stop))
        size = self.batch_size
        while True:
            end = start + size if stop is None else min(start + size, stop)
            if end <= start:
                return None
            places, augmentation = self._look(start, end)
            good = ~np.isin(places.sample_ids, list(self._known_bad)) if self._known_bad else np.ones(end - start, dtype=bool)
            if good.sum() >= self.batch_size or end == stop:
                break
            size *= 2
        chosen = np.flatnonzero(good)[: self.batch_size]
        if not chosen.size:
            return None
        num_read = int(chosen[-1]) + 1
        left_out = places.sample_ids[:num_read][~good[:num_read]]
        part = chosen[rank_places(len(chosen), self.rank, self.world_size, self._num_parts)]
        return BatchPlan(places[part], augmentation[part], start + num_read, left_out)

    def _plan_all(self, start: int, end: int) -> BatchPlan | None:
        """Plan a batch of all samples at positions [start, end): what nearly every plan is, and twice as fast."""
        if end <= start:
            return None
        places, augmentation = self._look(start, end)
        if augmentation.has_candidates:  # which its masks choose from in place
            augmentation = augmentation[np.arange(end - start)]
        return BatchPlan(places, augmentation, end, _NONE)

    def peek(self, count: int) -> tuple[Augmentation, np.ndarray]:
        """Return the numbers of the first samples of the stream, and their heights and widths, pixels, (n, 2)."""
        places, augmentation = self._look(0, count if self.training else min(count, self.num_samples))
        return augmentation, self.stored_hw(places)

    def stored_hw(self, places: Places) -> np.ndarray:
        """Look up heights and widths of samples, pixels, int64, (n, 2)."""
        rows = self.reader.rows[places.sample_ids]
        return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)

    def advance(self, plan: BatchPlan) -> None:
        """Note that a batch was handed out."""
        self.position = plan.end
        self._count_skipped(plan.left_out)

    def finish(self) -> None:
        """Note that a validation pass is over."""
        if self.position < self.num_samples:
            rest = self._order.locate(np.arange(self.position, self.num_samples)).sample_ids
            self._count_skipped(rest[np.isin(rest, list(self._known_bad))])
        self.position = self.num_samples

    def leave_out(self, sample_id: int, error: Exception) -> None:
        """Keep a bad sample out of every plan from now on, and warn of it once; of a lost shard once for all its samples."""
        if sample_id not in self._known_bad:
            self._known_bad[sample_id] = error
            if str(error) not in self._told:
                self._told.add(str(error))
                _logger.warning("left out (loader.on_bad = skip): %s", error)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what it depends on, as integers and strings."""
        return {"format": _STATE_FORMAT, "position": self.position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of `state`.

        Raises:
            UserError: the state was taken with other data or settings; lists the fields that differ.
        """
        here = {"format": _STATE_FORMAT, **self._identity}
        state = {name: value for name, value in _BEFORE.items() if name in here} | state
        differing = [
            f"{name}: {state.get(name, 'nothing')} in the saved state, {here.get(name, 'nothing')} here"
            for name in sorted({*here, *state} - {"position"})
            if state.get(name) != here.get(name)
        ]
        position = state.get("position")
        if not isinstance(position, int) or position < 0 or (not self.training and position > self.num_samples):
            differing.append(f"position: {position}, expected a place in the stream")
        if differing:
            raise UserError(
                "\n  ".join(
                    ["the loader cannot go on where it was stopped, because it would not read the same stream:", *differing]
                )
                + "\n  set these back to resume, or begin a new run with the old one's weights (train.init_checkpoint)"
            )
        assert isinstance(position, int)
        self.position = position
        self.skipped = []
        self._window = None

    def _look(self, start: int, end: int) -> tuple[Places, Augmentation]:
        """Return what stands at positions [start, end), from the window computed before where it covers them."""
        if self._window is None or not self._window[0] <= start <= end <= self._window[0] + len(self._window[1]):
            last = max(end, start + (_FIRST_WINDOW if self._window is None else _WINDOW))
            last = last if self.training else min(last, self.num_samples)
            places = self._order.locate(np.arange(start, last))
            stored_hw = self.stored_hw(places)
            augmentation = draw_augmentation(self._augment, places, stored_hw, seed=self._seed, target_hw=self.target_hw)
            self._window = (start, places, augmentation)
        first, places, augmentation = self._window
        part = slice(start - first, end - first)
        return places[part], augmentation[part]

    def _count_skipped(self, sample_ids: np.ndarray) -> None:
        for sample_id in sample_ids.tolist():
            key = _key_or_number(self.reader, sample_id)
            if key not in self.skipped:
                self.skipped.append(key)

    def _describe(self, config: Config, sampler: str) -> dict[str, int | str]:
        """List all that the stream depends on, under the names of the settings."""
        identity: dict[str, int | str] = {
            "manifest": self.reader.manifest.digest(),
            "split": self.reader.name,
            "num_samples": self.num_samples,
            "training": int(self.training),
            "loader.batch_size": self.batch_size,
            "loader.size_hw": f"{self.target_hw[0]}x{self.target_hw[1]}",
            "loader.decode": config.loader.decode,
        }
        if self.training:
            identity |= {"train.seed": self._seed, "loader.sampler": sampler, "order.shuffle": config.order.shuffle}
            identity["order.block_size"] = config.order.block_size
            for section, settings in config.augment:
                if isinstance(settings, Section):
                    identity |= {f"augment.{section}.{name}": str(value) for name, value in settings}
                else:
                    identity[f"augment.{section}"] = str(settings)
        return identity


def _key_or_number(reader: SplitReader, sample_id: int) -> str:
    try:
        return reader.key(sample_id)
    except (UserError, OSError):  # its shard may be gone
        return f"sample {sample_id}"
