"""From a data configuration to labelled examples of train, val and test, with a report on each step."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.schema import DataConfig, TrainConfig
from psy_agents_noaug.data import sample
from psy_agents_noaug.data.alignment import AlignmentReport, align_corpus
from psy_agents_noaug.data.corpus import Corpus, Post, load_corpus, load_hub_corpus
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.duplicates import DuplicateReport, find_duplicates_across_splits
from psy_agents_noaug.data.examples import HELD_OUT, Example, LabelReport, build_examples
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.labels import LabelScale
from psy_agents_noaug.data.offsets import OffsetStyle
from psy_agents_noaug.data.seen import SeenPosts
from psy_agents_noaug.data.splits import Splits, make_splits, read_splits, split_summary
from psy_agents_noaug.errors import DataError, first_of
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.utils.files import without_tilde

logger = logging.getLogger(__name__)

MAX_IDS_IN_JSON = 100
_DUPLICATES = {
    "exact": "exact duplicates of a text",
    "near": "near duplicates of a text",
    "quoted": "longer texts with most of a text",
}


@dataclass(frozen=True)
class PreparedData:
    """A corpus cut into examples, and what was found on the way.

    Attributes:
        criteria: those that are trained and judged as usual.
        held_out: the criteria of `data.held_out_criteria`.
        examples: by split, of `criteria`; under `HELD_OUT` the pairs of test's posts with `held_out`,
            if there are such criteria.
        dropped: texts (posts, or their sentences) that are left out of training as duplicates.
    """

    corpus: Corpus
    criteria: Sequence[Criterion]
    held_out: Sequence[Criterion]
    splits: Splits
    examples: dict[str, list[Example]]
    alignment: AlignmentReport
    labels: LabelReport
    duplicates: DuplicateReport
    counts: dict[str, dict[str, Any]]
    warnings: list[str]
    dropped: Sequence[str]

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the corpus's content and of its division."""
        return {"corpus": self.corpus.fingerprint, "splits": self.splits.fingerprint}

    def text_hashes(self, *splits: str) -> dict[str, str]:
        """Return the hash of each post's folded text in `splits`, by post id."""
        return {
            post.post_id: hashlib.sha256(fold(post.text).encode()).hexdigest()[:24]
            for post in self.posts(*splits)
        }

    def posts(self, *splits: str) -> list[Post]:
        """Return the posts of `splits` without those that are left out of training."""
        members = self.splits.by_name()
        wanted = {post_id for split in splits for post_id in members[split]} - set(self.dropped)
        return [post for post in self.corpus.posts if post.post_id in wanted]

    def seen_posts(self) -> SeenPosts:
        """Return what a checkpoint remembers of the posts that training and thresholds see."""
        return SeenPosts.of(self.posts("train", "val"), key=self.corpus.fingerprint)

    def held_out_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of pairs and of met pairs of test, of each held-out criterion."""
        labels: dict[str, list[bool]] = {criterion.criterion_id: [] for criterion in self.held_out}
        for example in self.examples.get(HELD_OUT, []):
            labels[example.criterion_id].append(example.label > 0)
        return {name: {"pairs": len(own), "positives": sum(own)} for name, own in labels.items()}

    def report(self) -> dict[str, Any]:
        """Return everything that `alignment.json` holds: ids and counts, no text."""
        return {
            "alignment": self.alignment.to_json(),
            "labels": self.labels.to_json(),
            "duplicates_across_splits": self.duplicates.to_json(),
            "dropped_from_train": {
                "n": len(self.dropped),
                "ids": self.dropped[:MAX_IDS_IN_JSON],
            },
            "splits": self.counts,
            "held_out_criteria": self.held_out_counts(),
            "warnings": self.warnings,
        }


def prepare_data(config: TrainConfig) -> PreparedData:
    """Load, check, align, label and divide the corpus; log what a user should know of it.

    Raises:
        DataError: with every fault of the files.
    """
    data = config.data
    labels = task_class(config.task.name).labels
    corpus = _load(data, labels)
    spans, alignment = align_corpus(
        corpus, fuzzy_threshold=data.fuzzy_threshold, offsets=_offset_style(data)
    )
    examples, label_report = build_examples(
        corpus,
        unit=data.unit,
        sentences=data.sentences,
        unannotated_pairs=data.unannotated_pairs,
        spans=spans,
        labels=labels,
    )
    splits = _divide(data, corpus)
    duplicates = find_duplicates_across_splits(
        *_judged_texts(data, corpus, splits, examples), threshold=data.near_duplicate_threshold
    )
    dropped: list[str] = []
    if data.duplicates == "drop_from_train":
        dropped = duplicates.post_ids("train")
        examples = _without(set(dropped), examples, splits)
    kept = sorted(set(splits.train) - set(dropped))
    remaining = replace(splits, train=tuple(kept))
    criteria, held_out = [
        [c for c in corpus.criteria if (c.criterion_id in data.held_out_criteria) is wanted]
        for wanted in (False, True)
    ]
    examples, of_held_out = _parted(data, examples)
    criterion_ids = [criterion.criterion_id for criterion in criteria]
    counts, warnings = split_summary(remaining, examples, criterion_ids=criterion_ids)
    split_of = splits.split_of()
    by_split: dict[str, list[Example]] = {name: [] for name in splits.by_name()}
    for example in examples:
        by_split[split_of[example.post_id]].append(example)
    if held_out:
        by_split[HELD_OUT] = [e for e in of_held_out if split_of[e.post_id] == "test"]
    prepared = PreparedData(
        corpus,
        criteria,
        held_out,
        splits,
        by_split,
        alignment,
        label_report,
        duplicates,
        counts,
        warnings,
        dropped,
    )
    _log(prepared)
    return prepared


def _load(config: DataConfig, labels: LabelScale) -> Corpus:
    folder = _folder(config)
    criteria = folder / config.criteria if config.criteria else None
    columns = {str(table): names for table, names in config.columns.items()}
    if config.source == "hub":
        assert config.repo is not None
        return load_hub_corpus(
            repo=config.repo,
            revision=config.revision,
            criteria=criteria,
            columns=columns,
            ignored_criteria=config.ignored_criteria,
            labels=labels,
            offsets=_offset_style(config),
            subgroups=config.subgroups,
            held_out_criteria=config.held_out_criteria,
        )
    assert config.posts is not None
    assert config.annotations is not None
    return load_corpus(
        posts=folder / config.posts,
        annotations=folder / config.annotations,
        criteria=criteria,
        columns=columns,
        ignored_criteria=config.ignored_criteria,
        labels=labels,
        offsets=_offset_style(config),
        subgroups=config.subgroups,
        held_out_criteria=config.held_out_criteria,
    )


def _offset_style(config: DataConfig) -> OffsetStyle:
    return OffsetStyle(config.offset_unit, config.inclusive_ends)


def _divide(config: DataConfig, corpus: Corpus) -> Splits:
    """Divide by posts, whatever the pairs are made of, so that all units share their test posts."""
    if config.splits is not None:
        return read_splits(_folder(config) / config.splits, posts=corpus.posts)
    train, val, test = config.split_fractions
    whole_posts, _ = build_examples(corpus, unit="post", unannotated_pairs="negative", spans={})
    return make_splits(
        whole_posts, posts=corpus.posts, fractions=(train, val, test), seed=config.split_seed
    )


def _judged_texts(
    config: DataConfig, corpus: Corpus, splits: Splits, examples: list[Example]
) -> tuple[Sequence[Post], Splits]:
    """Return the texts among which duplicates would leak, and their division.

    Posts, or annotated sentences. Where all sentences are judged it is posts too: many people write the
    same short sentence, in the posts that a model meets later as well; copied posts are the leak.
    """
    if config.unit == "post" or config.sentences == "all":
        return corpus.posts, splits
    split_of = splits.split_of()
    texts: dict[str, Post] = {}
    members: dict[str, list[str]] = {name: [] for name in splits.by_name()}
    for example in examples:
        text_id = example.text_id
        if text_id not in texts:
            texts[text_id] = Post(text_id, example.text, example.group_id)
            members[split_of[example.post_id]].append(text_id)
    lists = {name: tuple(ids) for name, ids in members.items()}
    return list(texts.values()), Splits(**lists, fingerprint="", origin=splits.origin)


def _without(dropped: set[str], examples: list[Example], splits: Splits) -> list[Example]:
    """Leave examples out of training, but not all."""
    kept = [e for e in examples if dropped.isdisjoint((e.post_id, e.text_id))]
    if {example.post_id for example in kept}.isdisjoint(splits.train):
        raise DataError(
            "`data.duplicates=drop_from_train` leaves nothing to train on: val or test has every "
            "text of train too. Use another corpus or division."
        )
    return kept


def _parted(config: DataConfig, examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Return the pairs of the trained criteria, and those of the criteria that are held out.

    Both are as in a corpus without the other criteria. Where annotated sentences alone are judged, those
    that only held-out criteria have annotations of are no pairs of the trained ones.
    """
    held_out = set(config.held_out_criteria)
    if not held_out:
        return examples, []
    trained = [example for example in examples if example.criterion_id not in held_out]
    if config.unit == "sentence" and config.sentences == "annotated":
        annotated = {example.text_id for example in trained if example.annotated}
        trained = [example for example in trained if example.text_id in annotated]
    return trained, [example for example in examples if example.criterion_id in held_out]


def _folder(config: DataConfig) -> Path:
    if config.source == "bundled":
        return Path(sample.__path__[0])
    return without_tilde(config.dir or ".")


def _log(prepared: PreparedData) -> None:
    labels, alignment = prepared.labels, prepared.alignment
    ignored = ", ".join(f"{count} {label}" for label, count in labels.ignored.items())
    logger.info(
        "Read %d posts and %d annotations%s: %d pairs, of which %d met, %d explicitly not met, "
        "%d unannotated; %d contradictions (pairs whose rows differ in status; the highest counts).",
        labels.n_posts,
        labels.n_annotations + sum(labels.ignored.values()),
        f" ({ignored}, left out of the labels)" if ignored else "",
        labels.n_pairs,
        sum(labels.positives.values()),
        sum(labels.explicit_negatives.values()),
        sum(labels.unannotated.values()),
        len(labels.contradictions),
    )
    logger.info(
        "Evidence found in the posts: %s; %d of it on status-0 rows (hard negatives).",
        ", ".join(f"{count} {kind}" for kind, count in alignment.counts.items()),
        alignment.hard_negatives,
    )
    if labels.annotations_without_sentence:
        logger.warning(
            "%d annotations have no sentence, because they have no evidence or it was not found: their "
            "posts are judged without them, and without %d pairs whose label is therefore unknown.",
            labels.annotations_without_sentence,
            labels.pairs_of_unknown_label,
        )
    if alignment.missing:
        logger.info(
            "The evidence of %d annotations is a mark for a missing value, such as nan or N/A, and was "
            "taken for none.",
            alignment.missing,
        )
    for warning in alignment.warnings():
        logger.warning(warning)
    logger.info(
        "Splits (%s): %s.",
        prepared.splits.origin,
        "; ".join(
            f"{name} {count['posts']} posts, {count['pairs']} pairs, "
            f"{sum(count['positives'].values())} met"
            for name, count in prepared.counts.items()
        ),
    )
    if prepared.held_out:
        logger.info(
            "Held out of training, thresholds and calibration, and reported apart on test: %s.",
            "; ".join(
                f"{name} ({count['pairs']} pairs of test, {count['positives']} met)"
                for name, count in prepared.held_out_counts().items()
            ),
        )
    for kind, pairs in prepared.duplicates.by_kind().items():
        if pairs:
            counts = [len(prepared.duplicates.post_ids(name, kind)) for name in prepared.counts]
            logger.warning(
                "There are %s in different splits (%d texts of train, %d of val, %d of test): %s",
                _DUPLICATES[kind],
                *counts,
                first_of([f"{a} ({one}) ~ {b} ({other})" for a, one, b, other, *_ in pairs]),
            )
    if prepared.dropped:
        logger.warning(
            "%d texts are left out of training, as val or test has them too "
            "(data.duplicates=drop_from_train): %s",
            len(prepared.dropped),
            first_of(prepared.dropped),
        )
    for warning in prepared.warnings:
        logger.warning(warning)
