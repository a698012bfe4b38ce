"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unetfast.train.sinks.base import Outcome, Row, RunIdentity, scalars_of

MAX_PICTURE_PX = 1600  # width; the event file holds every picture
_MAX_TABLE_ROWS = 200


class TensorBoardSink:
    """Writes scalars, pictures and, for validation passes, a table of the classes.

    Args:
        identity: of the run; events behind its step are hidden by TensorBoard, since their steps are done again.
        folder: of the event files.
    """

    name = "TensorBoard"

    def __init__(self, identity: RunIdentity, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a while, and pulls in protobuf

        self._writer = SummaryWriter(str(folder), purge_step=identity.step + 1 if identity.step else None)

    def add_row(self, row: Row) -> None:
        for name, value in scalars_of(row):
            self._writer.add_scalar(name, value, row["step"])
        if row.get("classes"):
            self._writer.add_text(f"{row['kind']}_classes", table_of_classes(row), row["step"])

    def add_picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
        if rgb.width > MAX_PICTURE_PX:
            rgb = rgb.resize((MAX_PICTURE_PX, round(rgb.height * MAX_PICTURE_PX / rgb.width)), Image.Resampling.LANCZOS)
        self._writer.add_image(name, np.array(rgb), step, dataformats="HWC")

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002  # event files know no outcome
        self._writer.close()


def table_of_classes(row: Row) -> str:
    """Write the classes of a validation row as a Markdown table, the worst first."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    shown = sorted(row["classes"], key=lambda entry: 2.0 if entry["iou"] is None else entry["iou"])
    lines = ["| class | IoU | Dice | pixels |", "|---|--:|--:|--:|"]
    for entry in shown[:_MAX_TABLE_ROWS]:
        name = " ".join(entry["name"].replace("|", "\\|").replace("<", "&lt;").split())
        lines.append(f"| {name} | {number(entry['iou'])} | {number(entry['dice'])} | {entry['pixels']:,} |")
    if len(shown) > _MAX_TABLE_ROWS:
        lines.append(f"| {len(shown) - _MAX_TABLE_ROWS} more in metrics.jsonl | | | |")
    return "\n".join(lines)
