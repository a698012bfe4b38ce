"""What a run writes down: metrics.jsonl, one JSON object a line, and what its sinks are given.

Rows have a `kind`: "train" (every `log.every_steps` steps), "epoch" (the training samples of a finished epoch), "val" (a
validation pass), "val_ema" (the same with the averaged weights), "bad_step" (a step that was not applied). Readers pass over
kinds that they do not know. A number that is not finite or not defined is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from unetfast.train.sinks.base import Outcome, Row, Sink
from unetfast.train.sinks.carrier import Carrier
from unetfast.wholefile import write_whole


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
    """Appends rows to metrics.jsonl and hands them to the sinks, which can neither slow a run down nor end it.

    Args:
        path: of metrics.jsonl; None keeps the rows in memory alone, in a process that does not write.
        sinks: what else is given the rows; closed with the log.
        say: prints one line, where a sink fails; None is silent.
        keep_rows: rows of the file that belong to the checkpoint the run goes on from; later ones are cut off, since their
            steps are done again.
        step: of that checkpoint.
        rows: with `path` None, those of before.

    Attributes:
        rows: all of the run, those before a resume included.
        outcome: told to the sinks at the end; "failed" where the log is left by an error.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        sinks: Sequence[Sink] = (),
        say: Callable[[str], None] | None = None,
        keep_rows: int = 0,
        step: int = 0,
        rows: Sequence[Row] = (),
    ) -> None:
        self.outcome: Outcome = "finished"
        self._file: TextIO | None = None
        self.rows = list(rows)
        if path is not None:
            self.rows = [row for row in read_rows(path)[:keep_rows] if row["step"] <= step]
            write_whole(path, lambda file: file.write("".join(map(_to_line, self.rows)).encode()))
            self._file = path.open("a", encoding="utf-8")
        self._carriers = [Carrier(sink, say or _say_nothing) for sink in sinks]

    def add(self, row: Row) -> None:
        """Append one row; it is in the file, if not on the disk, when this returns."""
        row = {key: _defined(value) for key, value in row.items()}
        self.rows.append(row)
        if self._file is not None:
            self._file.write(_to_line(row))
            self._file.flush()
        for carrier in self._carriers:
            carrier.add_row(row)

    def add_picture(self, name: str, path: Path, step: int) -> None:
        """Hand a PNG of the run folder to the sinks, as the next one of the series `name`."""
        for carrier in self._carriers:
            carrier.add_picture(name, path, step)

    def close(self) -> None:
        """Close the file and the sinks; waits for these, but not for ever."""
        if self._file is not None:
            self._file.close()
        for carrier in self._carriers:
            carrier.close(self.outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.outcome = "failed"
        self.close()


def _to_line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say_nothing(line: str) -> None:
    pass
