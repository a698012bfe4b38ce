"""Reports and comparisons in a real headless browser: rendered whole, no error, no request, nothing cut off."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from toy_record import make_record

from unetfast.viz.report.compare import build_comparison
from unetfast.viz.report.comparison import compare_records
from unetfast.viz.report.sections import build_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Seen, look

SECTIONS = ["curves", "scores", "classes", "confusion", "samples", "predictions", "throughput", "data", "config", "starts"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def assert_clean(seen: Seen) -> None:
    assert seen.console == []
    assert seen.requests == set()
    assert seen.probe["ready"] == "yes"
    assert seen.probe["broken"] == 0
    assert seen.probe["page"] <= seen.probe["width"]
    assert seen.probe["wide"] == []
    assert seen.probe["clipped"] == []
    assert len(np.unique(seen.picture[::9, ::9].reshape(-1, 3), axis=0)) > 50  # something was painted


def test_the_browser_tells_errors_and_requests_of_a_page(tmp_path: Path) -> None:
    """What the other tests prove the absence of is seen where it is there."""
    page = write(
        tmp_path / "bad.html",
        '<!DOCTYPE html><html><body><div style="width:3000px">wide</div><img src="http://127.0.0.1:9/x.png">'
        "<script>nobody();</script></body></html>",
    )
    seen = look(page, tmp_path)
    assert "nobody is not defined" in "\n".join(seen.console)
    assert seen.requests == {"http://127.0.0.1:9/x.png"}
    assert "DIV." in seen.probe["wide"]
    assert seen.probe["ready"] == ""


def test_a_report_renders_on_a_wide_screen(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", build_report(make_record(4)))
    seen = look(page, tmp_path)
    assert_clean(seen)
    assert seen.probe["sections"] == SECTIONS
    assert seen.probe["curves"] > 12
    assert not seen.probe["dark"]
    assert seen.picture[2, 2].min() > 230  # light paper
    assert seen.probe["scrolling"] == 0


def test_a_report_of_150_classes_renders_on_a_dark_narrow_screen(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", build_report(make_record(150)))
    seen = look(page, tmp_path, width=400, dark=True)
    assert_clean(seen)
    assert seen.probe["width"] == 400
    assert seen.probe["sections"] == SECTIONS
    assert seen.probe["dark"]
    assert seen.picture[2, 2].max() < 60  # dark paper


def test_a_report_without_scripts_has_its_curves(tmp_path: Path) -> None:
    """All but the values under the pointer stands in the page itself."""
    text = build_report(make_record(4))
    assert text.count('<path d="M') > 12
    start = text.rindex("<script>")
    bare = text[:start] + text[text.index("</script>", start) + len("</script>") :]
    seen = look(write(tmp_path / "bare.html", bare), tmp_path)
    assert seen.console == []
    assert seen.probe["ready"] == ""
    assert seen.probe["sections"] == SECTIONS
    assert seen.probe["curves"] > 12


def test_a_comparison_renders_on_a_narrow_screen(tmp_path: Path) -> None:
    records = [make_record(12, name=name) for name in ("a run", "another run with a name that is rather long", "c")]
    page = write(tmp_path / "compare.html", build_comparison(compare_records(records)))
    seen = look(page, tmp_path, width=400)
    assert_clean(seen)
    assert seen.probe["sections"] == ["scores", "curves", "classes", "config", "speed"]
