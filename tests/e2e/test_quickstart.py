"""The notebook in `examples/`, run cell by cell."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_trains_evaluates_and_predicts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)  # nobody's figures in the repository
    names: dict[str, object] = {}
    for cell in code:
        exec(cell.source, names)
    predicted = eval(code[-1].source, names)  # what the notebook shows of its last cell
    assert len(predicted) == 2 * 9
    assert {"probability", "decision", "threshold"} <= set(predicted.columns)
    assert "f1_macro" in names["result"].table
    assert len(list(tmp_path.glob("outputs/criteria/*/metrics.json"))) == 1
