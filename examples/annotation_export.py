"""Write an export as Label Studio makes it, with two annotators, from the bundled synthetic corpus.

    python examples/annotation_export.py export.json

The second annotator has every fourth post, and disagrees on one label in eight of them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psy_agents_noaug.data import sample
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.tables import read_table

NAMES = {alias: c.name for c in MAJOR_DEPRESSIVE_EPISODE for alias in c.aliases}


def main(output: Path) -> None:
    """Write the export."""
    folder = Path(sample.__path__[0])
    posts = read_table(folder / "redsm5_posts.csv")
    rows = read_table(folder / "redsm5_annotations.csv").to_dict("records")
    tasks = []
    for number, (post_id, text) in enumerate(zip(posts["post_id"], posts["text"], strict=True)):
        met = [
            (NAMES[row["DSM5_symptom"]], row["sentence_text"])
            for row in rows
            if row["post_id"] == post_id and row["status"] == "1" and row["DSM5_symptom"] in NAMES
        ]
        annotations = [annotation(1, text, met)]
        if number % 4 == 0:
            annotations.append(annotation(2, text, met[1:] if number % 32 == 0 else met))
        data = {"post_id": post_id, "text": text}
        tasks.append({"id": number + 1, "data": data, "annotations": annotations})
    output.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")


def annotation(by: int, text: str, met: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return what an annotator has submitted: choices, and a region for each sentence in the text."""
    names = sorted({name for name, _ in met})
    result = [{"choices": names}] if names else []
    for name, words in met:
        if (place := text.find(words)) >= 0:
            start, end = (
                len(text[:n].encode("utf-16-le")) // 2 for n in (place, place + len(words))
            )
            result.append({"start": start, "end": end, "text": words, "labels": [name]})
    return {"completed_by": by, "was_cancelled": False, "result": list(map(wrapped, result))}


def wrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value with the names of its controls."""
    kind = "choices" if "choices" in value else "labels"
    control = {"choices": "criteria", "labels": "evidence"}[kind]
    return {"from_name": control, "to_name": "text", "type": kind, "value": value}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
