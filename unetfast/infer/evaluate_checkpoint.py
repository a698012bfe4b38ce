"""A checkpoint scored on a split of a shard folder: `unetfast eval`."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from rich.console import Console

from unetfast.checkpoint import check_labels
from unetfast.config import apply_overrides, build_config
from unetfast.data.labels import LabelTable
from unetfast.data.reader import open_shards
from unetfast.errors import UserError
from unetfast.infer.augmented import build_augmented, parse_tta
from unetfast.infer.evaluate import Evaluation, evaluate
from unetfast.infer.evaluate_post import FullSizeWork
from unetfast.infer.load import build_loss, load_model
from unetfast.infer.outputs import write_file
from unetfast.infer.post.process import parse_post
from unetfast.infer.show import build_bar, print_scores, scores_to_csv
from unetfast.infer.submission import check_original_sizes, choose_submission_format
from unetfast.loader.build import build_loader, choose_backend

SCENES = "ade20k"  # the data set whose users want the challenge's score


@dataclass(frozen=True, slots=True)
class _Scored:
    """An evaluation, and what its table says of where it comes from."""

    evaluation: Evaluation
    labels: LabelTable
    training_hw: tuple[int, int]
    dataset: str
    weights: str
    augmentation: str
    num_submitted: int
    is_original: bool


def score_checkpoint(
    shards: Path | str,
    checkpoint: Path | str,
    *,
    split: str = "val",
    size: str | None = None,
    batch_size: int | None = None,
    threads: int = 0,
    device: str = "auto",
    weights: str = "auto",
    tta: str = "none",
    post: str = "none",
    submission: Path | str | None = None,
    overrides: list[str] | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score a checkpoint on a split of a shard folder.

    Images are resized to the training size of the checkpoint. The shard folder may be another one than that of training, as
    long as its classes are the same.

    Args:
        shards: shard folder.
        checkpoint: best.pt or last.pt of a run.
        split: "train", "val" or "test".
        size: "training" or "source"; None takes `eval.size` of the run, or "source" where `post` or `submission` wants it.
        batch_size: None takes that of the run.
        threads: of the loader; 0 takes all cores.
        device: "auto", "cpu", "cuda" or "cuda:N".
        weights: "raw", "ema" (the moving average), or "auto": those that the run's best validation pass scored.
        tta: test-time augmentation: "none", "flips", "scales" or "flips+scales".
        post: post-processing to score beside the plain predictions, such as "crf,islands:64,holes:64", or "none".
        submission: folder for the masks in the numbering of ADE20K's challenge; None writes none.
        overrides: further `key=value` settings over the run's config, such as "loader.decode=fast".
        console: for progress and notes; None is silent.

    Returns:
        The scores; with `post`, its own in `Evaluation.post`.

    Raises:
        UserError: the shards or the checkpoint cannot be read, the split does not exist, or the classes differ; an option that
            cannot be understood, or that does not go with the others.
    """
    return _score(
        Path(shards),
        Path(checkpoint),
        split=split,
        size=size,
        batch_size=batch_size,
        threads=threads,
        device=device,
        weights=weights,
        tta=tta,
        post=post,
        submission=None if submission is None else Path(submission),
        overrides=overrides,
        console=console,
    ).evaluation


def _score(
    shards: Path,
    checkpoint: Path,
    *,
    split: str,
    size: str | None,
    batch_size: int | None,
    threads: int,
    device: str,
    weights: str,
    tta: str,
    post: str,
    submission: Path | None,
    overrides: list[str] | None,
    console: Console | None,
) -> _Scored:
    trained = load_model(checkpoint, device=device, weights=weights, console=console)
    folder = open_shards(shards)
    labels = trained.checkpoint.labels
    check_labels(trained.checkpoint, folder.manifest.labels, path=checkpoint)
    run = trained.checkpoint.config
    augmentation = parse_tta(tta, vertical=run.augment.vflip.prob > 0)
    steps = parse_post(post, labels.names)
    for flag, given in (("--post", steps), ("--submission", submission)):
        if given is not None and size == "training":
            raise UserError(f"{flag} works at the stored size of the images: leave --size training out")
    if steps is not None or submission is not None:
        size = "source"
    if submission is not None:
        check_original_sizes(folder.manifest.options)
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
        work = FullSizeWork(
            reader,
            labels,
            post=steps,
            submission=submission,
            mask_format=None if submission is None else choose_submission_format(labels),
        )
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
                labels=labels,
                device=trained.device,
                amp=trained.amp,
                size=config.eval.size,
                on_batch=advance_to,
                on_logits=None if steps is None and submission is None else work,
            )
            num_skipped = loader.num_skipped
    finally:
        reader.close()
    if num_skipped:
        evaluation.notes.append(f"{num_skipped} damaged samples were left out (loader.on_bad = skip)")
    options = folder.manifest.options
    return _Scored(
        evaluation=replace(evaluation, post=work.scores()),
        labels=labels,
        training_hw=config.loader.size_hw,
        dataset=folder.manifest.dataset,
        weights=trained.weights,
        augmentation="" if augmentation is None else augmentation.describe(),
        num_submitted=0 if submission is None else work.num_images,
        is_original=not (options.get("max_side") or options.get("size_hw")),
    )


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
    post: str = "none",
    submission: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
    overrides: list[str] | None = None,
    console: Console | None = None,
    stdout: TextIO | None = None,
) -> Evaluation:
    """Score a checkpoint and print the scores: `unetfast eval`. The other arguments are those of `score_checkpoint`.

    Args:
        csv: file for a row a class; None writes none.
        json: print one JSON object rather than a table.
        stdout: where the scores go; None is the standard output.

    Raises:
        UserError: as `score_checkpoint`, or a file cannot be written.
    """
    scored = _score(
        shards,
        checkpoint,
        split=split,
        size=size,
        batch_size=batch_size,
        threads=threads,
        device=device,
        weights=weights,
        tta=tta,
        post=post,
        submission=submission,
        overrides=overrides,
        console=console,
    )
    evaluation = scored.evaluation
    out = stdout or sys.stdout
    if json:
        facts = {
            **evaluation.to_json(),
            **evaluation.scene_score.to_json(),
            "split": split,
            "weights": scored.weights,
            "tta": tta,
        }
        out.write(json_module.dumps(facts, allow_nan=False) + "\n")
    else:
        print_scores(
            evaluation.metrics,
            loss=evaluation.loss,
            loss_word="loss at training size" if evaluation.size == "source" else "loss",
            title=_title(shards, checkpoint, split, scored),
            warnings=evaluation.warnings,
            out=out,
            post=evaluation.post,
            scene_note=_scene_note(scored) if scored.dataset == SCENES else None,
        )
    if csv is not None:
        write_file(csv, scores_to_csv(evaluation.metrics, scored.labels, evaluation.post).encode())
    if console is not None:
        if csv is not None:
            console.print(f"{csv}  a row for each of {len(evaluation.metrics.classes)} classes", markup=False, soft_wrap=True)
        if submission is not None:
            line = f"{submission}/  {scored.num_submitted:,} grey PNGs of values 1..150; to hand in: zip -j submission.zip"
            console.print(f"{line} {submission}/*.png", markup=False, soft_wrap=True)
    return evaluation


def _title(shards: Path, checkpoint: Path, split: str, scored: _Scored) -> str:
    title = f"{checkpoint} on {shards}, split {split}: {scored.evaluation.num_images:,} images at "
    if scored.evaluation.size == "source":
        title += "their stored size"
    else:
        height, width = scored.training_hw
        title += f"training size {height}x{width}; --size source scores at the stored size"
    return title + f"; {scored.augmentation}" * bool(scored.augmentation)


def _scene_note(scored: _Scored) -> str:
    """Say how far the score is the challenge's, which is taken at original size."""
    if scored.evaluation.size != "source":
        return "the challenge scores at original size: --size source"
    if not scored.is_original:
        return "the challenge scores at original size, and these images were resized when they were packed"
    return "at original size, as the challenge scores"
