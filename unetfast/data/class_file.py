"""The file of --classes: names and colours of classes, a line each.

Lines are in the order of the values in the masks, from 0. Each is one of

    name
    name r g b            (also with tabs, commas or semicolons)
    name #rrggbb          (also name,#rrggbb)

or the file is a table with a header line that names its columns: `name`, and if wanted `value` (or `id`, `idx`, `index`: the
value in the masks), `r g b` (or `red green blue`) or `color` (#rrggbb). Empty lines and lines that begin with `# ` are
passed over. Two names are labelme's: `__ignore__` is no class (as the first line it stands for -1, which 8-bit masks hold as
255), and `_background_` is called background.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from unetfast.data.masks import check_value, parse_color
from unetfast.errors import UserError

IGNORE_NAME = "__ignore__"
_VALUE_COLUMNS = ("value", "id", "idx", "index", "mask_value")
_COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
_EXAMPLE = "lines are `name` or `name r g b`, in the order of the values in the masks"


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of a class file.

    Args:
        name: of the class; `IGNORE_NAME` where its pixels are ignored.
        value: in the masks, where these hold numbers.
        color: RGB; None where the file gives none.
    """

    name: str
    value: int
    color: tuple[int, int, int] | None = None

    @property
    def ignored(self) -> bool:
        return self.name == IGNORE_NAME


def read_class_file(path: Path) -> tuple[ClassRow, ...]:
    """Read a class file; see the module for its forms.

    Raises:
        UserError: unreadable, empty, a line of no known form, or a name or value that stands twice; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); --classes takes a text file: {_EXAMPLE}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; --classes takes a text file: {_EXAMPLE}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("# ")]
    if not lines:
        raise UserError(f"{path}: holds no class; {_EXAMPLE}")
    header = [column.strip().lower() for column in _split(lines[0][1])]
    rows = _read_table(path, header, lines[1:]) if len(header) > 1 and "name" in header else _read_lines(path, lines)
    _check_unique(path, rows)
    return tuple(rows)


def _split(line: str) -> list[str]:
    delimiter = next((mark for mark in ",;\t" if mark in line), None)
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)) if delimiter else line.split()


def _read_lines(path: Path, lines: list[tuple[int, str]]) -> list[ClassRow]:
    rows: list[ClassRow] = []
    for number, line in lines:
        name, color = _name_and_color(line, path, number)
        first_value = -1 if rows and rows[0].value == -1 else 0
        value = -1 if not rows and name == IGNORE_NAME else len(rows) + first_value
        rows.append(ClassRow(_clean(name), value, color))
    return rows


def _name_and_color(line: str, path: Path, number: int) -> tuple[str, tuple[int, int, int] | None]:
    fields = [field.strip() for field in _split(line)]
    color = parse_color(fields[-1])
    if color and len(fields) > 1:
        return _before(line, fields[-1:]), color
    if len(fields) > 3 and all(re.fullmatch(r"\d{1,3}", field) for field in fields[-3:]):
        red, green, blue = (int(field) for field in fields[-3:])
        if max(red, green, blue) > 255:
            raise UserError(f"{path}, line {number}: colour {red} {green} {blue} is not within 0..255")
        return _before(line, fields[-3:]), (red, green, blue)
    if len(fields) > 1 and any(mark in line for mark in ",;\t") and re.fullmatch(r"#.*|\d+", fields[-1]):
        raise UserError(f"{path}, line {number}: {line!r} is of no known form; {_EXAMPLE}")
    return line, None


def _before(line: str, tail: list[str]) -> str:
    """Cut the last fields off a line, and what parted them."""
    for field in reversed(tail):
        line = line.rstrip().removesuffix(field).rstrip().rstrip(",;\t")
    return line.strip().strip('"')


def _read_table(path: Path, header: list[str], lines: list[tuple[int, str]]) -> list[ClassRow]:
    value_column = next((name for name in _VALUE_COLUMNS if name in header), None)
    color_columns = next((names for names in _COLOR_COLUMNS if set(names) <= set(header)), None)
    rows: list[ClassRow] = []
    for number, line in lines:
        fields = [field.strip() for field in _split(line)]
        if len(fields) != len(header):
            raise UserError(f"{path}, line {number}: {len(fields)} columns, the header has {len(header)}")
        row = dict(zip(header, fields, strict=True))
        try:
            value = int(row[value_column]) if value_column else len(rows)
            check_value(value, f"{path}, line {number}: value {value}")
            color = None
            if color_columns:
                red, green, blue = (int(row[name]) for name in color_columns)
                color = (red, green, blue)
            elif row.get("color") or row.get("colour"):
                color = parse_color(row.get("color") or row["colour"])
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if color and not all(0 <= channel <= 255 for channel in color):
            raise UserError(f"{path}, line {number}: colour {color} is not within 0..255")
        rows.append(ClassRow(_clean(row["name"]), value, color))
    if not rows:
        raise UserError(f"{path}: holds a header and no class")
    return rows


def _clean(name: str) -> str:
    return "background" if name == "_background_" else name


def _check_unique(path: Path, rows: list[ClassRow]) -> None:
    names: set[str] = set()
    values: set[int] = set()
    for row in rows:
        if row.name in names and not row.ignored:
            raise UserError(f"{path}: class {row.name!r} stands twice; give each class a name of its own")
        if row.value in values:
            raise UserError(f"{path}: value {row.value} stands twice; give each class a value of its own")
        names.add(row.name)
        values.add(row.value)
