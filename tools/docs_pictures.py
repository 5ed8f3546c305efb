"""Take the pictures of docs/pictures/ from a run on the bundled corpus, in headless Chromium.

After `make demo`: python tools/docs_pictures.py outputs/criteria/RUN

The page of errors shows the text of posts, which is made up in the bundled corpus: of other data no
picture may be taken.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from psy_agents_noaug.report.errors import write_errors_page
from psy_agents_noaug.report.write import write_report

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1000, 760
N_COLOURS = 128  # of a palette; a picture of text needs no more
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the directory of a run that was evaluated on test")
    run = parser.parse_args().run
    source = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["source"]
    if source != "bundled":
        sys.exit(f"{run} was trained on {source}: pictures show the bundled corpus alone.")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit(f"None of {', '.join(BROWSERS)} is there: apt-get install chromium.")
    report, errors = write_report(run), write_errors_page(run)
    with sync_playwright() as playwright:
        # Containers have no user namespaces for the sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=browser_path, chromium_sandbox=False)
        for path, scroll_to, name in (
            (report, "h1", "report.png"),
            (report, "#precision-recall-and-roc", "curves.png"),
            (errors, "h1", "errors.png"),
        ):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(path.resolve().as_uri())
            _save(page, scroll_to, FOLDER / name)
            page.close()


def _save(page: Any, scroll_to: str, target: Path) -> None:
    """Write what a page shows from an element on, in few colours."""
    page.locator(scroll_to).first.evaluate("(one) => one.scrollIntoView()")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(N_COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
