"""The report of a run in a real browser: quiet, readable, sortable by keyboard, accessible."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from psy_agents_noaug import evaluate, train

pytestmark = pytest.mark.slow
Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def page_of_run(
    overrides_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of a run of the joint task, made by the Python interface."""
    folder = tmp_path_factory.mktemp("run")
    own = [word for word in overrides_for(folder, "joint") if word != "report=false"]
    run = train(own, task="joint", verbose=False)
    return evaluate(run, verbose=False).directory / "report.html"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_quiet_and_no_wider_than_its_window(
    page_of_run: Path, opened: Opened, width: int
) -> None:
    with opened(page_of_run, width=width) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("h2").first.inner_text() == "Warnings"
        broken = "[...document.images].filter((one) => one.naturalWidth === 0).length"
        assert page.evaluate(broken) == 0


def test_tables_are_sorted_by_the_keyboard(page_of_run: Path, opened: Opened) -> None:
    with opened(page_of_run) as page:
        table = page.locator("#table-confusion_test")
        before = table.locator("tbody th").all_inner_texts()
        head = table.locator("thead th", has_text="false alarms")
        head.locator("button").focus()
        column = [text.strip() for text in table.locator("thead th").all_inner_texts()]
        place = next(n for n, name in enumerate(column) if name.startswith("false alarms"))

        def numbers() -> list[int]:
            return [
                int(x) for x in table.locator(f"tbody td:nth-child({place + 1})").all_inner_texts()
            ]

        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert numbers() == sorted(numbers())
        page.keyboard.press("Space")
        assert head.get_attribute("aria-sort") == "descending"
        assert numbers() == sorted(numbers(), reverse=True)
        table.locator("thead button", has_text="criterion").press("Enter")
        assert head.get_attribute("aria-sort") is None
        assert table.locator("tbody th").all_inner_texts() == sorted(before)


def test_the_first_tab_skips_to_the_content(page_of_run: Path, opened: Opened) -> None:
    with opened(page_of_run) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_serious_fault(
    page_of_run: Path, opened: Opened, width: int, scheme: str
) -> None:
    with opened(page_of_run, width=width, scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []
