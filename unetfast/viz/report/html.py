"""HTML that is escaped by construction: text becomes markup only through `tag`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = frozenset({"br", "circle", "hr", "img", "line", "meta", "path", "rect"})


class Html(str):
    """Markup; every other string is text, and is escaped where it enters markup."""

    __slots__ = ()


Child = str | Iterable["Child"] | None


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """Write an element.

    Args:
        name: of the element.
        children: markup, text (which is escaped), lists of both; None is left out.
        attributes: `class_` is written as class, `data_x` as data-x; None and False leave one out, True writes it bare.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>") if name in {"br", "hr", "img", "meta"} else Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Write children one after another."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(escape(_printable(children)))
    return Html("".join(join(child) for child in children))


def script_json(tree: Any, **attributes: Any) -> Html:
    """Write data for a script; nothing in it can end the script element."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f'<script type="application/json"{written}>{text}</script>')


def number(value: float | None, digits: int = 4) -> str:
    """Write a number; a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits, without an exponent where it stays short."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e15 else text


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_printable(str(value)), quote=True)}"'


def _printable(text: str) -> str:
    """Replace what no HTML file may hold: control characters but tab and line breaks, and lone surrogates of broken names."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_forbidden(letter) else letter for letter in text)


def _is_forbidden(letter: str) -> bool:
    code = ord(letter)
    return (code < 32 and letter not in "\t\n\r") or code == 127 or 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000
