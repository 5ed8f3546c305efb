import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from psy_agents_noaug.config.loading import to_overrides
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.models.losses import classification_loss
from psy_agents_noaug.tasks.base import ENCODER, SplitPredictions, TaskInputs
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.tasks.criteria.task import CriteriaTask, label_losses
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS

CRITERIA = MAJOR_DEPRESSIVE_EPISODE[:3]
SECRET = "xylozephyrquill"


def make_example(post: int, criterion: int, label: int, *, annotated: bool = True) -> Example:
    criterion_id = CRITERIA[criterion].criterion_id
    text = f"{SECRET} {CRITERIA[criterion].name if label else 'The bus was late.'} {post}"
    return Example(
        example_id=f"p{post}/{criterion_id}",
        post_id=f"p{post}",
        group_id=f"p{post}",
        criterion_id=criterion_id,
        text=text,
        label=label,
        annotated=annotated,
        evidence=(),
        hard_negative_spans=(),
    )


# Train: 4 met, 3 explicitly unmet, 17 unannotated. Val and test: the third criterion is never met.
TRAIN = [
    make_example(post, c, int(post < 4 and c == 0), annotated=c == 0 and post < 7)
    for post in range(8)
    for c in range(3)
]
VAL = [make_example(post, c, int(c < 2 and post % 2)) for post in range(10, 16) for c in range(3)]
TEST = [
    make_example(post, c, int(c < 2 and post % 3 == 0)) for post in range(20, 24) for c in (0, 1, 2)
]
ANNOTATED = {index for index, example in enumerate(TRAIN) if example.annotated}
VAL_LABELS = np.asarray([example.label for example in VAL])


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(str(tiny_encoder))


@pytest.fixture
def make_task(make_config, encoder):
    """Return a function from changed settings and examples to a task."""

    def make(*, examples=None, **changes) -> CriteriaTask:
        settings = {
            "model.pooling": "cls",
            "model.head_dropout": 0.0,
            "model.max_length": 64,
            "data.negatives": 2.0,
            "task.threshold_min_support": 2,
            "seed": 3,
        }
        sections = {"negatives": "data", "max_length": "model", "seed": None}
        for name, value in changes.items():
            section = sections.get(name, "task")
            settings[name if section is None else f"{section}.{name}"] = value
        config = make_config(*to_overrides(settings))
        examples = examples or {"train": TRAIN, "val": VAL, "test": TEST}
        return CriteriaTask(
            config, TaskInputs({ENCODER: encoder}, CRITERIA, examples, max_tokens=1)
        )

    return make


@pytest.mark.parametrize(("ratio", "drawn"), [(0.5, 2), (1.0, 4), (2.0, 8), (3.6, 14), (99.0, 17)])
def test_an_epoch_keeps_all_annotated_pairs_and_draws_its_share_of_the_others(
    make_task, ratio, drawn
):
    task = make_task(negatives=ratio)
    for epoch in range(3):
        pool = task.epoch_pool(epoch).tolist()
        assert len(pool) == len(set(pool)) == 7 + drawn
        assert set(pool) >= ANNOTATED


def test_epochs_draw_different_negatives_as_a_pure_function_of_seed_and_epoch(make_task):
    task = make_task()
    pools = [tuple(task.epoch_pool(epoch)) for epoch in range(6)]
    assert len(set(pools)) == 6
    again = make_task()
    assert [tuple(again.epoch_pool(epoch)) for epoch in (5, 0, 3)] == [pools[k] for k in (5, 0, 3)]
    assert tuple(make_task(seed=4).epoch_pool(0)) != pools[0]
    assert set().union(*(task.epoch_pool(epoch) for epoch in range(30))) == set(range(24))


def test_all_negatives_are_all_pairs(make_task):
    assert make_task(negatives="all").epoch_pool(5).tolist() == list(range(24))


def test_an_unannotated_positive_is_kept(make_task):
    examples = [replace(example, annotated=False) for example in TRAIN]
    task = make_task(negatives=0.25, examples={"train": examples})
    assert set(task.epoch_pool(0)) >= {0, 3, 6, 9}
    assert len(task.epoch_pool(0)) == 4 + 1


@pytest.mark.parametrize(("negatives", "unmet"), [(2.0, 11), ("all", 20)])
def test_balanced_weights_are_inverse_frequencies_in_an_epoch_with_mean_1(
    make_task, negatives, unmet
):
    task, plain = (make_task(class_weights=w, negatives=negatives) for w in ("balanced", "none"))
    weights = _ratio_of_losses(task, plain)
    total = unmet + 4
    np.testing.assert_allclose(weights, [total / (2 * unmet), total / 8], rtol=1e-5)
    assert (weights[0] * unmet + weights[1] * 4) / total == pytest.approx(1.0, rel=1e-5)


def test_class_weights_that_are_given_are_used(make_task):
    weights = _ratio_of_losses(make_task(class_weights=[0.5, 3.0]), make_task())
    np.testing.assert_allclose(weights, [0.5, 3.0], rtol=1e-5)


def _ratio_of_losses(task: CriteriaTask, plain: CriteriaTask) -> list[float]:
    """Return by how much `task` weighs the losses of an unmet and a met pair."""
    batch = task.source("train").collate([1, 0])
    assert batch["labels"].tolist() == [0, 1]
    model = task.model.eval()
    return (task.loss(model, batch) / plain.loss(model, batch)).tolist()


@pytest.mark.parametrize("label", [0, 1])
def test_balanced_weights_need_both_classes(make_task, label):
    examples = {"train": [replace(example, label=label) for example in TRAIN]}
    with pytest.raises(DataError, match=r"balanced` needs met and unmet pairs in train, but"):
        make_task(class_weights="balanced", negatives="all", examples=examples)


def test_weights_of_training_are_not_asked_for_where_there_is_no_training(make_task):
    task = make_task(class_weights="balanced", examples={"val": VAL})
    batch = task.source("val").collate([0])
    assert task.loss(task.model, batch).shape == (1,)


def logits_of(model, batch) -> torch.Tensor:
    """The logits of not met and met of pairs with one window each."""
    hidden = model.encoder(
        **{name: batch[name] for name in ENCODER_INPUTS if name in batch}
    ).last_hidden_state
    return model.head(model.pooling(hidden, batch["attention_mask"]))


def test_the_loss_is_one_of_each_example(make_task):
    task = make_task(loss="focal", focal_gamma=2.0)
    batch = task.source("train").collate([0, 1, 2])
    model = task.model.eval()
    expected = classification_loss(logits_of(model, batch), batch["labels"], focal_gamma=2.0)
    torch.testing.assert_close(task.loss(model, batch), expected)
    assert expected.shape == (3,)


def test_a_prediction_is_the_probability_of_met(make_task):
    task = make_task()
    batch = task.source("val").collate([0, 1])
    model = task.model.eval()
    with torch.no_grad():
        expected = logits_of(model, batch).softmax(-1)[:, 1]
        found = task.predict(model, batch)["probabilities"]
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32


def test_a_source_pairs_each_text_with_its_criterion(make_task, encoder):
    source = make_task().source("val")
    assert source.ids == [example.example_id for example in VAL]
    assert source.collate([5, 0])["labels"].tolist() == [VAL[5].label, VAL[0].label]
    ids = encoder.tokenizer([CRITERIA[2].text], [VAL[5].text]).input_ids[0]
    row = source.collate([5, 0])["input_ids"][0]
    assert row[: len(ids)].tolist() == ids
    assert source.lengths[5] == len(ids)


def test_a_split_without_pairs_is_told(make_task):
    with pytest.raises(DataError, match="split val has no pair"):
        make_task(examples={"train": TRAIN, "val": []}).source("val")


def _predictions(values) -> dict[str, np.ndarray]:
    return {"probabilities": np.asarray(values, dtype=np.float32)}


def test_thresholds_are_fitted_on_val_alone(make_task):
    task = make_task(examples={"val": VAL})
    thresholds = task.evaluation.fit_decision_rule(_predictions(np.where(VAL_LABELS, 0.25, 0.125)))[
        "thresholds"
    ]
    assert thresholds == {criterion.criterion_id: 0.1875 for criterion in CRITERIA}
    json.dumps(thresholds)


def test_thresholds_may_be_a_criterions_own(make_task):
    first = np.asarray([example.criterion_id == CRITERIA[0].criterion_id for example in VAL])
    values = np.where(VAL_LABELS, 0.25, 0.125) + np.where(first, 0.125, 0.0)
    task = make_task(thresholds="per_criterion")
    thresholds = task.evaluation.fit_decision_rule(_predictions(values))["thresholds"]
    assert thresholds[CRITERIA[0].criterion_id] == 0.3125
    assert thresholds[CRITERIA[1].criterion_id] == 0.1875


RULE = {"thresholds": {criterion.criterion_id: 0.5 for criterion in CRITERIA}}


def test_metrics_are_of_the_split_that_was_predicted(make_task):
    task = make_task()
    perfect = _predictions(VAL_LABELS * 0.8 + 0.1)
    metrics = task.evaluation.metrics(SplitPredictions("val", perfect, RULE))
    assert metrics["f1_macro"] == metrics["auroc_micro"] == 1.0
    assert metrics["n_pairs"] == 18
    other = {"thresholds": dict.fromkeys(RULE["thresholds"], 0.95)}
    assert task.evaluation.metrics(SplitPredictions("val", perfect, other))["f1_macro"] == 0.0


def test_an_undefined_figure_has_its_reason_beside_it(make_task):
    metrics = make_task().evaluation.metrics(
        SplitPredictions("val", _predictions([0.1] * 18), RULE)
    )
    key = f"per_criterion/{CRITERIA[2].criterion_id}/auroc"
    assert metrics[key] is None
    assert metrics[f"{key}_undefined"] == "no positive labels"
    undefined = {name for name, value in metrics.items() if value is None}
    reasons = {name for name, value in metrics.items() if isinstance(value, str)}
    assert reasons == {f"{name}_undefined" for name in undefined}
    assert not any(isinstance(value, float) and np.isnan(value) for value in metrics.values())


def test_a_monitor_is_a_figure_of_quality_and_knows_which_way_is_better(make_task):
    task = make_task()
    metrics = task.evaluation.metrics(SplitPredictions("val", _predictions([0.1] * 18), RULE))
    monitors = task.evaluation.monitors()
    assert monitors.keys() <= metrics.keys()
    assert (monitors["f1_macro"], monitors["brier"], monitors["ece"]) == ("max", "min", "min")
    assert not {"n_pairs", "true_positives", "per_criterion/A.1/threshold"} & monitors.keys()


def test_a_record_holds_ids_and_numbers_and_no_text(make_task):
    rule = {"thresholds": {criterion.criterion_id: 0.25 for criterion in CRITERIA}}
    values = [0.25, 0.125] * 6
    records = list(
        make_task().evaluation.records(SplitPredictions("test", _predictions(values), rule))
    )
    assert records[0] == {
        "example_id": TEST[0].example_id,
        "post_id": "p20",
        "group_id": TEST[0].group_id,
        "criterion_id": CRITERIA[0].criterion_id,
        "label": TEST[0].label,
        "probability": 0.25,
        "decision": 1,
        "threshold": 0.25,
    }
    assert [record["decision"] for record in records] == [1, 0] * 6
    assert [record["example_id"] for record in records] == [e.example_id for e in TEST]
    assert SECRET not in json.dumps(records)
    with pytest.raises(ValueError, match="one shape"):
        list(
            make_task().evaluation.records(
                SplitPredictions("test", _predictions(values[:-1]), rule)
            )
        )


def test_a_report_adds_intervals_and_baselines(make_task):
    task = make_task()
    perfect = _predictions([example.label * 0.8 + 0.1 for example in TEST])
    report = task.evaluation.report(SplitPredictions("test", perfect, RULE))
    metrics = task.evaluation.metrics(SplitPredictions("test", perfect, RULE))
    assert metrics.items() <= report.items()
    for prefix in ("", "baseline_tfidf_lr/", "baseline_majority/", "baseline_always_met/"):
        assert f"{prefix}f1_macro" in report
        assert f"{prefix}f1_macro_ci_low" in report
        assert prefix == "" or f"{prefix}f1_macro_gain" in report
    assert report["baseline_always_met/f1_micro"] == pytest.approx(2 * 2 / (12 + 2))
    assert report["per_post/n_judged"] == 4
    assert report["per_post/n_met_mae"] == 0.0
    # Half of train's pairs of the first criterion are met, so the majority decides it met: 1 of 4
    # is, and one met pair of the second criterion is missed.
    assert report["baseline_majority/f1_micro"] == pytest.approx(2 / 6)
    assert report == task.evaluation.report(SplitPredictions("test", perfect, RULE))
    summary = task.evaluation.summary(report)
    assert all(criterion.name in summary for criterion in CRITERIA)
    assert "TF-IDF + LR" in summary
    assert SECRET not in json.dumps(report) + summary


def test_val_is_also_judged_by_thresholds_of_other_posts(make_task):
    """Each fold's probabilities are on a level of their own: thresholds of other folds are wrong."""
    task = make_task()
    levels = {post: number for number, post in enumerate(sorted({e.post_id for e in VAL}))}
    values = _predictions([0.1 * levels[e.post_id] + 0.05 * e.label for e in VAL])
    rule = task.evaluation.fit_decision_rule(values)
    own = SplitPredictions("val", values, rule, rule_is_fitted_here=True)
    report = task.evaluation.report(own)
    assert report["cross_fitted/f1_macro"] < report["f1_macro"]
    elsewhere = task.evaluation.report(SplitPredictions("val", values, rule))
    assert "cross_fitted/f1_macro" not in elsewhere


def test_a_criterion_met_in_two_sentences_of_a_post_counts_once_in_its_subgroup(make_task):
    twice = [replace(example, example_id=f"{example.example_id}/again") for example in TEST]
    task = make_task(examples={"train": TRAIN, "val": VAL, "test": [*TEST, *twice]})
    values = _predictions([0.1] * len(TEST) * 2)
    report = task.evaluation.report(SplitPredictions("test", values, RULE))
    groups = {key.split("/")[2] for key in report if key.startswith("subgroup/number met/")}
    assert groups == {"none met", "2-3 met"}  # one post meets two criteria


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_baselines_thresholds_are_fitted_on_val_alone(make_task, monkeypatch, split):
    seen = []
    original = CriteriaEvaluation._fit
    monkeypatch.setattr(
        CriteriaEvaluation,
        "_fit",
        lambda self, pairs: (seen.append(pairs), original(self, pairs))[1],
    )
    labels = [example.label for example in {"val": VAL, "test": TEST}[split]]
    make_task().evaluation.report(SplitPredictions(split, _predictions(labels), RULE))
    assert [set(pairs.group_ids) for pairs in seen] == [{example.post_id for example in VAL}]


def test_truncated_texts_are_counted(make_task):
    longest = max(len(c.text.split()) for c in CRITERIA)
    examples = [replace(VAL[0], text="bus " * 90), *VAL[1:]]
    task = make_task(examples={"val": examples}, max_length=96, long_posts="truncate")
    assert longest < 96
    predicted = SplitPredictions("val", _predictions([0.1] * 18), RULE)
    found = task.input_metrics(predicted, predict=None)
    assert found["n_truncated_texts"] == 1
    assert found["share_of_truncated_texts"] == pytest.approx(1 / 18)
    assert found["subgroup/truncation/truncated/n_pairs"] == 1
    assert found["subgroup/truncation/whole/n_pairs"] == 17


def test_metadata_rebuild_the_model_and_read_its_outputs(make_task, encoder):
    metadata = make_task().metadata()
    assert metadata["classes"] == ["not met", "met"]
    assert [c["criterion_id"] for c in metadata["criteria"]] == [c.criterion_id for c in CRITERIA]
    assert metadata["encoder_files"] == dict(encoder.files)
    json.dumps(metadata)


def test_a_task_is_built_as_configured(make_config, tiny_encoder):
    config = make_config(
        "model.pooling=attention",
        "model.head_layers=2",
        "model.head_width=7",
        "model.head_dropout=0.3",
        "model.lora={rank: 2}",
        "task.loss=focal",
        "task.focal_gamma=1.5",
        "task.class_weights=[1.0,2.0]",
        "seed=9",
    )
    examples = {"train": TRAIN, "val": VAL}
    built = CriteriaTask(
        config,
        TaskInputs({ENCODER: load_encoder(str(tiny_encoder))}, CRITERIA, examples, max_tokens=1),
    )
    assert built.model.pooling.kind == "attention"
    assert [tuple(p.shape) for p in built.model.head.parameters()] == [(7, 32), (7,), (2, 7), (2,)]
    assert built.model.head.layers[0].p == 0.3
    frozen = [name for name, p in built.model.encoder.named_parameters() if not p.requires_grad]
    assert frozen
    assert not [name for name in frozen if "lora" in name]
    batch = built.source("train").collate([0, 1])
    model = built.model.eval()
    expected = classification_loss(
        logits_of(model, batch),
        batch["labels"],
        class_weights=torch.tensor([1.0, 2.0]),
        focal_gamma=1.5,
    )
    torch.testing.assert_close(built.loss(model, batch), expected)
    assert len(built.epoch_pool(0)) == 7 + 8


def test_focal_gamma_is_ignored_by_cross_entropy(make_config, tiny_encoder):
    config = make_config("task.focal_gamma=3.0")
    built = CriteriaTask(
        config,
        TaskInputs(
            {ENCODER: load_encoder(str(tiny_encoder))}, CRITERIA, {"train": TRAIN}, max_tokens=1
        ),
    )
    batch = built.source("train").collate([0, 1])
    model = built.model.eval()
    expected = classification_loss(logits_of(model, batch), batch["labels"])
    torch.testing.assert_close(built.loss(model, batch), expected)


def test_soft_labels_weight_the_losses_of_both_labels():
    odds, shares = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([0.0, 0.25, 1.0])
    plain = SimpleNamespace(loss="cross_entropy", focal_gamma=2.0)
    expected = binary_cross_entropy_with_logits(odds, shares, reduction="none")
    torch.testing.assert_close(label_losses(odds, shares, plain, None), expected)
    # Where all annotators agree the loss is that of the label, class weights included.
    weights = torch.tensor([0.5, 3.0])
    found = label_losses(odds, shares, plain, weights)[[0, 2]]
    expected = label_losses(odds[[0, 2]], torch.tensor([0, 1]), plain, weights)
    torch.testing.assert_close(found, expected)
