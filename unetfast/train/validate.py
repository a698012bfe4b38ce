"""The exact pass over the validation split, as the training loop does it."""

from __future__ import annotations

import itertools
from typing import cast

from unetfast.data.reader import SplitReader
from unetfast.distributed import World, even_out_buffers
from unetfast.infer.evaluate import Evaluation, evaluate
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader
from unetfast.train.compiling import explaining_compiler
from unetfast.train.processes import share_cores
from unetfast.train.run import Run
from unetfast.train.signals import StoppedError, StopRequest
from unetfast.viz.panels import Panel


def eval_batch_size(run: Run) -> int:
    """Images a batch of this process; by default those of a training micro-batch, so that a compiled model sees one shape."""
    size = run.config.eval.batch_size or run.config.loader.batch_size // run.accumulation
    return -(-size // run.world.size)


def build_val_loader(run: Run, reader: SplitReader, world: World) -> Loader:
    """Build a loader for one pass over a split, of the part that this process has of it."""
    return build_loader(
        reader,
        share_cores(run.config, world),
        training=False,
        device=run.device,
        batch_size=eval_batch_size(run) * world.size,
        rank=world.rank,
        world_size=world.size,
    )


def validate(run: Run, stop: StopRequest, *, collect_panels: int = 0) -> Evaluation:
    """Score the model on every validation sample, each in one process; a collective.

    The loader is made anew for each pass: between two passes it would only hold threads and buffers. Pictures are of the first
    samples, whatever the number of processes: where there are several, the main one predicts these again.

    Args:
        run: its model returns to training mode behind the pass.
        stop: looked at between batches.
        collect_panels: rows of pictures to keep.

    Raises:
        StoppedError: a stop was asked for.
        UserError: the network cannot be compiled.
    """
    assert run.val_reader is not None

    def check_stop(_num_images: int) -> None:
        if stop.poll():
            raise StoppedError

    alone = run.world.size == 1
    even_out_buffers(run.model, run.world)
    with build_val_loader(run, run.val_reader, run.world) as loader, explaining_compiler(run.compiled):
        evaluation = evaluate(
            run.model,
            loader,
            run.val_reader,
            loss=run.loss,
            labels=run.labels,
            device=run.device,
            amp=run.amp,
            size=run.config.eval.size,
            collect_panels=collect_panels if alone else 0,
            static_batch_size=eval_batch_size(run),
            on_batch=check_stop,
            world=run.world,
        )
    if collect_panels and not alone:
        evaluation.panels.extend(collect_first_panels(run, collect_panels))
    return evaluation


def collect_first_panels(run: Run, num_panels: int) -> list[Panel]:
    """Predict the first samples of the validation split, or of the training split where there is none.

    The main process does it alone; all others get an empty list.

    Raises:
        UserError: the network cannot be compiled.
    """
    if not run.world.is_main:
        return []
    reader = run.val_reader or run.train_reader
    batch_size = eval_batch_size(run)
    with build_val_loader(run, reader, World()) as loader, explaining_compiler(run.compiled):
        first = cast(Loader, itertools.islice(loader, -(-num_panels // batch_size)))  # evaluate only iterates
        return evaluate(
            run.model,
            first,
            reader,
            loss=run.loss,
            labels=run.labels,
            device=run.device,
            amp=run.amp,
            collect_panels=num_panels,
            static_batch_size=batch_size,
        ).panels
