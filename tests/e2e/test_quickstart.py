"""The notebook in `examples/`, run as a newcomer would."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_trains_evaluates_and_shows_both_tables(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)  # nobody's figures in the repository
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    tables = [
        output.data["text/html"]
        for cell in code
        for output in cell.outputs
        if "text/html" in output.get("data", {}) and "<table" in output.data["text/html"]
    ]
    assert len(tables) == 2
    assert all("macro-F1" in table and "majority" in table for table in tables)
    assert len(list(tmp_path.glob("outputs/criteria/*/metrics.json"))) == 1
