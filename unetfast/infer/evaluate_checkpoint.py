"""A checkpoint scored on a split of a shard folder: `unetfast eval`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from unetfast.checkpoint import check_labels
from unetfast.config import apply_overrides, build_config
from unetfast.data.reader import open_shards
from unetfast.infer.augmented import build_augmented, parse_tta
from unetfast.infer.evaluate import Evaluation, evaluate
from unetfast.infer.load import build_loss, load_model
from unetfast.infer.show import build_bar, print_scores
from unetfast.loader.build import build_loader, choose_backend


def evaluate_checkpoint(
    shards: Path,
    checkpoint: Path,
    *,
    split: str = "val",
    size: str | None = None,
    batch_size: int | None = None,
    threads: int = 0,
    device: str = "auto",
    weights: str = "auto",
    tta: str = "none",
    json: bool = False,
    overrides: list[str] | None = None,
    console: Console | None = None,
    stdout: TextIO | None = None,
) -> Evaluation:
    """Score a checkpoint on a split of a shard folder and print the scores: `unetfast eval`.

    Images are resized to the training size of the checkpoint. The shard folder may be another one than that of training, as
    long as its classes are the same.

    Args:
        shards: shard folder.
        checkpoint: best.pt or last.pt of a run.
        split: "train", "val" or "test".
        size: "training" or "source"; None takes `eval.size` of the run.
        batch_size: None takes that of the run.
        threads: of the loader; 0 takes all cores.
        device: "auto", "cpu", "cuda" or "cuda:N".
        weights: "raw", "ema" (the moving average), or "auto": those that the run's best validation pass scored.
        tta: test-time augmentation: "none", "flips", "scales" or "flips+scales".
        json: print one JSON object rather than a table.
        overrides: further `key=value` settings over the run's config, such as "loader.decode=fast".
        console: for progress and notes; None is silent.
        stdout: where the scores go; None is the standard output.

    Raises:
        UserError: the shards or the checkpoint cannot be read, the split does not exist, or the classes differ.
    """
    trained = load_model(checkpoint, device=device, weights=weights, console=console)
    folder = open_shards(shards)
    check_labels(trained.checkpoint, folder.manifest.labels, path=checkpoint)
    run = trained.checkpoint.config
    augmentation = parse_tta(tta, vertical=run.augment.vflip.prob > 0)
    # which backend, and on how many threads, is a matter of this machine, not of the run's
    settings = ["loader.backend=auto", f"loader.threads={threads}", f"eval.size={size or run.eval.size}", *(overrides or [])]
    config = build_config(apply_overrides(run.model_dump(mode="json"), settings), where="eval")
    batch_size = batch_size or config.eval.batch_size or config.loader.batch_size // config.train.accumulation
    choice = choose_backend(config, trained.device)
    if console is not None:
        console.print(f"loader  {choice.name} ({choice.reason})", markup=False, soft_wrap=True)
        if augmentation is not None:
            console.print(f"tta     {augmentation.describe()}", markup=False, soft_wrap=True)
    reader = folder.split(split)
    try:
        loss = build_loss(config.loss, folder.manifest, split=split, console=console).to(trained.device)
        with (
            build_loader(reader, config, training=False, device=trained.device, batch_size=batch_size) as loader,
            build_bar(f"eval {split}", loader.num_samples, console) as advance_to,
        ):
            evaluation = evaluate(
                build_augmented(trained.model, augmentation),
                loader,
                reader,
                loss=loss,
                labels=trained.checkpoint.labels,
                device=trained.device,
                amp=trained.amp,
                size=config.eval.size,
                on_batch=advance_to,
            )
            num_skipped = loader.num_skipped
    finally:
        reader.close()
    if num_skipped:
        evaluation.notes.append(f"{num_skipped} damaged samples were left out (loader.on_bad = skip)")
    out = stdout or sys.stdout
    if json:
        facts = {**evaluation.to_json(), "split": split, "weights": trained.weights, "tta": tta}
        out.write(json_module.dumps(facts, allow_nan=False) + "\n")
    else:
        title = f"{checkpoint} on {shards}, split {split}: {evaluation.num_images:,} images at "
        if evaluation.size == "source":
            title, loss_word = title + "their stored size", "loss at training size"
        else:
            height, width = config.loader.size_hw
            title += f"training size {height}x{width}; --size source scores at the stored size"
            loss_word = "loss"
        if augmentation is not None:
            title += f"; {augmentation.describe()}"
        print_scores(
            evaluation.metrics,
            loss=evaluation.loss,
            loss_word=loss_word,
            title=title,
            warnings=evaluation.warnings,
            out=out,
        )
    return evaluation
