"""The learning-rate range test: a short training in which the rate grows.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, with a rate that grows by a constant factor a
step. It takes the training's own steps (loader, augmentation, loss, optimizer, number format, micro-batches), starts from the
weights that training would start from, and leaves nothing on disk but a picture. lrjudge.py reads its losses.
"""

from __future__ import annotations

import json as json_module
import math
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.console import Console

from unetfast.config import Config, EarlyStopConfig, EmaConfig
from unetfast.device import resolve_device
from unetfast.distributed import World, read_environment
from unetfast.errors import UserError
from unetfast.infer.show import build_bar
from unetfast.train.autobatch import settle_batch_size
from unetfast.train.lrjudge import RateTest, Smoother, Verdict, judge, span_of, to_json
from unetfast.train.randomness import numeric_settings
from unetfast.train.run import Run
from unetfast.train.runfolder import RunFolder, save_picture
from unetfast.train.setup import build_run, describe_run, resolve_run
from unetfast.train.step import train_step
from unetfast.weights import take_initial_weights

MIN_STEPS = 20  # fewer points make no curve
DIVERGED_FACTOR = 4.0  # a smoothed loss this many times its least one ends the test


def run_lr_find(
    shards: Path,
    *,
    config: Path | None = None,
    preset: str | None = None,
    overrides: list[str] | None = None,
    num_steps: int = 100,
    first: float = 1e-7,
    last: float = 1.0,
    picture: Path = Path("lr-find.png"),
    json: bool = False,
    console: Console | None = None,
    stdout: TextIO | None = None,
) -> bool:
    """Do what `unetfast lr-find` does: run the test, draw it, print what it says.

    Args:
        shards: shard folder with a train split.
        config: a TOML file, as of `unetfast train`.
        preset: name of a shipped config.
        overrides: `key=value` settings on top.
        num_steps: optimizer steps.
        first: learning rate of the first step.
        last: of the last one.
        picture: PNG to write; its folder must be there.
        json: print one JSON object rather than lines for people.
        console: for progress and notes; None is silent.
        stdout: for the result; None takes the standard output.

    Returns:
        Whether there is a suggestion.

    Raises:
        UserError: a setting, a path or a number is not fit for it.
    """
    check_range(num_steps, first, last)
    check_picture(picture)
    resolved = resolve_run(shards, config=config, preset=preset, overrides=overrides, console=console).config
    test = find_learning_rate(shards, resolved, num_steps=num_steps, first=first, last=last, console=console)
    verdict = judge(test)
    draw_test(test, verdict, picture, title=f"learning-rate test, {resolved.optimizer.name}, {shards}")
    lines = [json_module.dumps(to_json(test, verdict, picture=picture), allow_nan=False)]
    if not json:
        lines = describe_verdict(test, verdict, picture=picture, command=train_command(shards, config, preset, overrides))
    print(*lines, sep="\n", file=stdout or sys.stdout)
    return verdict.suggestion is not None


def check_picture(picture: Path) -> None:
    """Refuse a place for the picture before the time for it is spent.

    Raises:
        UserError: no PNG, or a folder that is not there.
    """
    if picture.suffix.lower() != ".png":
        raise UserError(f"--out {picture}: the picture is a PNG, so its name must end in .png")
    if not picture.parent.is_dir():
        raise UserError(f"--out {picture}: there is no folder {picture.parent}; make it, or take another --out")


def draw_test(test: RateTest, verdict: Verdict, picture: Path, *, title: str) -> None:
    """Write the picture of a test."""
    from unetfast.viz.lrcurve import draw_lr_curve  # matplotlib, which only this picture needs

    drawn = draw_lr_curve(
        test.rates, test.losses, test.smoothed, suggestion=verdict.suggestion, verdict=verdict.reason, title=title
    )
    save_picture(drawn, picture)


def train_command(shards: Path, config: Path | None, preset: str | None, overrides: list[str] | None) -> str:
    """Write the command that trains with the settings of a test, ready to be pasted."""
    words = ["unetfast", "train", "--shards", str(shards)]
    words += [] if config is None else ["--config", str(config)]
    words += [] if preset is None else ["--preset", preset]
    for override in overrides or []:
        if override.partition("=")[0].strip() != "optimizer.learning_rate":
            words += ["--set", override]
    return shlex.join(words)


def describe_verdict(test: RateTest, verdict: Verdict, *, picture: Path, command: str) -> list[str]:
    """Say in lines for people what a test came to, and what to do next.

    Args:
        test: its losses.
        verdict: what they say.
        picture: where they are drawn.
        command: that trains with the same settings.
    """
    num_steps, last_rate = len(test.rates), test.rates[-1]
    end = f"the loss diverged at {last_rate:.2g}" if test.diverged else f"no divergence up to {last_rate:.2g}"
    lines = [f"test    {num_steps} steps, learning rates {test.rates[0]:.2g} to {last_rate:.2g}; {end}; drawn in {picture}"]
    if verdict.suggestion is None:
        return [*lines, f"result  no suggestion: {verdict.reason}", f"next: {verdict.remedy}"]
    lines.append(f"result  learning rate {verdict.suggestion:.2g}: {verdict.reason}")
    if verdict.remedy:
        lines.append(f"note: {verdict.remedy}")
    return [*lines, f"next: {command} --set optimizer.learning_rate={verdict.suggestion:.2g}"]


def find_learning_rate(
    shards: Path,
    config: Config,
    *,
    num_steps: int = 100,
    first: float = 1e-7,
    last: float = 1.0,
    console: Console | None = None,
) -> RateTest:
    """Run the test on a shard folder.

    Args:
        shards: shard folder with a train split.
        config: of the training that the rate is for. Its learning rate and schedule are replaced by the test's.
        num_steps: optimizer steps.
        first: learning rate of the first step.
        last: of the last one.
        console: for progress and notes; None is silent.

    Returns:
        The losses, up to the first that is not finite or `DIVERGED_FACTOR` times the least. Waits for the GPU in each step.

    Raises:
        UserError: numbers out of range, settings that do not fit shards or device, or several processes.
    """
    check_range(num_steps, first, last)
    if read_environment().size > 1:
        raise UserError(
            "lr-find works in one process, and the rate that it finds holds for a batch however many share it: no torchrun"
        )
    console = console or Console(quiet=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    # a run needs a folder's name; nothing is written into it
    folder = RunFolder(Path("no-run-of-lr-find"))
    config = settle_batch_size(shards, config_of_step(config, first), folder, None, World(), say)
    device = resolve_device(config.train.device)
    settings = numeric_settings(seed=config.train.seed, deterministic=config.train.deterministic, device=device)
    with settings, build_run(shards, config, folder) as run:
        notes = take_initial_weights(run.model, run.config)
        for line in [*describe_run(run, shards)[:-1], *notes]:
            say(line)
        return sweep(run, RateTest(num_steps), first=first, last=last, console=console)


def check_range(num_steps: int, first: float, last: float) -> None:
    """Refuse a test that cannot be drawn.

    Raises:
        UserError: too few steps, or rates that do not grow.
    """
    if num_steps < MIN_STEPS:
        raise UserError(f"--steps {num_steps}: at least {MIN_STEPS}, fewer points make no curve")
    if not 0 < first < last < math.inf:
        raise UserError(f"--from {first:g} --to {last:g}: both above 0, and the second larger than the first")


def config_of_step(config: Config, rate: float) -> Config:
    """Return a config whose every step has this learning rate, whatever its schedule; nothing averages it or ends it early."""
    schedule = config.schedule.model_copy(update={"name": "constant", "warmup_steps": 0})
    optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
    ema, early_stop = EmaConfig(decay=0), EarlyStopConfig(patience=0)
    return config.model_copy(update={"schedule": schedule, "optimizer": optimizer, "ema": ema, "early_stop": early_stop})


def sweep(run: Run, test: RateTest, *, first: float, last: float, console: Console) -> RateTest:
    """Take the training's steps with a growing rate, and note their losses in `test`."""
    batch_size, base = run.config.loader.batch_size, run.config
    smoother, least = Smoother(span_of(test.num_steps)), math.inf
    batches = iter(run.loader)
    with build_bar("lr-find", test.num_steps * batch_size, console) as show:
        for step in range(test.num_steps):
            rate = first * (last / first) ** (step / (test.num_steps - 1))
            run.config = config_of_step(base, rate)
            train_step(run, next(batches))
            loss = run.meter.read_window()  # nan where the step was not applied
            test.rates.append(rate)
            test.losses.append(loss)
            test.smoothed.append(smoother.add(loss))
            show((step + 1) * batch_size)
            least = min(least, test.smoothed[-1])
            if not math.isfinite(loss) or test.smoothed[-1] > DIVERGED_FACTOR * least:
                test.diverged = True
                break
    for line in run.notices:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return test
