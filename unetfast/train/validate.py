"""The exact pass over the validation split, as the training loop does it."""

from __future__ import annotations

import itertools
from typing import cast

from unetfast.infer.evaluate import Evaluation, evaluate
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader
from unetfast.train.run import Run
from unetfast.train.signals import StoppedError, StopRequest
from unetfast.viz.panels import Panel


def eval_batch_size(run: Run) -> int:
    """Images a batch; by default those of a training micro-batch, so that a compiled model sees one shape."""
    return run.config.eval.batch_size or run.config.loader.batch_size // run.accumulation


def validate(run: Run, stop: StopRequest, *, collect_panels: int = 0) -> Evaluation:
    """Score the model on every validation sample.

    The loader is made anew for each pass: between two passes it would only hold threads and buffers.

    Args:
        run: its model returns to training mode behind the pass.
        stop: looked at between batches.
        collect_panels: rows of pictures to keep.

    Raises:
        StoppedError: a stop was asked for.
    """
    assert run.val_reader is not None

    def check_stop(_num_images: int) -> None:
        if stop.number:
            raise StoppedError

    batch_size = eval_batch_size(run)
    with build_loader(run.val_reader, run.config, training=False, device=run.device, batch_size=batch_size) as loader:
        return evaluate(
            run.model,
            loader,
            run.val_reader,
            loss=run.loss,
            labels=run.labels,
            device=run.device,
            amp=run.amp,
            size=run.config.eval.size,
            collect_panels=collect_panels,
            static_batch_size=batch_size,
            on_batch=check_stop,
        )


def collect_first_panels(run: Run, num_panels: int) -> list[Panel]:
    """Predict the first samples of the validation split, or of the training split where there is none."""
    reader = run.val_reader or run.train_reader
    batch_size = eval_batch_size(run)
    with build_loader(reader, run.config, training=False, device=run.device, batch_size=batch_size) as loader:
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
