"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
PUBLIC = ("pack", "open_shards", "build_loader", "UNet", "train", "evaluate", "predict")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook client's own event loop, not of the code in the cells
def test_every_cell_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    work = tmp_path / "tutorial"
    assert (work / "run" / "best.pt").is_file()
    assert len(list((work / "pred").glob("*_overlay.jpg"))) == 2
    printed = [
        output["text"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    ]
    scores = next(text for text in printed if "mean IoU" in text)
    dice_of_car = float(next(line for line in scores.splitlines() if line.startswith("car")).split()[-1])
    assert dice_of_car > 0.8
    assert not [text for text in printed if "failed" in text and "[] failed" not in text]


def test_the_notebook_uses_the_whole_public_api() -> None:
    code = "".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code")
    assert [name for name in PUBLIC if f"unetfast.{name}(" not in code] == []
