"""Training, from config to checkpoint, top to bottom.

One step (step.py): a batch from the loader, cut into micro-batches; forward, loss, backward; clip, step. Nothing in it waits
for the GPU: losses and confusion matrices are summed on the device and read every `log.every_steps` steps. One epoch ends with
the first batch that holds its last sample; then come validation, pictures and checkpoints (epoch.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from unetfast.checkpoint import Checkpoint, check_resume, load_checkpoint
from unetfast.config import Config
from unetfast.distributed import World, failing_together, join_world
from unetfast.train.autobatch import settle_batch_size
from unetfast.train.compiling import check_parts, warn_of_skipped_graphs
from unetfast.train.display import METRIC_WORDS, Display
from unetfast.train.epoch import finish_epoch, is_stopping, save_last, take_validation, validate_both
from unetfast.train.log import MetricsLog
from unetfast.train.meter import StepClock
from unetfast.train.pictures import draw_history, draw_initial_predictions, draw_predictions
from unetfast.train.processes import choose_device, speaking_console
from unetfast.train.randomness import numeric_settings
from unetfast.train.record import finish_record, identify_run, write_facts
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder, check_run_folder
from unetfast.train.schedule import learning_rate_factor, num_total_steps
from unetfast.train.setup import build_run, describe_run, warn_of_data
from unetfast.train.signals import StoppedError, StopRequest, catch_stop_signals
from unetfast.train.sinks.opening import check_sinks, open_sinks
from unetfast.train.step import read_train_row, train_step
from unetfast.train.trouble import cut_bad_steps, report_steps
from unetfast.weights import take_initial_weights


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to.

    Args:
        out: the run folder.
        steps: optimizer steps done, those before a resume included.
        epochs: epochs finished.
        last: metrics of the last validation pass, the keys of `Evaluation.to_json`; empty without one.
        best: of the best one: `metric`, `value`, `epoch`, `step`, and `weights`, "raw" or "ema"; empty without one.
        stopped: "" at the end of the last epoch, "early_stop", "max_steps", or "signal".
        exit_code: 0, or 130 (SIGINT) and 143 (SIGTERM).
    """

    out: Path
    steps: int
    epochs: int
    last: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    exit_code: int = 0


def train(shards: Path, config: Config, out: Path, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Train a U-Net on a shard folder and leave everything in a run folder.

    SIGINT and SIGTERM finish the step, save last.pt and end the run; `resume` goes on from there, or from wherever a killed
    run saved last, and computes what the undisturbed run would have.

    Started by torchrun, all processes call this with the same arguments and train one model; rank 0 alone writes and speaks.

    Args:
        shards: shard folder with a train split; without a val split nothing is validated, and best.pt is the last state.
        config: resolved; see `unetfast.train.setup.resolve_run`.
        out: run folder; must be new or empty unless `resume`. With several processes that of rank 0 counts.
        resume: go on from `out/last.pt`; from the beginning where a run was killed before it saved.
        console: for progress and notes; None takes stderr.

    Raises:
        UserError: the folder, the shards or a setting is not fit for it, or `resume` finds another run.
        ToldError: this process ends because of another one, which says why.
    """
    check_sinks(config.log)
    # signals are caught first: a stop that comes during start-up is obeyed after it
    with catch_stop_signals() as stop, join_world() as world:
        stop.join(world)
        console = speaking_console(console, world)
        folder, checkpoint = open_folder(out, world, resume=resume)
        device = choose_device(config.train.device, world)
        former = None if checkpoint is None else checkpoint.config
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        config = settle_batch_size(shards, config, folder, former, world, say)
        settings = numeric_settings(seed=config.train.seed, deterministic=config.train.deterministic, device=device)
        with settings, build_run(shards, config, folder, world) as run:
            notes = start_run(run, checkpoint, resume=resume)
            with (
                Display(console, num_epochs=config.train.epochs, num_steps=run.total_steps, first_step=run.step) as display,
                open_log(run, shards, checkpoint, display) as log,
            ):
                for line in [*describe_run(run, shards), *notes]:
                    display.say(line)
                for warning in warn_of_data(run):
                    display.warn_once(warning)
                with failing_together():
                    return run_steps(run, log, display, stop)


def open_folder(out: Path, world: World, *, resume: bool) -> tuple[RunFolder, Checkpoint | None]:
    """Check the run folder and read the checkpoint to go on from, if there is one; a collective, the main process decides."""
    out = world.broadcast(out)
    folder = check_run_folder(out, resume=resume) if world.is_main else RunFolder(out)
    is_there = world.broadcast(resume and folder.last.exists())
    return folder, load_checkpoint(folder.last) if is_there else None


def open_log(run: Run, shards: Path, checkpoint: Checkpoint | None, display: Display) -> MetricsLog:
    """Open what the run writes its rows to; all processes keep them, the main one writes them. A collective."""
    num_rows = checkpoint.progress["num_rows"] if checkpoint else 0
    write_facts(run, shards)
    if not run.world.is_main:
        return MetricsLog(None, rows=run.world.broadcast([]))
    sinks = open_sinks(run.config.log, identify_run(run), tensorboard=run.folder.tensorboard)
    log = MetricsLog(run.folder.metrics, sinks=sinks, say=display.say, keep_rows=num_rows, step=run.step)
    run.world.broadcast(log.rows)
    return log


def start_run(run: Run, checkpoint: Checkpoint | None, *, resume: bool) -> list[str]:
    """Bring a run to where it begins: a checkpoint, given weights, or random ones. Returns notes for people."""
    config, folder = run.config, run.folder
    notes = []
    if checkpoint is not None:
        changed = check_resume(checkpoint, config, run.manifest.digest(), path=folder.last)
        run.restore(checkpoint)
        check_parts(config, run.accumulation)
        notes += [
            f"resume  {folder.last}: step {run.step:,}, {run.epoch} epochs finished",
            *(f"        {line}" for line in changed),
            *note_world_change(run, checkpoint),
            *note_rate_jump(run, checkpoint),
        ]
    elif resume:
        notes.append(f"resume  {folder.path}: the run was stopped before its first checkpoint; starting at step 0")
    if checkpoint is None:
        notes += take_initial_weights(run.model, config)
        if run.ema is not None:
            run.ema.start_anew()
    if run.val_reader is None:
        notes.append("note: no val split in the shards: nothing is validated, and best.pt will be a copy of last.pt")
    if run.world.is_main:
        folder.prepare()
        folder.write_config(config)
        cut_bad_steps(folder.bad_steps, run.step)
    run.world.barrier()  # behind it the folder stands for all
    return notes


def note_world_change(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Say where a run goes on with another number of processes: the batches stay, dropout and batch norm see others."""
    before, now = len(checkpoint.rng), run.world.size
    return [] if before == now else [f"        processes: {before} in the run, {now} now"]


def note_rate_jump(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Say where another number of epochs or steps bends the schedule: a cosine that is stretched goes up again."""
    former_steps = num_total_steps(checkpoint.config, run.loader.num_samples)
    factors = [
        learning_rate_factor(run.config.schedule, run.step, total_steps=steps, plateau_factor=run.plateau.factor)
        for steps in (former_steps, run.total_steps)
    ]
    if run.step >= run.total_steps or math.isclose(*factors, rel_tol=1e-9, abs_tol=1e-12):
        return []
    before, now = (run.config.optimizer.learning_rate * factor for factor in factors)
    return [
        f"note: {run.config.schedule.name} over {run.total_steps:,} steps rather than {former_steps:,}: "
        f"the learning rate goes on at {now:.3g}, not at {before:.3g}"
    ]


def run_steps(run: Run, log: MetricsLog, display: Display, stop: StopRequest) -> TrainResult:
    """Train until the epochs are done, validation no longer improves, `train.max_steps` is reached or a signal comes."""
    config = run.config
    if run.step == 0:
        draw_initial_predictions(run, log)
    clock = StepClock(run.device)
    batches = iter(run.loader)
    stopped = ""
    while run.epoch < config.train.epochs:
        if stop.poll():
            stopped = "signal"
        elif run.num_epochs_read > run.epoch:
            with clock.pause():
                stopped = "" if finish_epoch(run, log, display, stop) else "signal"
            if not stopped:
                continue
        elif run.early_stop.is_over(config.early_stop):
            stopped = "early_stop"
        elif is_stopping(run):
            stopped = "max_steps"
        if stopped:
            break

        with clock.waiting():
            batch = next(batches)
        train_step(run, batch)
        clock.end_step()
        display.count_step(run.step)

        is_row_due = run.step % config.log.every_steps == 0
        is_save_due = config.checkpoint.every_steps > 0 and run.step % config.checkpoint.every_steps == 0
        report_steps(run, log, display, all_steps=is_row_due or is_save_due)
        if is_row_due:
            row = read_train_row(run, clock)
            log.add(row)
            display.show_row(row)
            if skipped := warn_of_skipped_graphs(config, run.num_skipped_before):
                display.warn_once(skipped)
        if is_save_due:
            with clock.pause():
                save_last(run, log)
    return end_run(run, log, display, stop, stopped)


def end_run(run: Run, log: MetricsLog, display: Display, stop: StopRequest, stopped: str) -> TrainResult:
    """Save a run that ends inside an epoch, and say what to do next."""
    folder = run.folder
    report_steps(run, log, display, all_steps=True)
    if stopped in ("signal", "max_steps"):
        save_last(run, log)
    elif stopped == "early_stop":
        # all was saved at the end of the epoch
        display.say(f"stopped early at step {run.step:,}: {run.early_stop.describe(run.config.early_stop)}")
    elif run.step == display.first_step:
        display.say(f"all {run.config.train.epochs} epochs are done already; for more: --resume --set train.epochs=N")
    if stopped == "signal":
        display.say(
            f"stopped by {stop.name} at step {run.step:,}; saved {folder.last}. To go on: the same command with --resume"
        )
    elif stopped == "max_steps":
        finish_early(run, log, display, stop)
    stop.leave()
    if run.step > display.first_step:
        draw_history(run, log.rows)
    finish_record(run, log, display, stopped)
    if run.best:
        best = run.best
        display.say(f"best    {METRIC_WORDS[best['metric']]} {best['value']:.4f} at step {best['step']:,} -> {folder.best}")
    elif run.val_reader is not None and not stopped:
        display.say(f"warning: no validation pass gave a number for {run.config.checkpoint.best_metric}: there is no best.pt")
    if stopped != "signal" and folder.best.exists():
        display.say(f"next: unetfast predict --checkpoint {folder.best} IMAGE_OR_FOLDER --out pred/ --overlay")
    exit_code = stop.exit_code if stopped == "signal" else 0
    return TrainResult(folder.path, run.step, run.epoch, run.metrics, run.best, stopped, exit_code)


def finish_early(run: Run, log: MetricsLog, display: Display, stop: StopRequest) -> None:
    """Validate a run that `train.max_steps` stopped inside an epoch, so that it too has scores, pictures and a best.pt.

    last.pt was written before: a resume with more steps computes what a run without the stop would have, but for a cosine,
    which ends at the last step of all.
    """
    display.say(f"stopped at step {run.step:,} by train.max_steps; to go on: --resume --set train.max_steps=0")
    if log.rows and log.rows[-1]["kind"] in ("val", "val_ema") and log.rows[-1]["step"] == run.step:
        return  # the stop fell on the end of an epoch, where all of this was done
    if run.val_reader is None:
        run.save(run.folder.best, len(log.rows))
        return
    num_panels = max(run.config.log.num_panels, run.config.log.num_saved_images)
    try:
        evaluation, averaged = validate_both(run, stop, collect_panels=num_panels)
    except StoppedError:
        return
    if take_validation(run, log, display, evaluation, averaged, epoch=run.epoch_in_work):
        run.save(run.folder.best, len(log.rows))
    draw_predictions(run, log, evaluation.panels, is_last=True)
