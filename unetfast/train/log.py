"""What a run writes down: metrics.jsonl (one JSON object a line) and TensorBoard events.

Rows of metrics.jsonl have a `kind`: "train" (every `log.every_steps` steps), "epoch" (the training samples of a finished epoch)
and "val" (a validation pass). A number that is not finite or not defined is null.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from unetfast.checkpoint import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read metrics.jsonl; a last line that was cut short by a kill is left out, a missing file has no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricsLog:
    """Appends rows to metrics.jsonl and TensorBoard.

    Args:
        path: of metrics.jsonl.
        tensorboard: folder of the event files; None writes none.
        keep_rows: rows of the file that belong to the checkpoint the run goes on from; later ones are cut off, since their
            steps are done again.
        step: of that checkpoint; TensorBoard hides its events behind it.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None, keep_rows: int = 0, step: int = 0) -> None:
        self.rows = [row for row in read_rows(path)[:keep_rows] if row["step"] <= step]
        write_whole(path, lambda file: file.write("".join(map(_to_line, self.rows)).encode()))
        self._file = path.open("a", encoding="utf-8")
        self._writer = None if tensorboard is None else _open_tensorboard(tensorboard, purge_step=step + 1 if step else None)

    def add(self, row: Row) -> None:
        """Append one row; it is in the file, if not on the disk, when this returns."""
        row = {key: _defined(value) for key, value in row.items()}
        self.rows.append(row)
        self._file.write(_to_line(row))
        self._file.flush()
        if self._writer is not None:
            _add_scalars(self._writer, row)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _to_line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(folder: Path, purge_step: int | None) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # takes a while, and pulls in protobuf

    return SummaryWriter(str(folder), purge_step=purge_step)


def _add_scalars(writer: SummaryWriter, row: Row) -> None:
    for key, value in row.items():
        if key not in ("kind", "step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool):
            writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])
    for entry in row.get("classes", ()):
        if entry["iou"] is not None:
            writer.add_scalar(f"{row['kind']}_iou/{entry['name']}", entry["iou"], row["step"])
