"""The report of a cross-validation and its page of errors in a real browser."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from psy_agents_noaug import cross_validate
from psy_agents_noaug.cli import main

pytestmark = pytest.mark.slow
Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def series(
    overrides_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cross-validation of two folds and two seeds, with its report and its page of errors."""
    changed = ("data.splits", "training.epochs", "report=")
    own = overrides_for(tmp_path_factory.mktemp("cv"))
    own = [word for word in own if not word.startswith(changed)]
    own += ["training.epochs=1", "data.split_fractions=[0.5,0.25,0.25]"]
    folder = cross_validate(own, folds=2, seeds=[1, 2], verbose=False).directory
    assert (folder / "report.html").is_file()
    assert main(["report", str(folder), "with_text=true"]) == 0
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["report.html", "errors.html"])
def test_pages_are_quiet_fit_their_window_and_have_no_serious_fault(
    series: Path, opened: Opened, name: str, width: int, scheme: str
) -> None:
    with opened(series / name, width=width, scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []


def test_errors_are_those_of_one_seed_unless_all_are_chosen(series: Path, opened: Opened) -> None:
    text = (series / "predictions" / "out_of_fold.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    with opened(series / "errors.html") as page:
        page.select_option("[name=kind]", "")
        of_one = sum(line["seed"] == 1 for line in lines)
        assert page.locator("#count").inner_text() == f"1 of {of_one} predictions"
        page.select_option("[name=seed]", "")
        assert page.locator("#count").inner_text() == f"1 of {len(lines)} predictions"
        assert "Predictions are out of fold" in page.locator("main").inner_text()
