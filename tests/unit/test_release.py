"""Files that name the version, and must name the same one."""

import re
from pathlib import Path

import yaml

from psy_agents_noaug import __version__

REPOSITORY = Path(__file__).parents[2]


def test_a_citation_names_the_version_of_the_code():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_the_latest_release_of_the_changelog_is_the_version_of_the_code():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## \[(?!Unreleased)(.+?)\]", changelog, re.MULTILINE)
    assert released[1] == __version__
