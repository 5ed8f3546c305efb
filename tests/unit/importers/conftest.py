"""Imports of small exports."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.config.loading import load_import_config
from psy_agents_noaug.config.schema import ImportConfig
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.run import import_annotations


@dataclass(frozen=True)
class Imported:
    """What an import has written and said."""

    folder: Path
    summary: str

    @property
    def posts(self) -> dict[str, str]:
        """The texts by id."""
        rows = pq.read_table(self.folder / "posts.parquet").to_pylist()
        return {row["post_id"]: row["text"] for row in rows}

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Sorted (post, annotator, criterion, status, words); each offset must give the words."""
        posts, found = self.posts, []
        for row in pq.read_table(self.folder / "annotations.parquet").to_pylist():
            words = row["evidence_text"]
            if words is not None:
                assert posts[row["post_id"]][row["start_char"] : row["end_char"]] == words
            found.append(
                (
                    row["post_id"],
                    row.get("annotator_id"),
                    row["criterion_id"],
                    row["status"],
                    words,
                )
            )
        return sorted(found, key=str)

    @property
    def report(self) -> dict[str, Any]:
        """The contents of import.json."""
        return json.loads((self.folder / "import.json").read_text())

    def left(self, words: str) -> int:
        """How often something was left for a reason with these words."""
        return sum(own["n"] for reason, own in self.report["left"].items() if words in reason)


@pytest.fixture(scope="session")
def import_defaults() -> dict[str, Any]:
    return load_import_config([]).model_dump()


@pytest.fixture
def imported(import_defaults: dict[str, Any], tmp_path: Path) -> Callable[..., Imported]:
    """Return a function from a tool, an export and settings to what the import has written."""

    def run(tool: str, path: Path, **settings: Any) -> Imported:
        number = len(list(tmp_path.glob("tables*")))
        output = tmp_path / f"tables{number}"
        config = ImportConfig(**{**import_defaults, "output": str(output), **settings})
        return Imported(output, import_annotations(tool, path, config))

    return run


@pytest.fixture
def refused(imported: Callable[..., Imported], tmp_path: Path) -> Callable[..., str]:
    """Return a function from the same to the message of the refusal; nothing must be written."""

    def run(tool: str, path: Path, **settings: Any) -> str:
        before = set(tmp_path.iterdir())
        with pytest.raises(DataError) as caught:
            imported(tool, path, **settings)
        assert set(tmp_path.iterdir()) == before
        return str(caught.value)

    return run


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file and returns its path; JSON for what is no text."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return path

    return write
