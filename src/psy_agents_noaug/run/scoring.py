"""A trained model as a function from a table of posts to a table of predictions.

`predict`, its shards, Ray and Spark call this function on different parts of the posts.
"""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from psy_agents_noaug import __version__
from psy_agents_noaug.config.loading import lay_over
from psy_agents_noaug.config.schema import ScoringConfig, TrainConfig
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example, unlabelled_examples
from psy_agents_noaug.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    faults_message,
    first_of,
)
from psy_agents_noaug.run.checks import check_evaluation_settings
from psy_agents_noaug.run.ensemble import (
    Checkpoints,
    Member,
    as_one,
    built_model,
    fitted_rule,
    load_members,
    mean_of,
    means_pairs,
    means_tokens,
    read_rule,
    rule_folder,
    unfitted,
)
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.rebuild import trained_criteria
from psy_agents_noaug.run.refits import describe, refit_of
from psy_agents_noaug.run.scoring_rules import (
    chosen_criteria,
    ids_of,
    rule_of_posts,
    wanted_prevalence,
    with_prevalence,
    with_thresholds,
)
from psy_agents_noaug.run.seen import warn_of_open_hashes
from psy_agents_noaug.tasks.base import (
    DecisionColumns,
    DecisionRule,
    Predictions,
    Task,
    TaskEvaluation,
)
from psy_agents_noaug.training.checkpoint import using
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.utils.files import sha256_of_file, sha256_of_json
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts
from psy_agents_noaug.utils.reproducibility import get_device

logger = logging.getLogger(__name__)

_SPAN = pa.struct([("start_char", pa.int64()), ("end_char", pa.int64()), ("score", pa.float64())])
_TYPES = {"decision": pa.int64(), "evidence": pa.list_(_SPAN)}  # of other columns: float64


@dataclass(frozen=True)
class _Judged:
    """Criteria that are judged together, in one pass."""

    criteria: Sequence[Criterion]
    rule: DecisionRule


class Scorer:
    """Predicts every criterion of every post of a table.

    The rows of a post depend on nothing but the post; in bf16 up to the third decimal of a probability,
    where few posts are scored at once. May be called from several threads; they take turns.

    Args:
        checkpoint: a checkpoint, or a run, whose best one is taken; a list of them is an ensemble, see
            `run.ensemble`.
        options: what is predicted.
        overrides: settings that replace those of the training, by dotted keys, as in an evaluation.

    Attributes:
        criteria: that are predicted.
        schema: of the tables that it returns.
        identity: what decides its output besides the posts: `checkpoint_sha256`, `weights_sha256`, and
            `settings`, as JSON.
        machine: what the last digits of its output may depend on: device, threads, version of PyTorch.

    Raises:
        CheckpointError: a file is missing, damaged, or lacks what the options need; or several are no
            ensemble.
        ConfigError: the options do not fit the model.
        DataError: `criteria_file` has faults.
    """

    @without_texts()
    @explained_memory_errors()
    def __init__(
        self,
        checkpoint: Checkpoints,
        options: ScoringConfig | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = options = options or ScoringConfig()
        check_evaluation_settings(overrides or {})
        members = load_members(checkpoint)
        is_ensemble = not isinstance(checkpoint, str | Path)
        loaded, path = members[0].checkpoint, members[0].path
        trained = trained_criteria(loaded, path)
        for member in members:
            if origin := refit_of(member.checkpoint.metadata):
                logger.info("%s: %s", member.path, describe(origin))
        self.criteria = chosen_criteria(options, trained)
        unseen = [criterion for criterion in self.criteria if criterion not in trained]
        self._models: list[tuple[Task, Evaluator]] = []
        settings = []
        for member in members:
            config = _configured(member, overrides or {}, unseen=unseen)
            hardware = prepare_hardware(config)
            model = built_model(
                member, config, hardware, criteria=trained, examples={}, held_out=unseen
            )
            model[0].model.eval()
            self._models.append(model)
            settings.append(
                {
                    "task": config.task.model_dump(mode="json"),
                    "max_length": config.model.max_length,
                    "mixed_precision": hardware.precision.mode,
                }
            )
        self._models = as_one(members, self._models)
        self._unit = config.data.unit
        if options.rows == "sentence" and self._unit == "post":
            raise ConfigError(f"`rows` must be post, because {path} judges whole posts.")
        self._by_post = self._unit == "sentence" and options.rows == "post"
        self._evaluation = self._models[0][0].evaluation
        rule = loaded.decision_rule
        if means_tokens(members):
            rule = read_rule(rule_folder(members), members, self._evaluation)
        elif is_ensemble and means_pairs(members):
            rule = _rule_of_ensemble(members, self._evaluation, options)
        parts = (
            ([c for c in self.criteria if c not in unseen], rule),
            (unseen, self._evaluation.unfitted_rule(rule, ids_of(unseen))),
        )
        self._judged = [
            _Judged(criteria, with_thresholds(fitted, options, ids_of(self.criteria), path))
            for criteria, fitted in parts
            if criteria
        ]
        self._wanted = wanted_prevalence(
            options,
            [rule_of_posts(one.rule) if self._by_post else one.rule for one in self._judged],
            ids=ids_of(self.criteria),
            path=path,
        )
        device = get_device(str(hardware.distributed.device)).name
        threads = torch.get_num_threads()
        self.machine = f"{device}, {threads} threads, PyTorch {torch.__version__}"
        self._lock = threading.Lock()
        self.schema: pa.Schema = self._score([Post("0", "a", "0")]).schema
        of_ensemble = {"members": settings, "decision_rule": sha256_of_json(rule)}
        self.identity = {
            "checkpoint_sha256": " ".join(sha256_of_file(member.path) for member in members),
            "weights_sha256": " ".join(member.weights for member in members),
            "settings": json.dumps(
                {
                    **options.model_dump(include=set(ScoringConfig.model_fields)),
                    "criteria": [[c.criterion_id, c.name, c.text] for c in self.criteria],
                    "criteria_file": None,
                    **(of_ensemble if is_ensemble else settings[0]),
                    "version": __version__,
                },
                sort_keys=True,
            ),
        }

    @without_texts()
    @explained_memory_errors()
    def __call__(self, posts: pa.Table) -> pa.Table:
        """Return the predictions of `posts`: for each post, in their order, a row for each criterion.

        Args:
            posts: with the columns `post_id` and `text`; others are not read.

        Returns:
            post_id, criterion_id: strings.
            start_char, end_char: of the sentence, in code points of the post; with `rows=sentence`.
            probability, calibrated_probability, threshold: float64; decision: 1 where the probability
                reaches the threshold, else 0. Not of the task evidence. Of a model of sentences with
                `rows=post`, threshold and calibration are those of posts.
            probability_at_prevalence: float64, with `prevalence`; null where it is not known.
            evidence: list of start_char, end_char and score; of a model of sentences with `rows=post`
                the sentences that meet the criterion, with their probability.
            text: with `with_text`.

        Raises:
            DataError: a column is absent, or has an empty or repeated value; no value is shown but ids.
        """
        read = _posts(posts)
        with self._lock:
            return self._score(read) if read else self.schema.empty_table()

    def _score(self, posts: Sequence[Post]) -> pa.Table:
        place = {post.post_id: position for position, post in enumerate(posts)}
        rank = {name: position for position, name in enumerate(ids_of(self.criteria))}
        tables, keys = [], []
        for judged in self._judged:
            examples = unlabelled_examples(posts, judged.criteria, unit=self._unit)
            values = mean_of(
                [
                    evaluator.predict(task.model, task.encode("posts", examples))
                    for task, evaluator in self._models
                ]
            )
            rule, evidence = judged.rule, None
            if self._by_post:
                rule = rule_of_posts(rule)
                examples, values, evidence = _most_probable(examples, values, rule)
            columns = self._evaluation.decisions(examples, values, rule)
            if evidence is not None:
                columns["evidence"] = evidence
            if self._options.prevalence is not None:
                columns = with_prevalence(
                    columns, examples, fitted=rule["prevalence"], wanted=self._wanted
                )
            tables.append(self._table(examples, columns))
            keys += [
                (
                    place[example.post_id],
                    example.sentence.start_char if example.sentence and not self._by_post else 0,
                    rank[example.criterion_id],
                )
                for example in examples
            ]
        table = pa.concat_tables(tables, promote_options="default")
        table = table.take(sorted(range(len(keys)), key=keys.__getitem__))
        if self._options.with_text:
            texts = {post.post_id: post.text for post in posts}
            column = [texts[post_id] for post_id in table["post_id"].to_pylist()]
            table = table.append_column("text", pa.array(column, pa.string()))
        return table

    def _table(self, examples: Sequence[Example], columns: DecisionColumns) -> pa.Table:
        ids = {
            "post_id": pa.array([example.post_id for example in examples], pa.string()),
            "criterion_id": pa.array([example.criterion_id for example in examples], pa.string()),
        }
        if self._options.rows == "sentence":
            spans = [example.sentence for example in examples]
            for name in ("start_char", "end_char"):
                ids[name] = pa.array([getattr(span, name) for span in spans], pa.int64())
        return pa.table(
            {
                **ids,
                **{
                    name: pa.array(value, _TYPES.get(name, pa.float64()), from_pandas=True)
                    for name, value in columns.items()
                },
            }
        )


def _configured(
    member: Member, overrides: Mapping[str, Any], *, unseen: Sequence[Criterion]
) -> TrainConfig:
    """Return the settings of a model's training with those that replace some.

    Raises:
        ConfigError: the model cannot judge criteria that it was not trained on.
    """
    path = member.path
    warn_of_open_hashes(member.checkpoint, path)
    own = {"tracking": {"name": "none"}, "data.token_cache": "off", **overrides}
    with using(path):
        config = lay_over(member.checkpoint.config, own)
    kind = (config.model.architecture, config.model.criterion_vectors)
    if unseen and kind == ("label_attention", "learned"):
        raise ConfigError(
            f"{path} has learned a vector for each criterion of its training, and cannot judge others: "
            f"{first_of(ids_of(unseen))}. Train with `model.criterion_vectors=encoded`."
        )
    return config


def _rule_of_ensemble(
    members: Sequence[Member], evaluation: TaskEvaluation, options: ScoringConfig
) -> DecisionRule:
    """Fit the rule of an ensemble; where that is not possible, `threshold` must be given.

    Raises:
        CheckpointError: it cannot be fitted, and no threshold is given.
    """
    try:
        return fitted_rule(members, evaluation)
    except CheckpointError as error:
        if options.threshold is None:
            raise CheckpointError(
                f"{error}\nGive `threshold`, which needs no val; nothing is calibrated then."
            ) from error
        logger.warning("Nothing is calibrated: %s", error)
        return unfitted(members[0].checkpoint.decision_rule)


def _posts(table: pa.Table) -> list[Post]:
    """Return the rows of a table as posts.

    Raises:
        DataError: with every fault.
    """
    absent = [name for name in ("post_id", "text") if name not in table.column_names]
    if absent:
        raise DataError(f"The posts must have the columns post_id and text: {absent} are absent.")
    ids, texts = (table.column(name).to_pylist() for name in ("post_id", "text"))
    faults, before = [], set()
    for row, (post_id, text) in enumerate(zip(ids, texts, strict=True), start=1):
        if not isinstance(post_id, str) or not post_id.strip():
            faults.append(f"row {row}: post_id must be a text that is not empty")
        elif post_id in before:
            faults.append(f"row {row}: post_id must be unique")
        if not isinstance(text, str) or not text.strip():
            faults.append(f"row {row}: text must be a text that is not empty")
        before.add(post_id)
    if faults:
        raise DataError(faults_message("The posts cannot be read:", faults))
    return [Post(post_id, text, post_id) for post_id, text in zip(ids, texts, strict=True)]


def _most_probable(
    examples: Sequence[Example], values: Predictions, rule: DecisionRule
) -> tuple[list[Example], Predictions, list[list[dict[str, Any]]]]:
    """Return the most probable sentence of each post and criterion, the earliest of several.

    Args:
        examples: the sentences' pairs.
        values: `probabilities`, `[pairs]`.
        rule: of posts.

    Returns:
        The kept pairs; their values; of each the sentences that reach the threshold, best first.
    """
    probabilities = values["probabilities"].astype(np.float64)
    members: dict[tuple[str, str], list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault((example.post_id, example.criterion_id), []).append(index)
    chosen, evidence = [], []
    for (_, criterion_id), own in members.items():
        ranked = sorted(own, key=lambda index: (-probabilities[index], index))
        chosen.append(ranked[0])
        evidence.append(
            [
                {
                    "start_char": sentence.start_char,
                    "end_char": sentence.end_char,
                    "score": float(probabilities[index]),
                }
                for index in ranked
                if probabilities[index] >= rule["thresholds"][criterion_id]
                and (sentence := examples[index].sentence) is not None
            ]
        )
    kept = {name: value[chosen] for name, value in values.items()}
    return [examples[index] for index in chosen], kept, evidence
