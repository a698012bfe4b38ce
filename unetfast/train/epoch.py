"""The end of an epoch: validation, rows of metrics, pictures, checkpoints."""

from __future__ import annotations

import math
from typing import Any

from unetfast.checkpoint import save_checkpoint
from unetfast.errors import UserError
from unetfast.infer.evaluate import Evaluation
from unetfast.model.metrics import compute_metrics
from unetfast.train.display import Display, format_scores
from unetfast.train.earlystop import watched_metric
from unetfast.train.log import MetricsLog
from unetfast.train.memory import is_out_of_memory
from unetfast.train.pictures import draw_history, draw_predictions
from unetfast.train.record import write_validation
from unetfast.train.run import Run
from unetfast.train.schedule import is_better
from unetfast.train.signals import StoppedError, StopRequest
from unetfast.train.trouble import report_steps
from unetfast.train.validate import collect_first_panels, eval_batch_size, validate


def finish_epoch(run: Run, log: MetricsLog, display: Display, stop: StopRequest) -> bool:
    """Validate, log, draw and save behind an epoch's last step.

    Returns:
        False if a signal came meanwhile: nothing of the run has changed then, and a resume does the epoch's end again.
    """
    config = run.config
    epoch = run.num_epochs_read
    is_last = epoch >= config.train.epochs
    num_panels = num_panels_due(run, epoch)
    report_steps(run, log, display, all_steps=True)
    evaluation = averaged = None
    if run.val_reader is not None and (is_last or is_due(config.eval.every_epochs, run.epoch, epoch)):
        try:
            evaluation, averaged = validate_both(run, stop, collect_panels=num_panels)
        except StoppedError:
            return False

    loss, confusion_KK = run.meter.read_epoch()
    metrics = compute_metrics(confusion_KK, run.labels.names)
    row = {"kind": "epoch", "step": run.step, "epoch": epoch, "loss": loss, "mean_iou": metrics.mean_iou}
    row |= {"mean_dice": metrics.mean_dice, "pixel_accuracy": metrics.pixel_accuracy}
    if run.loader.num_skipped:
        row["num_skipped"] = run.loader.num_skipped
        display.say(f"warning: {run.loader.num_skipped} damaged samples left out so far (loader.on_bad = skip)", style="yellow")
    log.add(row)
    display.say(f"train   epoch {epoch}/{config.train.epochs}: {format_scores(log.rows[-1], run.labels.names)}")
    run.meter.start_epoch()
    epochs_before, run.epoch = run.epoch, epoch

    improved = False
    if evaluation is not None:
        improved = take_validation(run, log, display, evaluation, averaged, epoch=run.epoch)
    is_end = is_last or is_stopping(run) or run.early_stop.is_over(config.early_stop)
    if num_panels and (is_end or is_due(config.log.panels_every_epochs, epochs_before, epoch)):
        panels = evaluation.panels if evaluation is not None else collect_first_panels(run, num_panels)
        draw_predictions(run, log, panels, is_last=is_end)
    if display.is_time_for_history():
        draw_history(run, log.rows)
    save_epoch(run, log, epochs_before=epochs_before, improved=improved)
    return True


def is_due(every: int, epochs_before: int, epochs_now: int) -> bool:
    """Say whether a multiple of `every` epochs was reached; a step may end several epochs of a small split."""
    return epochs_now // every > epochs_before // every


def is_stopping(run: Run) -> bool:
    """Say whether `train.max_steps` is reached."""
    return 0 < run.config.train.max_steps <= run.step


def num_panels_due(run: Run, epoch: int) -> int:
    """Count the samples to draw at the end of an epoch: more where it may end the run, none where no picture is due."""
    config = run.config.log
    if epoch >= run.config.train.epochs or is_stopping(run) or run.early_stop.may_end(run.config.early_stop):
        return max(config.num_panels, config.num_saved_images)
    return config.num_panels if is_due(config.panels_every_epochs, run.epoch, epoch) else 0


def validate_both(run: Run, stop: StopRequest, *, collect_panels: int = 0) -> tuple[Evaluation, Evaluation | None]:
    """Score the weights, and their moving average where the run keeps one; pictures are of the weights.

    Raises:
        StoppedError: a stop was asked for.
        UserError: memory ran out, or the network cannot be compiled.
    """
    try:
        evaluation = validate(run, stop, collect_panels=collect_panels)
        if run.ema is None:
            return evaluation, None
        with run.ema.swapped_in():
            return evaluation, validate(run, stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        num_images = eval_batch_size(run)
        remedy = f"a smaller eval.batch_size (now {num_images})" if num_images > 1 else "a smaller loader.size_hw"
        raise UserError(f"out of memory on {run.device} in validation: take {remedy}, and go on with --resume") from error


def better_scores(metric: str, scores: dict[str, Any], averaged: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Say which weights scored better in a pass, "raw" or "ema", and their scores, with `val_loss` among them.

    Where both are equal, or neither has a number, it is the raw ones.
    """
    raw = scores | {"val_loss": scores["loss"]}
    if averaged is None:
        return "raw", raw
    ema = averaged | {"val_loss": averaged["loss"]}
    return ("ema", ema) if is_better(metric, ema[metric], _finite_or_none(raw[metric])) else ("raw", raw)


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def take_validation(
    run: Run, log: MetricsLog, display: Display, evaluation: Evaluation, averaged: Evaluation | None, *, epoch: int
) -> bool:
    """Take a validation pass into log, schedule and best-so-far.

    The plateau schedule watches the raw weights: they are what the learning rate moves, and their average goes on improving
    long after they have stopped. The best checkpoint is chosen over both.

    Args:
        run: whose weights were scored.
        log: gets a row, and one of kind "val_ema" for the average.
        display: gets a line.
        evaluation: of the weights.
        averaged: of their moving average; None without one.
        epoch: number, from 1, of the epoch that the weights come from, for the line; it need not be finished.

    Returns:
        Whether it is the best so far.
    """
    config = run.config
    scores = evaluation.to_json()
    scores_ema = None if averaged is None else averaged.to_json()
    log.add({"kind": "val", "step": run.step, "epoch": run.epoch, **scores})
    if scores_ema is not None:
        log.add({"kind": "val_ema", "step": run.step, "epoch": run.epoch, **scores_ema})
    by_name = scores | {"val_loss": scores["loss"]}
    run.metrics = scores
    if config.schedule.name == "plateau" and run.plateau.update(by_name[config.schedule.plateau_metric], config.schedule):
        display.say(f"plateau {config.schedule.plateau_metric} has not improved: learning rate now {run.learning_rate:.3g}")
    metric = config.checkpoint.best_metric
    weights, better = better_scores(metric, scores, scores_ema)
    watched = watched_metric(config)
    run.early_stop.update(better_scores(watched, scores, scores_ema)[1][watched], watched, config.early_stop)
    improved = is_better(metric, better[metric], run.best.get("value"))
    if improved:
        run.best = {"metric": metric, "value": better[metric], "epoch": run.epoch, "step": run.step, "weights": weights}
    write_validation(run, averaged if averaged and weights == "ema" else evaluation, improved=improved, weights=weights)
    mark = f"   best so far{' (ema)' * (weights == 'ema')} -> {run.folder.best}" if improved else ""
    headline = format_scores(scores, run.labels.names)
    where = f"step {run.step:,} (epoch {epoch}/{config.train.epochs})"
    ema = "" if scores_ema is None else f"   ema: {format_scores(scores_ema, run.labels.names)}"
    display.say(f"val     {where}: {headline}{ema}   {scores['num_images']:,} images{mark}")
    for warning in scores["warnings"]:
        display.warn_once(warning)
    return improved


def save_last(run: Run, log: MetricsLog) -> None:
    """Write last.pt; a collective."""
    run.save(run.folder.last, len(log.rows))


def save_epoch(run: Run, log: MetricsLog, *, epochs_before: int, improved: bool) -> None:
    """Write the checkpoints of an epoch's end; last.pt comes last, so that a kill before it does all of this again.

    A collective.
    """
    config, folder = run.config, run.folder
    checkpoint = run.capture(len(log.rows))
    if not run.world.is_main:
        return
    if config.checkpoint.every_epochs and is_due(config.checkpoint.every_epochs, epochs_before, run.epoch):
        save_checkpoint(folder.kept(config, epoch=run.epoch, step=run.step), checkpoint)
    if improved or run.val_reader is None:
        save_checkpoint(folder.best, checkpoint)
    save_checkpoint(folder.last, checkpoint)
