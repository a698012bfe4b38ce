"""What a run says and writes about steps that went wrong, and when it gives up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unetfast.data.reader import SplitReader
from unetfast.errors import UserError
from unetfast.train.display import Display
from unetfast.train.guard import BadStep
from unetfast.train.log import MetricsLog
from unetfast.train.run import Run
from unetfast.wholefile import write_whole


def report_steps(run: Run, log: MetricsLog, display: Display, *, all_steps: bool = False) -> None:
    """Tell of smaller micro-batches and of bad steps, as far as the host knows of them. A collective if there are bad steps.

    A bad step gets a warning, a row of kind "bad_step" and a line of bad_steps.jsonl with the keys and source paths of its
    batch.

    Args:
        run: whose steps.
        log: gets the rows.
        display: gets the lines.
        all_steps: also the steps that the GPU may still be working on; waits for it.

    Raises:
        UserError: `train.max_bad_steps` steps in a row were bad. None of them was applied, and last.pt is saved.
    """
    for line in run.notices:
        display.say(f"warning: {line}", style="yellow")
    run.notices.clear()
    bad_steps = run.guard.read(all_steps=all_steps)
    limit = run.config.train.max_bad_steps
    is_too_much = run.guard.most_in_row >= limit
    if is_too_much:
        bad_steps += run.guard.read(all_steps=True)  # those that a GPU has done meanwhile
    for bad in bad_steps:
        _report_bad_step(run, log, display, bad)
    if not is_too_much:
        return
    run.guard.start_row()
    run.save(run.folder.last, len(log.rows))
    raise UserError(
        f"{run.folder.path}: loss or gradient not finite in {limit} steps in a row, the last bad one step "
        f"{bad_steps[-1].step:,} (train.max_bad_steps): the run is stopped\n"
        f"  none of them was applied: {run.folder.last.name} holds the weights from before; "
        f"their samples: {run.folder.bad_steps.name}\n"
        "  to go on behind them: the same command with --resume; with a lower optimizer.learning_rate or with "
        f"optimizer.clip_norm: a new run with --set train.init_checkpoint={run.folder.last}"
    )


def _report_bad_step(run: Run, log: MetricsLog, display: Display, bad: BadStep) -> None:
    samples = [_describe_sample(run.train_reader, sample_id) for sample_id in bad.sample_ids.tolist()]
    samples = [sample for part in run.world.gather(samples) for sample in part]
    row = {
        "step": bad.step,
        "loss": _write_number(bad.loss),
        "gradient_norm": _write_number(bad.gradient_norm),
        "keys": [key for key, _ in samples],
        "source_paths": [path for _, path in samples],
    }
    if run.world.is_main:
        with run.folder.bad_steps.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    log.add({"kind": "bad_step", "step": bad.step, "epoch": run.epoch_in_work, "loss": bad.loss, "keys": row["keys"]})
    display.warn_once(
        f"step {bad.step:,} was not applied: loss {row['loss']}, gradient norm {row['gradient_norm']}; "
        f"its {len(samples)} samples stand in {run.folder.bad_steps}"
    )


def _describe_sample(reader: SplitReader, sample_id: int) -> tuple[str, str]:
    """Return key and source path; an empty path where the sample does not know it."""
    try:
        return reader.key(sample_id), str(reader.read_json(sample_id).get("source_path") or "")
    except (UserError, OSError):  # its shard may be gone by now
        return f"sample {sample_id}", ""


def _write_number(number: float) -> float | str:
    """JSON has no nan and no infinity: these become "nan", "inf" and "-inf"."""
    return number if math.isfinite(number) else str(number)


def cut_bad_steps(path: Path, step: int) -> None:
    """Leave out of bad_steps.jsonl what comes behind a step, since a resumed run does those steps again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _step_of(line) <= step]
    write_whole(path, lambda file: file.write("".join(kept).encode()))


def _step_of(line: str) -> float:
    try:
        row: dict[str, Any] = json.loads(line)
        return int(row["step"])
    except (ValueError, KeyError, TypeError):  # cut short by a kill
        return math.inf
