"""A run folder read back as data, for a report or a comparison. Imports no torch, so that reading is quick."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unetfast.config import Config
from unetfast.errors import UserError
from unetfast.train.log import read_rows
from unetfast.train.progress import list_pictures
from unetfast.train.runfolder import RunFolder
from unetfast.viz.report.record import Row, RunRecord, Sample
from unetfast.viz.report.sections import build_report
from unetfast.wholefile import write_whole

MAX_PICTURE_PX = 1400  # width of a picture in a report
JPEG_QUALITY = 88
SAMPLES_NAME = "samples.json"


def read_record(path: Path, *, pictures: bool = True) -> RunRecord:
    """Read what a run folder says.

    Args:
        path: the run folder.
        pictures: read the pictures too.

    Raises:
        UserError: there is no such folder, it is not a run folder, or a file in it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give a folder that `unetfast train --out` wrote")
    folder = RunFolder(path)
    if not folder.config.is_file() or not folder.metrics.is_file():
        missing = folder.config.name if not folder.config.is_file() else folder.metrics.name
        raise UserError(f"{path}: not a run folder ({missing} is not in it); give a folder that `unetfast train --out` wrote")
    validation = _read_json(folder.best_validation) or _read_json(folder.validation)
    rows = _read_rows(folder.metrics)
    return RunRecord(
        name=path.resolve().name,
        path=str(path),
        config=_read_config(folder.config),
        defaults=Config().model_dump(mode="json"),
        rows=rows,
        facts=_read_json(folder.facts) or {},
        validation=validation,
        samples=list(_read_samples(folder, validation)) if pictures else [],
        pictures=list(_read_pictures(folder, rows)) if pictures else [],
    )


def write_report(path: Path, out: Path) -> None:
    """Write the report of a run folder as one HTML file.

    Raises:
        UserError: it is not a run folder, a file in it is damaged, or `out` cannot be written.
    """
    data = build_report(read_record(path)).encode()
    write_whole(out, lambda file: file.write(data))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it is written anew when the run is resumed") from None


def _read_rows(path: Path) -> list[Row]:
    try:
        rows = read_rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: line {number} is no row of metrics (an object with kind and step); remove that line")
    return rows


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, and the report does without") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no object; remove it, and the report does without")
    return tree


def _read_samples(folder: RunFolder, validation: dict[str, Any] | None) -> Iterator[Sample]:
    """Read the pictures of samples, where they are of the validation pass that is shown."""
    tree = _read_json(folder.samples / SAMPLES_NAME)
    if tree is None or validation is None or tree["step"] != validation["step"]:
        return
    for entry in tree["samples"]:
        path = folder.samples / Path(entry["picture"]).name
        if path.is_file():
            data, media_type = shrink_picture(path)
            yield Sample(entry["kind"], entry["name"], entry["iou"], entry["accuracy"], data, media_type)


def _read_pictures(folder: RunFolder, rows: Sequence[Row]) -> Iterator[tuple[str, bytes, str]]:
    """Read the first and the last picture of predictions."""
    ends = [row for row in rows if row["kind"] == "epoch"]
    is_inside = bool(rows) and rows[-1]["step"] > (ends[-1]["step"] if ends else 0)
    found = list_pictures(folder, max_epoch=ends[-1]["epoch"] if ends else 0, is_inside=is_inside)
    for title, path in [found[0], found[-1]] if len(found) > 1 else found:
        yield (title, *shrink_picture(path))


def shrink_picture(path: Path) -> tuple[bytes, str]:
    """Read a picture file as a JPEG for a page, reduced where it is wide; colours of masks are kept at full resolution.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, and the report does without") from None
    if rgb.width > MAX_PICTURE_PX:
        rgb = rgb.resize((MAX_PICTURE_PX, round(rgb.height * MAX_PICTURE_PX / rgb.width)), Image.Resampling.BOX)
    buffer = io.BytesIO()
    rgb.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), "image/jpeg"
