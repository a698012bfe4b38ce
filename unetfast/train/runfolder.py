"""The run folder: which file stands where, who may write into it, and what a killed run left behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unetfast.config import Config, config_to_toml
from unetfast.errors import UserError
from unetfast.wholefile import TEMPORARY_MARK, write_whole

CONFIG_NAME = "config.toml"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names in `runs/NAME/`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG_NAME

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def history(self) -> Path:
        return self.path / "training_history.png"

    @property
    def bad_steps(self) -> Path:
        """Batches whose loss or gradient was not finite."""
        return self.path / "bad_steps.jsonl"

    @property
    def saved_images(self) -> Path:
        return self.path / "saved_images"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def facts(self) -> Path:
        return self.path / "facts.json"

    @property
    def validation(self) -> Path:
        """The last validation pass in detail."""
        return self.path / "validation.json"

    @property
    def best_validation(self) -> Path:
        return self.path / "validation_best.json"

    @property
    def samples(self) -> Path:
        """Pictures of the worst and best validation samples, and what they show."""
        return self.path / "samples"

    @property
    def progress(self) -> Path:
        return self.path / "progress.gif"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def kept(self, config: Config, *, epoch: int, step: int) -> Path:
        """Name a checkpoint that is kept, by the template `checkpoint.name`."""
        return self.path / config.checkpoint.name.format(epoch=epoch, step=step)

    def predictions(self, when: int | str) -> Path:
        """Name the picture of predictions: "initial", an epoch, or "final"."""
        return self.path / ("predictions_initial.png" if when == "initial" else f"predictions_epoch_{when}.png")

    def prepare(self) -> None:
        """Make the folder where it is missing, and remove half-written files of a killed run.

        Raises:
            UserError: no permission.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in filter(_is_leftover, self.path.rglob(".*")):
                path.unlink()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); take another --out") from None

    def write_config(self, config: Config) -> None:
        """Write the resolved config; whole or not at all."""
        write_whole(self.config, lambda file: file.write(config_to_toml(config).encode()))


def check_run_folder(out: Path, *, resume: bool) -> RunFolder:
    """Say whether a run may write into a folder; changes nothing.

    Raises:
        UserError: the folder of a new run holds something; or there is nothing to resume.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, not a folder; take another --out")
    if resume:
        _check_resumable(out)
    elif out.is_dir() and any(not _is_leftover(path) for path in out.iterdir()):
        what = "holds a run already" if (out / CONFIG_NAME).exists() else "is not empty"
        raise UserError(f"{out}: {what}; go on with it by --resume, or take another --out")
    return RunFolder(out)


def _check_resumable(out: Path) -> None:
    if not out.is_dir():
        raise UserError(f"{out}: no such run to resume; leave --resume out to start it")
    names = {path.name for path in out.iterdir() if not _is_leftover(path)}
    if names and not names & {"last.pt", CONFIG_NAME}:
        raise UserError(f"{out}: not a run folder (neither last.pt nor {CONFIG_NAME} in it); give --out of the run to resume")


def _is_leftover(path: Path) -> bool:
    # imports torch, which those who only read a run folder need not
    return path.name.startswith(".") and TEMPORARY_MARK in path.name


def next_free_folder(parent: Path, name: str) -> Path:
    """Name a folder `parent/name-N` with the smallest N above all that exist."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = [pattern.fullmatch(path.name) for path in parent.iterdir()] if parent.is_dir() else []
    return parent / f"{name}-{1 + max((int(match[1]) for match in found if match), default=0)}"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; whole or not at all."""
    write_whole(path, lambda file: picture.save(file, format="PNG"))
