"""Write the pages of docs/reference/ that follow from the code: commands, settings, Python.

python tools/reference/write.py [FOLDER]
"""

import argparse
from pathlib import Path

import api
import commands
import settings

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    "commands.md": commands.page,
    "settings.md": settings.page,
    "api.md": api.page,
}


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=REPOSITORY / "docs" / "reference",
        help="of the pages",
    )
    folder = parser.parse_args().folder
    for name, page in PAGES.items():
        (folder / name).write_text(page(REPOSITORY), encoding="utf-8")


if __name__ == "__main__":
    main()
