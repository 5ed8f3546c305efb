"""Several trained models as one: the mean of their probabilities, with a decision rule of its own.

A deep ensemble (Lakshminarayanan, Pritzel & Blundell 2017) is the uniform mixture of its members: their
probabilities are averaged as they are. Thresholds and calibration are fitted on the mean, as the mean of
calibrated members is underconfident ("pool, then calibrate", Rahaman & Thiery 2021).

Probabilities of pairs are averaged after each model has predicted, and the rule is fitted on what the
members' runs have predicted of val. Scores of tokens are averaged while the models run on the same
inputs (`models.mean`), so that members must have one tokenizer; their rule is fitted by an evaluation,
which predicts val, and is kept beside its results for `predict`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.splits import OUT_OF_FOLD
from psy_agents_noaug.errors import CheckpointError, DataError, faults_message
from psy_agents_noaug.models.mean import MeanModel
from psy_agents_noaug.run.directory import checkpoint_file, directory_of, output_dir_of
from psy_agents_noaug.run.rebuild import rebuilt_task
from psy_agents_noaug.run.refits import REFIT
from psy_agents_noaug.tasks.base import DecisionRule, Predictions, Task, TaskEvaluation
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.training.checkpoint import Checkpoint, load_checkpoint, using, weights_sha256
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.files import make_folder, read_json, sha256_of_json, write_json

logger = logging.getLogger(__name__)

Checkpoints = str | Path | Sequence[str | Path]
# Of the task: what a decision rule is fitted by.
_FITTED_BY = ("thresholds", "threshold_min_support")
_RULE = "decision_rule.json"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Member:
    """A trained model.

    Args:
        path: of the checkpoint.
        checkpoint: its contents.
    """

    path: Path
    checkpoint: Checkpoint

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights."""
        return weights_sha256(self.checkpoint.weights)


def load_members(given: Checkpoints, *, task: str | None = None) -> list[Member]:
    """Read the checkpoint that is given, or all of an ensemble, in an order of their own.

    Args:
        given: a checkpoint or a run, whose best one is taken; or a list of them.
        task: that they must be of; None: any.

    Raises:
        CheckpointError: a file is missing or damaged, or there is no mean; all such in one message.
    """
    if isinstance(given, str | Path):
        path = checkpoint_file(Path(given))
        return [Member(path, load_checkpoint(path, task=task))]
    members, faults = [], []
    for name in given:
        path = checkpoint_file(Path(name))
        try:
            members.append(Member(path, load_checkpoint(path, task=task)))
        except CheckpointError as error:
            faults.append(str(error))
    for number, member in enumerate(members):
        with using(member.path):
            faults += [f"{member.path} {fault}" for fault in _misfits(member, members[:number])]
    if faults:
        raise CheckpointError(faults_message("These checkpoints are no ensemble:", faults))
    # The mean does not depend on the order in which they are given.
    return sorted(members, key=lambda member: member.weights)


def built_model(
    member: Member,
    config: TrainConfig,
    hardware: Hardware,
    *,
    criteria: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
    held_out: Sequence[Criterion],
) -> tuple[Task, Evaluator]:
    """Return the task with the weights of a model, and what predicts with it. See `rebuilt_task`."""
    task = rebuilt_task(
        member.checkpoint,
        member.path,
        config,
        hardware,
        criteria=criteria,
        examples=examples,
        held_out=held_out,
    )
    return task, Evaluator(task, hardware, eval_batch_size=config.training.eval_batch_size)


def as_one(
    members: Sequence[Member], models: Sequence[tuple[Task, Evaluator]]
) -> list[tuple[Task, Evaluator]]:
    """Return the models of an ensemble, of a task with `has_mean_model` as one that gives their mean."""
    if not means_tokens(members):
        return list(models)
    modes = {member.checkpoint.config["training"]["amp"] for member in members}
    if len(modes) > 1:
        logger.warning(
            "The members were trained with training.amp=%s; all are run with training.amp=%s.",
            " and ".join(sorted(modes)),
            members[0].checkpoint.config["training"]["amp"],
        )
    task, evaluator = models[0]
    task.model = MeanModel([own.model for own, _ in models])
    return [(task, evaluator)]


def means_tokens(members: Sequence[Member]) -> bool:
    """Whether there are several members, whose scores of tokens are averaged."""
    return len(members) > 1 and task_class(members[0].checkpoint.task).has_mean_model


def means_pairs(members: Sequence[Member]) -> bool:
    """Whether probabilities of pairs are averaged."""
    return task_class(members[0].checkpoint.task).has_mean


def write_rule(folder: Path, members: Sequence[Member], rule: DecisionRule) -> None:
    """Keep the rule of an ensemble that an evaluation has fitted on val, for `read_rule`."""
    make_folder(folder)
    content = {"ensemble_sha256": ensemble_sha256(members), "decision_rule": rule}
    write_json(folder / _RULE, content)


def read_rule(folder: Path, members: Sequence[Member], evaluation: TaskEvaluation) -> DecisionRule:
    """Return the rule that `write_rule` has kept.

    Raises:
        CheckpointError: there is none, or it is of another ensemble or damaged.
    """
    path = folder / _RULE
    names = ",".join(str(directory_of(member.path).path) for member in members)
    remedy = f"`psy-agents eval 'checkpoint=[{names}]' split=val` fits it"
    if not path.is_file():
        raise CheckpointError(
            f"The decision rule of this ensemble must be fitted on val first: {remedy}."
        )
    try:
        content = read_json(path)
        is_own = content["ensemble_sha256"] == ensemble_sha256(members)
        rule: DecisionRule = content["decision_rule"]
        is_whole = is_own and not evaluation.absent_from(rule)
    except (DataError, LookupError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{path} is damaged, or of another ensemble: {remedy} again.")
    return rule


def rule_folder(members: Sequence[Member]) -> Path:
    """Return where `eval` keeps the decision rule of an ensemble, and `predict` finds it.

    It lies beside the first member, wherever the results of an evaluation are written.
    """
    first = members[0]
    task = first.checkpoint.task
    output_dir = output_dir_of(directory_of(first.path).path, task)
    return output_dir / task / f"ensemble-{ensemble_sha256(members)[:8]}"


def ensemble_sha256(members: Sequence[Member]) -> str:
    """Return the hash of the weights of all members."""
    return sha256_of_json([member.weights for member in members])


def mean_of(predictions: Sequence[Predictions]) -> Predictions:
    """Return the mean of the predictions of several models on the same pairs; of one its own."""
    first, *others = predictions
    if not others:
        return first
    return {
        name: np.stack([values[name] for values in predictions]).mean(axis=0, dtype=np.float64)
        for name in first
    }


def fitted_rule(members: Sequence[Member], evaluation: TaskEvaluation) -> DecisionRule:
    """Fit the decision rule of an ensemble on the mean of its members' predictions of val.

    Of members that have learned val it is the mean of their out-of-fold predictions.

    Args:
        members: from `load_members`.
        evaluation: of one of them.

    Raises:
        CheckpointError: the members have no predictions of the same val; all reasons in one message.
    """
    faults: list[str] = []
    lines: list[list[dict[str, Any]]] = []
    first = members[0]
    for member in members:
        try:
            own = _lines_of_val(member)
            with using(_predictions(member)):
                if _fingerprints(member) != _fingerprints(first):
                    faults.append(
                        f"{member.path} was trained on another corpus, or another division of it, than "
                        f"{first.path}"
                    )
                elif lines and _pairs(own) != _pairs(lines[0]):
                    faults.append(
                        f"{member.path} has other pairs or labels in {_predictions(member).stem} than "
                        f"{first.path} in {_predictions(first).stem}"
                    )
                lines.append(own)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        headline = (
            "Thresholds and calibration of an ensemble are fitted on what its members predicted of one "
            "val split, but:"
        )
        raise CheckpointError(faults_message(headline, faults))
    with using(_predictions(first)):
        values = mean_of([evaluation.values_of_lines(own) for own in lines])
        return evaluation.rule_of_lines(lines[0], values, like=first.checkpoint.decision_rule)


def unfitted(rule: DecisionRule) -> DecisionRule:
    """Return a rule with the parts of `rule` of which nothing is fitted: thresholds must be given."""
    parts = {key: unfitted(value) for key, value in rule.items() if key == "posts"}
    thresholds = dict.fromkeys(rule["thresholds"])
    return {"thresholds": thresholds, "calibration": None, "prevalence": {}, **parts}


def _misfits(member: Member, others: Sequence[Member]) -> list[str]:
    """Say why there is no mean of a model and those before it."""
    kind = task_class(member.checkpoint.task)
    if not (kind.has_mean or kind.has_mean_model):
        return [f"is of the task {kind.name}, whose predictions have no mean"]
    if kind.has_mean_model and REFIT in member.checkpoint.metadata:
        return ["has learned val (refit=train+val), on which the decision rule would be fitted"]
    faults = [
        f"holds the same weights as {other.path}"
        for other in others
        if other.weights == member.weights
    ]
    for what, now, before in zip(_KINDS, _kind(member), _kind((*others, member)[0]), strict=True):
        if now != before:
            faults.append(f"has another {what} than {others[0].path}")
    if others and kind.has_mean_model and not faults:
        now, before = _inputs(member), _inputs(others[0])
        faults += [f"has another {k} than {others[0].path}" for k in now if now[k] != before[k]]
    return faults


_KINDS = ("task", "list of criteria", "`data.unit`", *(f"`task.{key}`" for key in _FITTED_BY))


def _inputs(member: Member) -> dict[str, Any]:
    """Return what decides the inputs of a model of tokens, its decoding and its val, by name."""
    checkpoint = member.checkpoint
    model = checkpoint.config["model"]
    return {
        "`model.architecture`": model["architecture"],
        "`model.max_length`": model["max_length"],
        "section `task`": checkpoint.config["task"],
        "tokenizer": {
            part: files[_TOKENIZER]
            for part, files in checkpoint.metadata.items()
            if part.endswith("_files")
        },
        "corpus or division": checkpoint.metadata["fingerprints"],
    }


def _kind(member: Member) -> tuple[Any, ...]:
    """Return what must be the same for all members, in the order of `_KINDS`."""
    checkpoint = member.checkpoint
    settings = checkpoint.config["task"]
    return (
        checkpoint.task,
        checkpoint.metadata["criteria"],
        checkpoint.config["data"]["unit"],
        *(settings.get(key) for key in _FITTED_BY),
    )


def _fingerprints(member: Member) -> Mapping[str, str]:
    found: Mapping[str, str] = member.checkpoint.metadata["fingerprints"]
    return found


def _pairs(lines: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(line["example_id"], line["label"]) for line in lines]


def _lines_of_val(member: Member) -> list[dict[str, Any]]:
    """Read what the run of a checkpoint predicted of val with its weights.

    Raises:
        CheckpointError: it has no such predictions.
    """
    directory, path = directory_of(member.path), _predictions(member)
    if directory.read_manifest().get("weights_sha256") != member.weights:
        raise CheckpointError(
            f"{member.path} is not the best checkpoint of a finished run, which has predicted val"
        )
    remedy = f"psy-agents eval checkpoint={directory.path} split=val writes it"
    if REFIT in member.checkpoint.metadata:
        remedy = "put a copy of it in its place"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if not line.get("held_out")]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {remedy}") from error


def _predictions(member: Member) -> Path:
    """Return the predictions on which the decision rule of a checkpoint was fitted."""
    split = OUT_OF_FOLD if REFIT in member.checkpoint.metadata else "val"
    return directory_of(member.path).predictions_of(split)
