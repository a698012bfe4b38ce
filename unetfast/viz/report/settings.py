"""The config of a run in a page."""

from __future__ import annotations

from typing import Any

from unetfast.viz.report.html import Html, significant, tag
from unetfast.viz.report.record import RunRecord, flatten


def write_config(record: RunRecord) -> Html:
    """Write every key of a config; those that are not at their defaults in bold, with the default."""
    tables = []
    for name, values in record.config.items():
        if not isinstance(values, dict):
            continue
        pairs = []
        for key, value in flatten(values):
            default = _look_up(record.defaults.get(name, {}), key)
            changed = name in record.defaults and default != value
            hint = f"default {format_value(default)}" if changed else None
            pairs.append(
                tag(
                    "div",
                    tag("span", key, class_="changed" if changed else None),
                    tag("span", tag("code", format_value(value)), tag("span", f"  ({hint})", class_="muted") if hint else None),
                    class_="pair",
                )
            )
        tables.append(tag("div", tag("h3", f"[{name}]"), pairs))
    note = tag("p", "Bold: other than the default.", class_="muted")
    return tag("div", note, tag("div", tables, class_="config"))


def _look_up(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def format_value(value: Any) -> str:
    """Write a value of a config shortly, as TOML would."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return significant(value, 6)
    if isinstance(value, list):
        shown = ", ".join(format_value(part) for part in value[:12])
        return f"[{shown}{', ...' if len(value) > 12 else ''}]"
    return "none" if value is None else str(value) or '""'
