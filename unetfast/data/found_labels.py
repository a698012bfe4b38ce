"""The classes of masks that come without a fixed list: from --classes, --ignore and --map, and from the values in the masks.

All masks are read once for it, unless --classes and --ignore say it all. What their values mean is taken for granted only
where it can mean one thing: 0..k; 0 and 255; 0..k and 255 (or -1) for ignored pixels. Anything else is an error that lists
the values and the options that settle it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unetfast.data.class_file import ClassRow, read_class_file
from unetfast.data.labels import ClassInfo, LabelTable, MaskValue
from unetfast.data.masks import (
    MaskValues,
    TableMaskReader,
    ValueMap,
    check_value,
    decode_mask_values,
    distinct_values,
    format_value,
    shorten_values,
)
from unetfast.data.sample import FileSpan
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError, UserError

Color = tuple[int, int, int]
_MAX_VALUES = 1024  # past this many values in the masks, no list of them is kept


@dataclass(frozen=True, slots=True)
class FoundLabels:
    """The classes, the reader of their masks, and notes on what the values were taken for."""

    labels: LabelTable
    read_mask: TableMaskReader
    notes: list[tuple[str, int]]


@dataclass(slots=True)
class _Values:
    """Values found in all masks: value -> (masks that hold it, the first of them)."""

    found: dict[int, tuple[int, str]] = field(default_factory=dict)
    num_masks: int = 0

    def describe(self) -> str:
        parts = []
        for value, (num_masks, file) in sorted(self.found.items())[:16]:
            where = f"in {num_masks} of {self.num_masks} masks" + (f", first in {Path(file).name}" if num_masks < 4 else "")
            parts.append(f"  {value:>6} {where}")
        more = [f"  ... ({len(self.found)} values)"] if len(self.found) > 16 else []
        return "\n".join([*parts, *more])


@dataclass(slots=True)
class _Meaning:
    """What the numbers in the masks mean: value -> class id or None; the classes, with the value each is written as."""

    table: dict[int, int | None] = field(default_factory=dict)
    classes: list[ClassRow] = field(default_factory=list)
    notes: list[tuple[str, int]] = field(default_factory=list)

    def ignore(self, value: int) -> None:
        """Take a value for ignored pixels that the user did not name, and say so."""
        self.table[value] = None
        self.notes.append((f"value {value} in the masks is taken for ignored pixels", 1))


def find_labels(
    masks: Sequence[FileSpan],
    *,
    classes_file: Path | None,
    ignore_value: int | None,
    value_map: ValueMap,
    where: str,
) -> FoundLabels:
    """Find the classes of masks, and how their values become class ids.

    Values that --map does not name keep their own meaning. A value to be ignored takes no class id: with --ignore 0, values
    1..k are classes 0..k-1.

    Args:
        masks: all of them; the first that can be read says whether classes are numbers or colours.
        classes_file: names, colours and values; None finds the values and calls the classes class_0, class_1, ...
        ignore_value: value of ignored pixels.
        value_map: value or colour -> class id, or None for ignore.
        where: the source folder, for messages.

    Raises:
        UserError: the values can mean several things, or RGB masks come without colours; no mask can be read; no mask can hold
            the ignored value.
    """
    if ignore_value is not None:
        check_value(ignore_value, f"--ignore {ignore_value}")
    rows = read_class_file(classes_file) if classes_file else ()
    first, first_file = _first_readable(masks)
    has_colors = any(row.color for row in rows) or any(isinstance(value, tuple) for value, _ in value_map)
    if first.is_rgb and has_colors:
        return _by_color(rows, ignore_value, value_map, where)
    if any(isinstance(value, tuple) for value, _ in value_map):
        raise UserError(f"--map names colours, but {first_file} is not RGB; map its numbers, such as --map 255=1")
    first.as_single_channel(first_file)  # refuses colours that nobody named
    numbers = {value: class_id for value, class_id in value_map if not isinstance(value, tuple)}
    # where --classes and --ignore say all there is to say, the masks need not be read beforehand
    values = _Values() if rows and ignore_value is not None and not numbers else _collect_values(masks)
    if rows:
        meaning = _from_rows(rows, values, ignore_value, numbers, where)
    else:
        meaning = _from_values(values, ignore_value, numbers, where)
    ignored = [value for value, class_id in meaning.table.items() if class_id is None]
    if ignore_value is None and ignored:
        ignore_value = next((value for value in ignored if value in values.found), ignored[0])
    labels = LabelTable(classes=_color_classes(meaning.classes, first.palette), ignore_value=ignore_value)
    return FoundLabels(labels, TableMaskReader(labels, tuple(meaning.table.items())), meaning.notes)


def _by_color(rows: Sequence[ClassRow], ignore_value: int | None, value_map: ValueMap, where: str) -> FoundLabels:
    """Classes of RGB masks: the colours of the class file, then those of --map; --ignore V is the grey (V, V, V)."""
    table: dict[MaskValue, int | None] = {}
    classes: list[ClassInfo] = []
    for row in rows:
        if row.color is None and not row.ignored:
            raise UserError(f"{where}: its masks are RGB, and --classes gives class {row.name!r} no colour; add its `r g b`")
        if row.color is None:
            continue
        if row.color in table:
            raise UserError(
                f"{where}: colour {format_value(row.color)} stands for two classes in --classes; RGB masks cannot tell"
            )
        table[row.color] = None if row.ignored else len(classes)
        if not row.ignored:
            classes.append(ClassInfo(name=row.name, color=row.color, value=row.color))
    if ignore_value is not None:
        if not -1 <= ignore_value <= 255:
            raise UserError(f"--ignore {ignore_value}: the masks of {where} are RGB, whose values lie between 0 and 255")
        table[(ignore_value & 255,) * 3] = None  # -1 in 8 bits is 255
    for value, class_id in value_map:
        if not isinstance(value, tuple):
            raise UserError(f"--map {value}: the masks of {where} are RGB; name colours, such as --map '#ff0000=1'")
        if not rows and class_id is not None and class_id not in table.values():
            classes.append(ClassInfo(name=f"class_{class_id}", color=value, value=value))
        table[value] = class_id
    ids = {class_id for class_id in table.values() if class_id is not None}
    if ids != set(range(len(classes))):
        raise UserError(
            f"{where}: --map names the class ids {sorted(ids)}, there are {len(classes)} classes; ids count up from 0"
        )
    if not rows:
        classes.sort(key=lambda info: int(info.name.removeprefix("class_")))
    ignored = next((value for value, class_id in table.items() if class_id is None), None)
    labels = LabelTable(classes=tuple(classes), ignore_value=ignored)
    return FoundLabels(labels, TableMaskReader(labels, tuple(table.items()), by_color=True), [])


def _first_readable(masks: Sequence[FileSpan]) -> tuple[MaskValues, str]:
    error: BadSampleError | None = None
    for span in masks:
        file = describe_span(span)
        try:
            return decode_mask_values(read_span(span), file), file
        except BadSampleError as failed:
            error = error or failed
    raise error or UserError("no masks to find classes in")


def _collect_values(masks: Sequence[FileSpan]) -> _Values:
    """Find the values of all masks; one that cannot be read is passed over here, and refused when it is packed."""
    values = _Values()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for file, found in threads.map(_values_of, masks):
            if found is None:
                continue
            values.num_masks += 1
            for value in found:
                count, first = values.found.get(value, (0, file))
                values.found[value] = (count + 1, first)
            if len(values.found) > _MAX_VALUES:
                raise UserError(
                    f"{file}: the masks hold more than {_MAX_VALUES} values, up to {max(values.found)}: these are no class "
                    "ids (instance numbers? a photograph?); give masks whose pixels are classes"
                )
    return values


def _values_of(span: FileSpan) -> tuple[str, list[int] | None]:
    file = describe_span(span)
    try:
        mask = decode_mask_values(read_span(span), file)
    except BadSampleError:
        return file, None
    found, is_color = distinct_values(mask)
    return file, None if is_color else [value for value in found if not isinstance(value, tuple)]


def _from_rows(
    rows: Sequence[ClassRow], values: _Values, ignore_value: int | None, mapped: dict[int, int | None], where: str
) -> _Meaning:
    kept = [row for row in rows if not row.ignored and row.value != ignore_value]
    if not kept:
        raise UserError(f"{where}: every class of the --classes file is ignored")
    meaning = _Meaning({row.value: class_id for class_id, row in enumerate(kept)}, kept)
    for row in rows:
        if row.ignored:
            meaning.table[row.value] = None
            if row.value == -1:
                meaning.table.setdefault(255, None)  # -1 in 8 bits
    if ignore_value is not None:
        meaning.table[ignore_value] = None
    if not mapped and ignore_value is None and not any(row.ignored for row in rows):
        strange = values.found.keys() - meaning.table.keys()
        if [row.value for row in kept] == [0, 1] and 255 in strange and 1 not in values.found:
            meaning.table = {0: 0, 255: 1}
            meaning.classes[1] = replace(kept[1], value=255)
            strange -= {255}
        for value in sorted(strange & {-1, 255}):
            meaning.ignore(value)
    _apply_map(meaning, values, mapped, where)
    return meaning


def _from_values(values: _Values, ignore_value: int | None, mapped: dict[int, int | None], where: str) -> _Meaning:
    rest = values.found.keys() - mapped.keys() - {ignore_value}
    if mapped:
        ids = rest | {class_id for class_id in mapped.values() if class_id is not None}
        if not ids or ids != set(range(len(ids))):
            raise _ambiguous(values, where, f"with this --map the class ids are {shorten_values(sorted(ids))}")
        meaning = _Meaning({value: value for value in rest}, [ClassRow(f"class_{i}", i) for i in range(len(ids))])
    elif rest == {0, 255}:
        meaning = _Meaning({0: 0, 255: 1}, [ClassRow("background", 0), ClassRow("foreground", 255)])
    else:
        meaning = _Meaning()
        if ignore_value is None:
            # 255 that ends a row of values may as well be one of them, beside two values alone a second class
            apart = len(rest - {-1, 255}) > 2 and 254 not in rest
            for value in sorted(rest & ({-1, 255} if apart else {-1})):
                meaning.ignore(value)
            rest = rest - meaning.table.keys()
        if rest == set(range(256)):
            raise _ambiguous(values, where, "all 256 values of a byte occur: a photograph, or 255 classes and an ignore value")
        # what is left counts up from 0; the ignored value (--ignore 0, --ignore 20) may take a place among them
        places = rest | ({ignore_value} if ignore_value is not None and 0 <= ignore_value <= max(rest, default=-1) else set())
        if not rest or places != set(range(len(places))):
            raise _ambiguous(values, where, "they do not count up from 0")
        meaning.classes = [ClassRow(f"class_{value}", value) for value in sorted(rest)]
        meaning.table |= {row.value: class_id for class_id, row in enumerate(meaning.classes)}
    if ignore_value is not None:
        meaning.table[ignore_value] = None
    _apply_map(meaning, values, mapped, where)
    return meaning


def _apply_map(meaning: _Meaning, values: _Values, mapped: dict[int, int | None], where: str) -> None:
    for value, class_id in mapped.items():
        if class_id is not None and class_id >= len(meaning.classes):
            raise UserError(f"--map {value}={class_id}: {where} has the classes 0..{len(meaning.classes) - 1}")
        meaning.table[value] = class_id
    for value, class_id in mapped.items():
        if class_id is None:
            continue
        # predictions are written with a value that the masks hold
        own = meaning.classes[class_id]
        if own.value not in values.found or meaning.table.get(own.value) != class_id:
            meaning.classes[class_id] = replace(own, value=value)


def _ambiguous(values: _Values, where: str, reason: str) -> UserError:
    numbers = sorted(values.found)
    blurred = len(numbers) > 32 and numbers[0] >= 0 and numbers[-1] <= 255
    return UserError(
        f"{where}: the values in the masks can mean several things ({reason}):\n{values.describe()}\n"
        + (
            "  so many values come from masks that were resized or compressed; use the masks as they were drawn\n"
            if blurred
            else ""
        )
        + f"  say what they are: --classes FILE (names in the order of values), --ignore VALUE, or --map such as "
        f"--map {numbers[-1]}=1 or --map {numbers[-1]}=ignore"
    )


def _color_classes(classes: Sequence[ClassRow], palette: np.ndarray | None) -> tuple[ClassInfo, ...]:
    """Give each class its colour: of the class file, else of the masks' palette, else a default one."""
    colors = default_colors(len(classes))
    infos = []
    for row, color in zip(classes, colors, strict=True):
        if row.color is not None:
            color = row.color
        elif palette is not None and 0 <= row.value < len(palette):
            red, green, blue = palette[row.value].tolist()
            color = (red, green, blue)
        infos.append(ClassInfo(name=row.name, color=color, value=row.value))
    return tuple(infos)


def default_colors(num_classes: int) -> list[Color]:
    """Make distinct display colours: black and white for two classes, else those of PASCAL VOC (bits of the id, reversed)."""
    if num_classes <= 2:
        return [(0, 0, 0), (255, 255, 255)][:num_classes]
    colors = []
    for class_id in range(num_classes):
        channels = [0, 0, 0]
        rest = class_id
        for bit in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colors.append((channels[0], channels[1], channels[2]))
    return colors
