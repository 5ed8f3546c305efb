"""A trained model in Python: texts in, a pandas table or the words that made the decision out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.posts_stream import check_posts
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.run.predict import is_met
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.utils.private_errors import without_texts

_POSTS_PER_CHUNK = 256  # scored together, which bounds memory


@dataclass(frozen=True)
class ExplainedSpan:
    """Words of a text that show a criterion.

    Args:
        criterion_id: of the criterion.
        start_char: first code point.
        end_char: code point after the last.
        score: of the words; of a model of sentences the probability of the sentence.
        text: the words.
        probability: of the criterion, calibrated where the model is for it; None: the task has none.
    """

    criterion_id: str
    start_char: int
    end_char: int
    score: float
    text: str
    probability: float | None


class Predictor:
    """A trained model. May be used from several threads, which take turns.

    Args:
        scorer: the model.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @property
    def criteria(self) -> Sequence[Criterion]:
        """The criteria that are predicted, in the order of the rows."""
        return self._scorer.criteria

    @without_texts()
    def predict(
        self, posts: "str | Sequence[str] | pd.Series | pd.DataFrame | pa.Table"
    ) -> pd.DataFrame:
        """Predict every criterion of every post.

        Args:
            posts: a text, texts, or a table with the columns `post_id` and `text`. Texts without a table
                are the posts "0", "1" and so on.

        Returns:
            A row for each post and criterion, in the order of the posts: `post_id`, `criterion_id`,
            `probability`, `calibrated_probability`, `decision` (1: met), `threshold` and `evidence` (a
            list of `start_char`, `end_char` and `score`), as far as the model has them.

        Raises:
            DataError: with every fault of the posts; without their text.
        """
        table = check_posts(_frame(posts))
        starts = range(0, len(table), _POSTS_PER_CHUNK)
        scored = [self._scorer(table.slice(start, _POSTS_PER_CHUNK)) for start in starts]
        return _pandas(pa.concat_tables(scored) if scored else self._scorer.schema.empty_table())

    @without_texts()
    def explain(self, text: str) -> list[ExplainedSpan]:
        """Return the words of a text by which criteria are met, the best first.

        These are the evidence of the tasks evidence and joint, and of a model of sentences the sentences
        that meet a criterion.

        Raises:
            ConfigError: the model judges whole posts, and has no such words.
            DataError: it is no text, an empty one, or cannot be read.
        """
        if not isinstance(text, str):
            raise DataError(
                f"`explain` takes one text, but got a {type(text).__name__} instead. `predict` takes "
                "several, and has the offsets of the words in the column `evidence`."
            )
        names = self._scorer.schema.names
        if "evidence" not in names and "start_char" not in names:
            raise ConfigError(
                "This model judges whole posts, and does not say by which words. Train task=evidence, "
                "task=joint, or task=criteria with data.unit=sentence."
            )
        scored = self._scorer(check_posts(_frame(text)))
        spans = [
            span for row in scored.filter(is_met(scored)).to_pylist() for span in _spans(row, text)
        ]
        return sorted(spans, key=lambda span: -span.score)


def _spans(row: dict[str, Any], text: str) -> list[ExplainedSpan]:
    """Return the spans of a row that is decided met."""
    probability = row.get("calibrated_probability")
    if probability is None:  # the model was not trained on the criterion, or has no calibration
        probability = row.get("probability")
    found = row.get("evidence")
    if found is None:  # a row of a sentence
        found = [{**row, "score": row["probability"]}]
    return [
        ExplainedSpan(
            row["criterion_id"],
            span["start_char"],
            span["end_char"],
            span["score"],
            text[span["start_char"] : span["end_char"]],
            probability,
        )
        for span in found
    ]


def _frame(posts: Any) -> pd.DataFrame:
    """Return posts as a table.

    Raises:
        DataError: they are none.
    """
    if isinstance(posts, pa.Table):
        columns = {place: column.to_pylist() for place, column in enumerate(posts.columns)}
        # A name may occur twice, which is told later.
        return pd.DataFrame(columns, dtype=object).set_axis(posts.column_names, axis=1)
    if isinstance(posts, pd.DataFrame):
        return posts
    texts = [posts] if isinstance(posts, str) else posts
    if isinstance(texts, pd.Series):
        texts = texts.tolist()
    if not isinstance(texts, list | tuple):
        raise DataError(
            "Posts must be a text, a list of texts, or a pandas or pyarrow table with the columns "
            f"post_id and text, but are a {type(posts).__name__} instead."
        )
    ids = [str(number) for number in range(len(texts))]
    return pd.DataFrame({"post_id": ids, "text": list(texts)}, dtype=object)


def _pandas(table: pa.Table) -> pd.DataFrame:
    """Return a table with lists of dictionaries in place of nested arrays."""
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    frame: pd.DataFrame = table.drop_columns(nested).to_pandas()
    for name in nested:
        frame.insert(
            table.column_names.index(name), name, pd.Series(table[name].to_pylist(), dtype=object)
        )
    return frame
