"""Write posts and the annotations of three made-up annotators, from the bundled synthetic corpus.

    python examples/three_annotators.py FOLDER

Each has seen two thirds of the posts, overlooks every sixth met criterion, and now and then sees one
that is not there. What an annotator has seen and not labelled is a row of status 0.
"""

import csv
import random
import sys
from pathlib import Path

from psy_agents_noaug.data import sample
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.tables import read_table

IDS = {alias: c.criterion_id for c in MAJOR_DEPRESSIVE_EPISODE for alias in c.aliases}
MISSED, INVENTED = 1 / 6, 1 / 100
COLUMNS = ("post_id", "criterion_id", "status", "evidence_text", "annotator_id")


def main(folder: Path) -> None:
    """Write `posts.csv` and `annotations.csv`."""
    source = Path(sample.__path__[0])
    posts = read_table(source / "redsm5_posts.csv")
    met: dict[tuple[str, str], list[str]] = {}
    for row in read_table(source / "redsm5_annotations.csv").to_dict("records"):
        if row["status"] == "1" and row["DSM5_symptom"] in IDS:
            pair = str(row["post_id"]), IDS[row["DSM5_symptom"]]
            met.setdefault(pair, []).append(str(row["sentence_text"]))
    folder.mkdir(parents=True, exist_ok=True)
    posts[["post_id", "text"]].to_csv(folder / "posts.csv", index=False)
    with (folder / "annotations.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, post_id in enumerate(map(str, posts["post_id"])):
            for position, annotator in enumerate(("ada", "ben", "cleo")):
                if number % 3 != position:
                    draw = random.Random(f"{post_id} {annotator}")  # noqa: S311
                    table.writerows(judged(post_id, annotator, met, draw))


def judged(
    post_id: str,
    annotator: str,
    met: dict[tuple[str, str], list[str]],
    draw: random.Random,
) -> list[tuple[str, str, int, str, str]]:
    """Return the rows of an annotator for a post."""
    rows = []
    for criterion in MAJOR_DEPRESSIVE_EPISODE:
        found = met.get((post_id, criterion.criterion_id), [])
        says_met = draw.random() >= MISSED if found else draw.random() < INVENTED
        for words in (found or [""]) if says_met else [""]:
            rows.append((post_id, criterion.criterion_id, int(says_met), words, annotator))
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
