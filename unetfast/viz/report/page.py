"""A page as one file: style and script inside, pictures inlined, nothing asked for from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files

from unetfast.viz.report.html import Child, Html, tag

# the browser itself holds the page to it: whatever is not inside the file is refused
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def build_page(title: str, *sections: Child, footer: Child = None) -> str:
    """Write a whole HTML file.

    Args:
        title: of the window.
        sections: of `section`, or any markup; a list of links to those with a name stands on top.
        footer: small print.
    """
    resources = files("unetfast.viz.report")
    style = Html(resources.joinpath("style.css").read_text(encoding="utf-8"))
    script = Html(resources.joinpath("script.js").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    body = tag("body", tag("main", sections), tag("footer", footer) if footer else None, tag("script", script))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def section(name: str, title: str, *children: Child) -> Html:
    """Write a section with a heading.

    Args:
        name: its anchor.
        title: its heading.
        children: what stands in it.
    """
    return tag("section", tag("h2", title), children, id=name)


def navigation(entries: Sequence[tuple[str, str]]) -> Html:
    """Write links to sections, given as (anchor, title)."""
    return tag("nav", [tag("a", title, href=f"#{name}") for name, title in entries])


def tiles(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Write key figures, given as (title, figure, small print)."""
    return tag(
        "div",
        [
            tag("div", tag("div", title, class_="tile-title"), tag("div", figure, class_="tile-figure"), tag("div", small))
            for title, figure, small in entries
        ],
        class_="tiles",
    )


def facts(entries: Sequence[tuple[str, Child]]) -> Html:
    """Write a list of names and what they are."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in entries], class_="facts")


def table(head: Sequence[Child], rows: Sequence[Sequence[Child]], *, numbers_from: int = 1) -> Html:
    """Write a table.

    Args:
        head: titles of the columns.
        rows: cells; each row as long as `head`.
        numbers_from: the column from which on cells are numbers, and stand at the right.
    """

    def look(place: int) -> str | None:
        return "num" if place >= numbers_from else None

    def write_row(row: Sequence[Child]) -> Html:
        # on a narrow page a row becomes a block, each cell with its title before it
        titled = [(tag("span", head[place], class_="title"), tag("span", cell)) for place, cell in enumerate(row)]
        return tag("tr", [tag("td", cell, class_=look(place)) for place, cell in enumerate(titled)])

    titles = tag("tr", [tag("th", cell, class_=look(place)) for place, cell in enumerate(head)])
    body = tag("tbody", [write_row(row) for row in rows])
    return tag("div", tag("table", tag("thead", titles), body, class_="list stack"), class_="scroll")


def inline_picture(data: bytes, media_type: str, alt: str) -> Html:
    """Write a picture that is part of the page."""
    address = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    return tag("img", src=address, alt=alt, loading="lazy")
