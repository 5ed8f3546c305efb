"""The page of a comparison in a real browser: quiet, readable, sortable by keyboard, accessible."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.cli import main

pytestmark = pytest.mark.slow
Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def page_of_comparison(
    overrides_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page that the command writes of two runs of the joint task and a baseline."""
    folder = tmp_path_factory.mktemp("compared")
    runs = []
    for seed in (1, 2):
        own = [*overrides_for(folder, "joint"), f"seed={seed}", f"run_name=s{seed}"]
        run = train(own, task="joint", verbose=False)
        runs.append(str(evaluate(run, verbose=False).directory))
    output = folder / "comparison"
    assert main(["compare", *runs, "baseline:tfidf_lr", f"output={output}"]) == 0
    return output / "comparison.html"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_quiet_no_wider_than_its_window_and_begins_with_what_is_compared(
    page_of_comparison: Path, opened: Opened, width: int
) -> None:
    with opened(page_of_comparison, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        headings = page.locator("h2").all_inner_texts()
        assert headings[0] == "What is compared"
        assert len(headings) == 1 + 3  # each two of three systems
        assert page.locator(".answer").count() == 3


def test_tables_are_sorted_by_the_keyboard(page_of_comparison: Path, opened: Opened) -> None:
    with opened(page_of_comparison) as page:
        table = page.locator("#table-f1_1")
        before = table.locator("tbody th").all_inner_texts()
        head = table.locator("thead th", has_text="criterion")
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert table.locator("tbody th").all_inner_texts() == sorted(before, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_serious_fault(
    page_of_comparison: Path, opened: Opened, width: int, scheme: str
) -> None:
    with opened(page_of_comparison, width=width, scheme=scheme) as page:
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []
