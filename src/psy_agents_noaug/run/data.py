"""From a data configuration to labelled examples of train, val and test, with a report on each step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.schema import DataConfig, PostsConfig, TrainConfig
from psy_agents_noaug.data import sample
from psy_agents_noaug.data.alignment import AlignmentReport, align_corpus, given_spans
from psy_agents_noaug.data.annotators import check_annotators
from psy_agents_noaug.data.corpus import Corpus, Post, load_corpus, load_hub_corpus
from psy_agents_noaug.data.corrections import (
    CorrectionReport,
    apply_corrections,
    read_corrections,
)
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.duplicates import DuplicateReport, find_duplicates_across_splits
from psy_agents_noaug.data.examples import HELD_OUT, Example, LabelReport, build_examples
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.merging import MergeRule, Panel
from psy_agents_noaug.data.offsets import OffsetStyle
from psy_agents_noaug.data.seen import KeyedHashes, SeenPosts
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.splits import (
    WHOLE,
    Splits,
    make_random_splits,
    make_splits,
    read_splits,
    split_summary,
    undivided,
)
from psy_agents_noaug.errors import MAX_NAMES_LISTED, ConfigError, DataError, first_of
from psy_agents_noaug.run.annotators import (
    NOT_MET_AS_MERGED,
    AnnotatorReport,
    annotator_report,
)
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
class LabelledCorpus:
    """A corpus with its pairs.

    Args:
        corpus: with corrections, if there are any.
        uncorrected: as the files have it.
        examples: all pairs.
        spans: of the evidence, by annotation row.
        alignment: how that of the files was found.
        labels: counts of the labels.
        corrections: what `data.corrections` did, if it is given.
        annotators: their agreement, where `data.merge` merges their labels.
    """

    corpus: Corpus
    uncorrected: Corpus
    examples: list[Example]
    spans: dict[int, Span]
    alignment: AlignmentReport
    labels: LabelReport
    corrections: CorrectionReport | None
    annotators: AnnotatorReport | None = None


@dataclass(frozen=True)
class PreparedData:
    """A corpus cut into examples, and what was found on the way.

    Attributes:
        criteria: those that are trained and judged as usual.
        held_out: the criteria of `data.held_out_criteria`.
        splits: of the posts, as given or generated.
        examples: by split, of `criteria`; with `refit=train+val` the pairs of val are among those of
            train, and there is no val. Under `HELD_OUT` the pairs of `held_out` with the posts of
            test, or with all where the corpus is not divided, if there are such criteria.
        dropped: texts (posts, or their sentences) that are left out of training as duplicates.
        uncorrected: fingerprint of the corpus as the files have it.
        corrections: what `data.corrections` did, if it is given.
        annotators: their agreement, where `data.merge` merges their labels.
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
    uncorrected: str
    corrections: CorrectionReport | None = None
    annotators: AnnotatorReport | None = None

    def fingerprints(self, *, corrected: bool = True) -> dict[str, str]:
        """Return hashes of the corpus's content, with corrections or without, and of its division."""
        corpus = self.corpus.fingerprint if corrected else self.uncorrected
        return {"corpus": corpus, "splits": self.splits.fingerprint}

    def posts(self, *splits: str) -> list[Post]:
        """Return the posts of `splits` without those that are left out of training."""
        members = self.splits.by_name()
        wanted = {post_id for split in splits for post_id in members[split]} - set(self.dropped)
        return [post for post in self.corpus.posts if post.post_id in wanted]

    def seen_posts(self, secret: bytes) -> dict[str, Any]:
        """Return what a checkpoint remembers of the posts that training and thresholds see.

        Args:
            secret: keys the hashes; it is not in what is returned.
        """
        hashes = KeyedHashes(secret)
        seen = SeenPosts.of(self.posts("train", "val"), hashes=hashes)
        return {"key_check": hashes.of_key(), **seen.to_metadata()}

    def held_out_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of pairs and of met pairs of test, of each held-out criterion."""
        labels: dict[str, list[bool]] = {criterion.criterion_id: [] for criterion in self.held_out}
        for example in self.examples.get(HELD_OUT, []):
            labels[example.criterion_id].append(example.label > 0)
        return {name: {"pairs": len(own), "positives": sum(own)} for name, own in labels.items()}

    def all_warnings(self) -> list[str]:
        """Return what a user should know of the data, a sentence or two each."""
        found: list[str] = []
        labels = self.labels
        if labels.annotations_without_sentence:
            unknown, negative = labels.pairs_of_unknown_label, labels.negatives_without_sentence
            found.append(
                f"{labels.annotations_without_sentence} annotations have no sentence, because they have "
                "no evidence or it was not found: their posts are judged without them"
                + (
                    f", and without {unknown} pairs whose label is therefore unknown"
                    if unknown
                    else ""
                )
                + "."
                + (f" {negative} of them have status 0, and give no negative." if negative else "")
            )
        found += self.alignment.warnings()
        for kind, pairs in self.duplicates.by_kind().items():
            if pairs:
                counts = ", ".join(
                    f"{len(self.duplicates.post_ids(name, kind))} of {name}" for name in self.counts
                )
                names = [
                    f"{a} ({one}) ~ {b} ({other})"
                    for a, one, b, other, *_ in pairs[:MAX_NAMES_LISTED]
                ]
                found.append(
                    f"There are {_DUPLICATES[kind]} in different splits (texts: {counts}): "
                    f"{first_of(names, n=len(pairs))}"
                )
        if self.dropped:
            found.append(
                f"{len(self.dropped)} texts are left out of training, as val or test has them too "
                f"(data.duplicates=drop_from_train): {first_of(self.dropped)}"
            )
        return [*found, *self.warnings]

    def report(self) -> dict[str, Any]:
        """Return everything that `alignment.json` holds: ids and counts, no text."""
        annotators = {} if self.annotators is None else {"annotators": self.annotators.to_json()}
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
            "corrections": self.corrections.to_json() if self.corrections else None,
            **annotators,
            "warnings": self.warnings,
        }


def prepare_data(
    config: TrainConfig, *, divided: bool = True, trained_on: Mapping[str, str] | None = None
) -> PreparedData:
    """Load, check, align, label and divide the corpus; log what a user should know of it.

    Args:
        config: of the run.
        divided: whether there are train, val and test; else all posts are in one list.
        trained_on: the fingerprints of the data that a model was trained on. On other data its `refit`
            has no meaning. None: these are the data to train on.

    Raises:
        DataError: with every fault of the files.
    """
    data = config.data
    labelled = label_corpus(config)
    corpus, examples = labelled.corpus, labelled.examples
    # By what the files say: a correction moves no post to another split.
    splits = divide(data, labelled.uncorrected) if divided else undivided(corpus.posts)
    parts = splits
    found = {"corpus": corpus.fingerprint, "splits": splits.fingerprint}
    if config.refit and divided and (trained_on or {}).items() <= found.items():
        parts = splits.with_val_in_train()
    split_of = parts.split_of()
    examples, of_held_out = _parted(data, [e for e in examples if e.post_id in split_of])
    duplicates = find_duplicates_across_splits(
        *_judged_texts(data, corpus, parts, examples), threshold=data.near_duplicate_threshold
    )
    dropped: list[str] = []
    if data.duplicates == "drop_from_train" and divided:
        dropped = duplicates.post_ids("train")
        examples = _without(set(dropped), examples, parts)
    kept = sorted(set(parts.train) - set(dropped))
    remaining = replace(parts, train=tuple(kept))
    criteria, held_out = [
        [c for c in corpus.criteria if (c.criterion_id in data.held_out_criteria) is wanted]
        for wanted in (False, True)
    ]
    criterion_ids = [criterion.criterion_id for criterion in criteria]
    counts, warnings = split_summary(remaining, examples, criterion_ids=criterion_ids)
    by_split: dict[str, list[Example]] = {name: [] for name in parts.by_name()}
    for example in examples:
        by_split[split_of[example.post_id]].append(example)
    if held_out:
        by_split[HELD_OUT] = [e for e in of_held_out if split_of[e.post_id] in ("test", WHOLE)]
    prepared = PreparedData(
        corpus,
        criteria,
        held_out,
        splits,
        by_split,
        labelled.alignment,
        labelled.labels,
        duplicates,
        counts,
        warnings,
        dropped,
        labelled.uncorrected.fingerprint,
        labelled.corrections,
        labelled.annotators,
    )
    _log(prepared, task_class(config.task.name).labels)
    return prepared


def label_corpus(config: TrainConfig) -> LabelledCorpus:
    """Load and check the corpus, find its evidence, correct it, and make its pairs.

    Raises:
        DataError: with every fault of the files.
    """
    data = config.data
    labels = task_class(config.task.name).labels
    corpus = uncorrected = _load(data, labels)
    style = _offset_style(data)
    spans, alignment = align_corpus(corpus, fuzzy_threshold=data.fuzzy_threshold, offsets=style)
    corrected = None
    if data.corrections is not None:
        # The folder of the bundled corpus is the package's, not the user's.
        path = without_tilde(data.dir or ".") / without_tilde(data.corrections)
        by_annotation = data.unit == "sentence" and data.sentences == "annotated"
        rows = read_corrections(path, corpus=corpus, labels=labels, needs_spans=by_annotation)
        corpus, corrected = apply_corrections(corpus, rows, spans=spans, file=path.name)
        # The rows that are left keep the occurrence that they had.
        spans |= given_spans(corpus.annotations)
    panel = _panel(data, corpus, labels)
    if panel is None and labels.kind != "real":  # whose labels are averaged
        check_annotators(corpus.annotations, spans=spans)
    build = partial(
        build_examples,
        corpus,
        unit=data.unit,
        sentences=data.sentences,
        unannotated_pairs=data.unannotated_pairs,
        spans=spans,
        labels=labels,
    )
    examples, report = build(panel=panel)
    agreement = None
    if panel is not None:
        voted = examples
        if panel.rule.annotator_id is not None:  # who may not have seen all that others have
            everyone = MergeRule("any")
            voted, _ = build(
                panel=Panel(corpus.annotations, everyone, unannotated_pairs=data.unannotated_pairs)
            )
        agreement = annotator_report(panel, voted, report, criteria=corpus.criteria)
    return LabelledCorpus(
        corpus, uncorrected, examples, spans, alignment, report, corrected, agreement
    )


def _panel(data: DataConfig, corpus: Corpus, labels: LabelScale) -> Panel | None:
    """Return the annotators whose labels are merged; None without `data.merge`.

    Raises:
        ConfigError: the task's labels are not met and not met.
        DataError: the annotations do not say whose they are.
    """
    rule = MergeRule.of(data.merge)
    if rule is None:
        return None
    if labels.kind != "binary":
        raise ConfigError(
            "`data.merge` merges labels that are met or not met, which this task's are not."
        )
    return Panel(corpus.annotations, rule, unannotated_pairs=data.unannotated_pairs)


def label_posts(config: TrainConfig, corpus: Corpus) -> list[Example]:
    """Return the pairs of whole posts, labelled as `data` says, whatever its unit is."""
    data = config.data
    labels = task_class(config.task.name).labels
    examples, _ = build_examples(
        corpus,
        unit="post",
        unannotated_pairs=data.unannotated_pairs,
        spans={},
        labels=labels,
        panel=_panel(data, corpus, labels),
    )
    return examples


def load_whole_posts(config: TrainConfig) -> tuple[Corpus, list[Example]]:
    """Return the corpus, and the pairs of whole posts by which it is divided.

    Posts are divided, whatever the pairs are made of, so that all units share their test posts.

    Raises:
        DataError: with every fault of the files.
    """
    corpus = _load(config.data, task_class(config.task.name).labels)
    return corpus, _whole_posts(corpus)


def load_divided(config: DataConfig) -> tuple[Corpus, Splits]:
    """Return the corpus and its division, as the tasks with labels 0 and 1 have it.

    Raises:
        DataError: with every fault of the files.
    """
    corpus = _load(config, BINARY)
    return corpus, divide(config, corpus)


def _whole_posts(corpus: Corpus) -> list[Example]:
    examples, _ = build_examples(corpus, unit="post", unannotated_pairs="negative", spans={})
    return examples


def _load(config: DataConfig, labels: LabelScale) -> Corpus:
    folder = data_folder(config)
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


def divide(config: DataConfig, corpus: Corpus) -> Splits:
    """Return the division of the posts that `data` asks for, given or generated."""
    if config.splits is not None:
        return read_splits(data_folder(config) / config.splits, posts=corpus.posts)
    train, val, test = config.split_fractions
    if config.division == "random":
        return make_random_splits(
            corpus.posts, fractions=(train, val, test), seed=config.split_seed
        )
    return make_splits(
        _whole_posts(corpus),
        posts=corpus.posts,
        fractions=(train, val, test),
        seed=config.split_seed,
    )


def _judged_texts(
    config: DataConfig, corpus: Corpus, splits: Splits, examples: list[Example]
) -> tuple[Sequence[Post], Splits]:
    """Return the texts among which duplicates would leak, and their division.

    Posts, or annotated sentences. Where all sentences are judged it is posts too: many people write the
    same short sentence, in the posts that a model meets later as well; copied posts are the leak.
    """
    split_of = splits.split_of()
    # A corpus that is not divided has no texts in two splits.
    if config.unit == "post" or config.sentences == "all" or splits.whole:
        return [post for post in corpus.posts if post.post_id in split_of], splits
    texts: dict[str, Post] = {}
    members: dict[str, list[str]] = {name: [] for name in splits.by_name()}
    for example in examples:
        text_id = example.text_id
        if text_id not in texts:
            texts[text_id] = Post(text_id, example.text, example.group_id)
            members[split_of[example.post_id]].append(text_id)
    lists = {name: tuple(ids) for name, ids in members.items()}
    divided = Splits(**{"val": (), **lists}, fingerprint="", origin=splits.origin)
    return list(texts.values()), divided


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


def data_folder(config: DataConfig | PostsConfig) -> Path:
    """Return the folder that the paths of a data configuration are relative to."""
    if config.source == "bundled":
        return Path(sample.__path__[0])
    return without_tilde(config.dir or ".")


def _log(prepared: PreparedData, scale: LabelScale) -> None:
    labels, alignment = prepared.labels, prepared.alignment
    ignored = ", ".join(f"{count} {label}" for label, count in labels.ignored.items())
    if prepared.annotators is not None:
        n_disagreements = prepared.annotators.n_disagreements
        differing = f"{n_disagreements} on which annotators disagree (`data.merge` decides)"
    else:
        differing = (
            f"{len(labels.contradictions or ())} contradictions (pairs whose rows differ in status; "
            f"the {scale.merged} counts)"
        )
    logger.info(
        "Read %d posts and %d annotations%s: %d pairs, of which %d met, %d %s, %d unannotated; %s.",
        labels.n_posts,
        labels.n_annotations + sum(labels.ignored.values()),
        f" ({ignored}, left out of the labels)" if ignored else "",
        labels.n_pairs,
        sum(labels.positives.values()),
        sum(labels.explicit_negatives.values()),
        "explicitly not met" if prepared.annotators is None else NOT_MET_AS_MERGED,
        sum(labels.unannotated.values()),
        differing,
    )
    logger.info(
        "Evidence found in the posts%s: %s; %d of it on status-0 rows (hard negatives).",
        "" if prepared.corrections is None else ", before it is corrected",
        ", ".join(f"{count} {kind}" for kind, count in alignment.counts.items()),
        alignment.hard_negatives,
    )
    if prepared.annotators is not None:
        logger.info(prepared.annotators.summary())
    if prepared.corrections is not None:
        done = prepared.corrections
        logger.info(
            "%s corrects: %d rows on %d pairs replace %d annotations and add %d; %d rows are notes.",
            done.file,
            done.rows - done.notes,
            done.pairs,
            done.annotations_replaced,
            done.annotations_added,
            done.notes,
        )
    if alignment.missing:
        logger.info(
            "The evidence of %d annotations is a mark for a missing value, such as nan or N/A, and was "
            "taken for none.",
            alignment.missing,
        )
    shown = {} if "val" in prepared.counts else {"train": "train and val together"}
    logger.info(
        "Splits (%s): %s.",
        prepared.splits.origin,
        "; ".join(
            f"{shown.get(name, name)} {count['posts']} posts, {count['pairs']} pairs, "
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
    for warning in prepared.all_warnings():
        logger.warning(warning)
