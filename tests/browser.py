"""Pages in a real headless browser: what it rendered, what it complained of, what it asked for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # the browser's own questions to its makers do not leave the machine either
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# measured inside the page: what sticks out of it, which texts stick out of their drawing
PROBE = """<script>
addEventListener("load", function () {
  const wide = [], texts = [], width = document.documentElement.clientWidth;
  const list = function (what) { return Array.from(document.querySelectorAll(what)); };
  for (const node of list("body *")) {
    if (node.closest(".scroll") || node.closest("svg")) continue;
    const box = node.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) wide.push(node.tagName + "." + node.className);
  }
  for (const svg of list("figure > svg")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const isOut = box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
      if (isOut) texts.push(text.textContent);
    }
  }
  const found = {
    width: width, page: document.documentElement.scrollWidth, wide: wide, clipped: texts,
    scrolling: list(".scroll").filter(function (box) { return box.scrollWidth > box.clientWidth + 1; }).length,
    ready: document.documentElement.dataset.ready || "",
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    sections: list("section").filter(function (part) { return part.offsetHeight > 60; }).map((part) => part.id),
    broken: list("img").filter(function (image) { return image.complete && !image.naturalWidth; }).length,
    curves: list("path.curve").length
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# a window of a browser is at least 500 pixels wide: a narrow page stands in a frame
FRAME = """<!DOCTYPE html><html><body style="margin:0"><iframe src="{page}"
style="width:{width}px;height:{height}px;border:0"></iframe><script>
addEventListener("message", function (event) {{
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = event.data;
  document.body.appendChild(out);
}});
</script></body></html>"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a browser made of a page.

    Args:
        probe: what was measured in it after its scripts ran.
        console: lines that the page wrote to the console, errors among them.
        requests: addresses that the page asked for, itself left out.
        picture: RGB, uint8, (H, W, 3).
    """

    probe: dict[str, Any]
    console: list[str]
    requests: set[str]
    picture: np.ndarray


def look(page: Path, folder: Path, *, width: int = 1200, height: int = 2400, dark: bool = False) -> Seen:
    """Open a page from the disk; skips where there is no browser."""
    if PATH is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    probed = folder / f"probed_{page.name}"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = folder / f"frame_{page.name}"
    frame.write_text(FRAME.format(page=probed.as_uri(), width=width, height=height), encoding="utf-8")
    shot, log = folder / f"{page.stem}_{width}{'_dark' * dark}.png", folder / "net.json"
    look = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        command = [PATH, *QUIET, *look, f"--user-data-dir={home}", f"--window-size={width},{height}", f"--screenshot={shot}"]
        command += ["--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout)
    with Image.open(shot) as picture:
        picture_HWC = np.asarray(picture.convert("RGB"))
    return Seen(
        probe=json.loads(unescape(found[0])) if found else {},
        console=re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr),
        requests=_requests_of_page(log) - {probed.as_uri(), frame.as_uri()},
        picture=picture_HWC,
    )


def _requests_of_page(log: Path) -> set[str]:
    """Read the browser's log of its network: requests of a page have an origin as initiator, the browser's own have none."""
    events = json.loads(log.read_text())["events"]
    parameters = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {found["url"] for found in parameters if found["initiator"] != "not an origin"}
