"""The report of a run folder, made on request: `unetfast report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetfast.errors import UserError
from unetfast.train.history import write_report
from unetfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console


def make_report(run: Path, *, out: Path | None = None, console: Console | None = None) -> Path:
    """Write report.html from what stands in a run folder, also while the run goes on.

    Args:
        run: the run folder.
        out: the file to write; None takes report.html in the run folder.
        console: says where the report is; None is silent.

    Returns:
        The file written.

    Raises:
        UserError: it is not a run folder, a file in it is damaged, or `out` cannot be written.
    """
    path = check_page(out) if out is not None else RunFolder(run).report
    write_report(run, path)
    if console is not None:
        size_mib = path.stat().st_size / 2**20
        console.print(f"report  {path}, {size_mib:.1f} MiB; open it in a browser", markup=False, soft_wrap=True)
    return path


def check_page(out: Path) -> Path:
    """Test that a file may be written as an HTML page.

    Raises:
        UserError: it is a folder, or has no folder to stand in.
    """
    if out.is_dir():
        raise UserError(f"{out}: a folder; give --out a file, such as {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it, or give --out another file")
    return out
