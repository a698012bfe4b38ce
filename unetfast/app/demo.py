"""The whole main job on toy data, by the same public functions as the commands: shard, inspect, train, eval, predict.

Each step prints the command line that does the same. The folder is made afresh each time; what the demo did not make is
never deleted: a file list is left in it, and a folder that holds anything else is refused.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetfast.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

MARKER_NAME = ".unetfast-demo.json"
NUM_PREDICTED = 8
_PICTURE_NAMES = ("sheet.png", "predictions.png", "training_history.png")
_TOP_NAMES = frozenset({MARKER_NAME, "Data", "shards", "run", "held-back", "pred", "eval.json", *_PICTURE_NAMES})


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """How much toy data a demo draws; small enough for two cores.

    Args:
        num_groups: cars, videos or images.
        images_per_group: angles or frames; None where a group is one image.
        val_fraction: share of groups held back.
    """

    num_groups: int
    images_per_group: int | None
    val_fraction: float


DEMO_PLANS = {
    "carvana": DemoPlan(num_groups=70, images_per_group=4, val_fraction=0.2),
    "clevr": DemoPlan(num_groups=50, images_per_group=6, val_fraction=0.2),
    "ade20k": DemoPlan(num_groups=120, images_per_group=None, val_fraction=0.2),
}
DEMO_SEED = 1


@dataclass(slots=True)
class DemoReport:
    """What a demo came to.

    Args:
        out: its folder.
        scores: the object in `eval.json`: loss, mean_iou, mean_dice, pixel_accuracy, num_images, classes.
        seconds: duration of each step by name, s.
    """

    out: Path
    scores: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    *,
    dataset: str = "carvana",
    out: Path = Path("runs/demo"),
    overrides: list[str] | None = None,
    console: Console | None = None,
) -> DemoReport:
    """Draw a toy data set and do the whole job on it: `unetfast demo`.

    Args:
        dataset: "carvana", "clevr" or "ade20k".
        out: folder of the demo; an earlier demo in it is removed first.
        overrides: further `key=value` settings of the training.
        console: for the commands, progress and notes; None takes stderr.

    Returns:
        The scores on toy cars, videos or images held back.

    Raises:
        UserError: `out` holds files that no demo made, or the data set is unknown.
    """
    from rich.console import Console

    if dataset not in DEMO_PLANS:
        raise UserError(f"no demo of {dataset!r}; there are: {', '.join(DEMO_PLANS)}")
    console = console or Console(stderr=True, highlight=False)
    remove_former_demo(out)
    _start_folder(out)
    report = DemoReport(out)
    for name, step in (
        ("toy data", _draw_data),
        ("shard", _shard),
        ("inspect", _inspect),
        ("train", _train),
        ("eval", _eval),
        ("predict", _predict),
    ):
        start_s = time.perf_counter()
        step(_Job(dataset, out, overrides or [], console, report))
        report.seconds[name] = time.perf_counter() - start_s
    _collect_pictures(out)
    _write_marker(out, complete=True)
    _print_summary(report, console)
    return report


@dataclass(frozen=True, slots=True)
class _Job:
    dataset: str
    out: Path
    overrides: list[str]
    console: Console
    report: DemoReport

    def say(self, command: str) -> None:
        self.console.print(f"\n$ {command}", style="bold", markup=False, highlight=False, soft_wrap=True)

    @property
    def plan(self) -> DemoPlan:
        return DEMO_PLANS[self.dataset]

    @property
    def checkpoint(self) -> Path:
        return self.out / "run" / "best.pt"


def _draw_data(job: _Job) -> None:
    from unetfast.data.toy import write_toy

    plan = job.plan
    job.console.print(f"toy {job.dataset}: {plan.num_groups} groups drawn into {job.out / 'Data'}/", highlight=False)
    write_toy(
        job.out / "Data",
        job.dataset,
        num_groups=plan.num_groups,
        seed=DEMO_SEED,
        images_per_group=plan.images_per_group,
        val_fraction=plan.val_fraction,
    )


def _shard(job: _Job) -> None:
    from unetfast.data.pack import PackOptions, pack

    # a few hundred small images: starting worker processes would take longer than packing them
    job.say(f"unetfast shard --src {job.out}/Data --out {job.out}/shards --val-fraction {job.plan.val_fraction} --workers 1")
    options = PackOptions(val_fraction=job.plan.val_fraction)
    pack(job.out / "Data", job.out / "shards", options=options, workers=1, console=job.console)


def _inspect(job: _Job) -> None:
    from unetfast.app.inspect import inspect_shards

    job.say(f"unetfast inspect {job.out}/shards --verify --sheet {job.out}/sheet.png")
    inspect_shards(job.out / "shards", verify=True, sheet=job.out / "sheet.png", console=job.console)


def _train(job: _Job) -> None:
    from unetfast.train.loop import train
    from unetfast.train.setup import resolve_run

    preset, shards, run_folder = f"demo-{job.dataset}", job.out / "shards", job.out / "run"
    settings = "".join(f" --set {override}" for override in job.overrides)
    job.say(f"unetfast train --shards {shards} --preset {preset}{settings} --out {run_folder}")
    run = resolve_run(shards, preset=preset, overrides=job.overrides, out=run_folder, console=job.console)
    result = train(shards, run.config, run.out, console=job.console)
    if result.exit_code:
        raise KeyboardInterrupt  # stopped by a signal: the demo ends too


def _eval(job: _Job) -> None:
    from unetfast.infer.evaluate_checkpoint import evaluate_checkpoint

    path = job.out / "eval.json"
    job.say(f"unetfast eval --shards {job.out}/shards --checkpoint {job.checkpoint} --json > {path}")
    with path.open("w", encoding="utf-8") as stream:
        evaluate_checkpoint(job.out / "shards", job.checkpoint, json=True, console=job.console, stdout=stream)
    job.report.scores = json.loads(path.read_text(encoding="utf-8"))


def _predict(job: _Job) -> None:
    from unetfast.infer.predict import predict

    held_back = job.out / "held-back"
    held_back.mkdir()
    for path in list_held_back(job.out)[:NUM_PREDICTED]:
        shutil.copyfile(path, held_back / "_".join(path.parts[-2:]))
    job.say(f"unetfast predict --checkpoint {job.checkpoint} {held_back} --out {job.out}/pred --overlay")
    predict(job.checkpoint, [held_back], job.out / "pred", overlay=True, console=job.console)


def list_held_back(out: Path) -> list[Path]:
    """List the demo's source images of the val split, in the order of the shards."""
    from unetfast.data.reader import open_shards

    reader = open_shards(out / "shards").split("val")
    try:
        return [out / "Data" / reader.read_json(i)["source_path"] for i in range(reader.num_samples)]
    finally:
        reader.close()


def _collect_pictures(out: Path) -> None:
    shutil.copyfile(out / "run" / "predictions_epoch_final.png", out / "predictions.png")
    shutil.copyfile(out / "run" / "training_history.png", out / "training_history.png")


def _print_summary(report: DemoReport, console: Console) -> None:
    out, scores = report.out, report.scores
    # background aside, the classes that occur
    classes = [entry for entry in scores["classes"] if entry["dice"] is not None]
    named = [entry for entry in classes if entry["name"] != "background"]
    dice = f"Dice {named[0]['dice']:.4f} ({named[0]['name']})" if len(named) == 1 else f"mean Dice {scores['mean_dice']:.4f}"
    lines = [
        "",
        f"{dice}   mIoU {scores['mean_iou']:.4f}   accuracy {scores['pixel_accuracy']:.4f}   "
        f"{scores['num_images']} images held back",
        f"{out}/eval.json   {out}/predictions.png   {out}/pred/   {out}/training_history.png   {out}/sheet.png",
        f"{sum(report.seconds.values()):.0f} s: "
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in report.seconds.items()),
        "next: unetfast shard --src YOUR_DATA --out shards/",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def remove_former_demo(out: Path) -> None:
    """Remove an earlier demo from its folder.

    Raises:
        UserError: the folder holds something that no demo made; nothing is removed then.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out}: not a folder; name another one with --out")
    if not out.exists() or not any(out.iterdir()):
        return
    foreign = _find_foreign(out)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{out}: the demo starts afresh, and this folder holds what it did not make: {foreign[0]}{more}\n"
            "  move that elsewhere, or name another folder with --out"
        )
    for entry in sorted(out.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER_NAME:
            entry.unlink()
    (out / MARKER_NAME).unlink()  # last: a removal that was interrupted can go on


def _find_foreign(out: Path) -> list[str]:
    marker = out / MARKER_NAME
    try:
        tree = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    except (OSError, ValueError):
        tree = None
    if not isinstance(tree, dict):  # no demo was ever here
        return sorted(entry.name for entry in out.iterdir())
    if tree.get("complete") is True:
        return sorted(set(_list_files(out)) - set(tree["files"]))
    # stopped on its way: no list yet, so its names at the top must do
    return sorted(entry.name for entry in out.iterdir() if entry.name not in _TOP_NAMES)


def _list_files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir())


def _start_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_marker(out, complete=False)
    except OSError as error:
        raise UserError(f"{out}: cannot write here ({error.strerror}); name another folder with --out") from None


def _write_marker(out: Path, *, complete: bool) -> None:
    files = sorted({*_list_files(out), MARKER_NAME}) if complete else []
    (out / MARKER_NAME).write_text(json.dumps({"complete": complete, "files": files}) + "\n", encoding="utf-8")
