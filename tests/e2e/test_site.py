"""The site of docs/, built as `make docs` does and opened in a real browser without a network."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a warning of the build fails."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(REPOSITORY / "zensical.toml", folder)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = built.stdout + built.stderr
    assert built.returncode == 0, told
    assert "warning" not in told.lower(), told
    return folder / "site"


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280) -> Iterator[Any]:
    """Open a page, and check that it asked for nothing but local files, and reported no error."""
    heard: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("requestfailed", lambda request: heard.append(f"failed: {request.url}"))
    page.on("request", lambda request: heard.append(request.url.partition(",")[0]))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert [one for one in heard if not one.startswith(("data:", "blob:", "file:"))] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_pages_need_no_network_and_are_no_wider_than_their_window(
    site: Path, browser: Any, width: int
) -> None:
    # A server alone shows 404.html, whose paths begin at its root.
    for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        with opened(browser, path, width=width) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            broken = "[...document.images].filter((one) => one.naturalWidth === 0).length"
            assert page.evaluate(broken) == 0, path


def test_the_search_works_without_a_network(site: Path, browser: Any) -> None:
    with opened(browser, site / "index.html") as page:
        page.keyboard.press("/")
        page.keyboard.type("training.save_steps")
        found = page.get_by_role("link", name="Slurm").first
        found.wait_for(state="visible", timeout=10_000)
        assert "slurm.html" in (found.get_attribute("href") or "")
