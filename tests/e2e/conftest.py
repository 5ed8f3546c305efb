"""A real browser, in which pages are opened as a user opens them: as local files."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, or another one on the PATH. Without one the tests fail."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(f"None of {', '.join(BROWSERS)} is there: apt-get install chromium.")
    with sync_playwright() as playwright:
        # Containers have no user namespaces for the sandbox; the pages are our own.
        yield playwright.chromium.launch(executable_path=found, chromium_sandbox=False)


@pytest.fixture
def opened(browser: Any) -> Callable[..., AbstractContextManager[Any]]:
    """Return a function that opens a local page, and checks that it was quiet when it is closed.

    Quiet is: no error, no line on the console, no request but for the page itself.
    """

    @contextmanager
    def open_quietly(path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
        heard: list[str] = []
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: heard.append(request.url.partition(",")[0]))
        page.goto(path.as_uri())
        yield page
        page.close()
        assert [one for one in heard if not one.startswith("data:")] == [path.as_uri()]

    return open_quietly
