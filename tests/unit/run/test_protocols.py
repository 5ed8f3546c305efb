"""The figures of protocols, from the command to the files, on a made-up corpus in ReDSM5's layout."""

import csv
import json

import ir_measures
import numpy as np
import pytest
from sklearn.metrics import classification_report, f1_score

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.cli import main
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.report.facts import facts_of
from psy_agents_noaug.report.protocol import protocol_parts
from psy_agents_noaug.report.tables import as_csv

LABELS = [*(f"A.{number}" for number in range(1, 10)), "NO_SYMPTOMS"]


@pytest.fixture(scope="module")
def train_by(overrides_for, tmp_path_factory):
    """Return a function from a protocol to a run that is trained by it."""

    def trained(name: str, task: str = "criteria"):
        given = [f"task={task}", *overrides_for(tmp_path_factory.mktemp("runs"), task)]
        given = [word for word in given if not word.startswith("data.splits")]
        return train([*given, f"protocol={name}", "training.max_steps=2"], verbose=False)

    return trained


@pytest.fixture(scope="module")
def posts_run(train_by):
    """A run by redsm5_posts that is evaluated on test."""
    return evaluate(train_by("redsm5_posts"), split="test", verbose=False)


@pytest.fixture(scope="module")
def ranking_run(train_by):
    """A run by sentence_ranking that is evaluated on test."""
    return evaluate(train_by("sentence_ranking"), split="test", verbose=False)


def lines_of(result, split="test", system="") -> list[dict]:
    path = result.directory / "predictions" / f"{split}{system}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text_of(line) -> str:
    return line["example_id"].removesuffix(f"/{line['criterion_id']}")


def matrix(lines, value) -> np.ndarray:
    """The ten labels of each text, where no criterion makes NO_SYMPTOMS."""
    texts = sorted(set(map(text_of, lines)))
    labels = np.zeros((len(texts), 10), dtype=int)
    for line in lines:
        column = LABELS.index(line["criterion_id"])
        labels[texts.index(text_of(line)), column] = value(line)
    labels[:, 9] = labels[:, :9].sum(axis=1) == 0
    return labels


@pytest.mark.parametrize("system", ["", ".baseline_tfidf_lr"])
def test_figures_of_posts_are_those_of_scikit_learns_report(system, posts_run):
    lines = lines_of(posts_run, system=system)
    gold, decided = (
        matrix(lines, value)
        for value in (lambda line: line["label"], lambda line: line["probability"] > 0.5)
    )
    expected = classification_report(
        gold, decided, target_names=LABELS, output_dict=True, zero_division=0
    )
    prefix = f"test/{system[1:]}/" if system else "test/"
    found = {
        key.removeprefix(f"{prefix}protocol/redsm5_posts/"): value
        for key, value in posts_run.metrics.items()
        if key.startswith(f"{prefix}protocol/redsm5_posts/")
    }
    for average in ("micro", "macro", "weighted", "samples"):
        for score in ("precision", "recall", "f1"):
            value = expected[f"{average} avg"][score.replace("f1", "f1-score")]
            assert found[f"{score}_{average}"] == pytest.approx(value, abs=1e-12)
    assert found["subset_accuracy"] == (gold == decided).all(axis=1).mean()
    support = [found[f"per_label/{label}/support"] for label in LABELS]
    assert support == [expected[label]["support"] for label in LABELS]
    assert support[9] > 0
    assert (found["n_texts"], found["n_texts_left_out"]) == (6, 0)
    always = posts_run.metrics["test/baseline_majority/protocol/redsm5_posts/subset_accuracy"]
    assert always == gold[:, 9].mean()  # who decides that no criterion is met


def test_figures_of_sentences_are_about_every_sentence(train_by):
    run = train_by("redsm5_sentences")
    lines = lines_of(run, "val")
    gold, decided = (
        matrix(lines, value)
        for value in (lambda line: line["label"], lambda line: line["probability"] > 0.5)
    )
    figures = {
        key.removeprefix("val/protocol/redsm5_sentences/"): value
        for key, value in run.metrics.items()
    }
    assert figures["n_texts"] == len(gold) > len({line["post_id"] for line in lines})
    assert figures["per_label/NO_SYMPTOMS/support"] == gold[:, 9].sum() > 0
    for average in ("micro", "macro", "weighted", "samples"):
        expected = f1_score(gold, decided, average=average, zero_division=0)
        assert figures[f"f1_{average}"] == pytest.approx(expected, abs=1e-12)
    assert "no published figures that could be verified" in run.summary


def test_the_joint_task_has_the_figures_of_its_labels(train_by):
    run = train_by("redsm5_posts", "joint")
    assert run.metrics["val/protocol/redsm5_posts/n_labels"] == 10
    assert "published: BERT" in run.summary


def test_a_table_has_the_published_figures_and_their_source(posts_run):
    table = posts_run.summary[posts_run.summary.index("protocol redsm5_posts") :]
    assert "published: BERT (bert-base-uncased)" in table
    assert "github.com/eliseobao/redsm5 at commit 7008cb2" in table
    assert "Labels that no text has count as 0 in macro-F1" in table
    micro = posts_run.metrics["test/protocol/redsm5_posts/f1_micro"]
    assert f"{micro:.3f}" in table.splitlines()[1]


def test_the_report_has_the_protocol_and_its_labels(posts_run):
    facts = facts_of(posts_run.directory)
    systems, labels, *of_val = protocol_parts(facts.splits, facts.own_config, facts.criteria)
    assert [systems.caption, len(of_val)] == ["Protocol redsm5_posts, test", 2]
    head, *rows = csv.reader(as_csv(systems).splitlines())
    micro = posts_run.metrics["test/protocol/redsm5_posts/f1_micro"]
    assert float(rows[0][head.index("micro-F1, low") - 1]) == micro
    assert [row[0] for row in rows[:3]] == ["model", "TF-IDF + LR", "majority"]
    assert rows[3][0] == "published: BERT (bert-base-uncased)"
    assert rows[3][head.index("subset accuracy")] == "0.41"
    assert any("arXiv:2508.03399" in note for note in systems.notes)
    assert labels.rows[9][:2] == ["NO_SYMPTOMS", ""]


def test_rankings_are_files_with_which_ir_measures_finds_the_same(ranking_run, capsys, own_logging):
    folder = ranking_run.directory / "predictions"
    run, qrels = str(folder / "test.run"), str(folder / "test.qrels")
    measures = {
        "ap": ir_measures.AP,
        "r_precision": ir_measures.Rprec,
        "p_at_10": ir_measures.P @ 10,
        "ndcg_at_1000": ir_measures.nDCG @ 1000,
    }
    expected = ir_measures.calc_aggregate(
        list(measures.values()), ir_measures.read_trec_qrels(qrels), ir_measures.read_trec_run(run)
    )
    assert main(["trec", run, qrels, "--json"]) == 0
    of_files = json.loads(capsys.readouterr().out)
    for name, measure in measures.items():
        value = ranking_run.metrics[f"test/protocol/sentence_ranking/{name}"]
        assert value == pytest.approx(expected[measure], abs=1e-9)
        assert value == of_files[name]
    assert main(["trec", run, qrels]) == 0
    assert "The mean is over" in capsys.readouterr().out


def test_predictions_become_a_trec_run_that_is_scored(tmp_path, capsys, own_logging):
    predictions, qrels, run = (tmp_path / name for name in ("p.jsonl", "qrels", "out.run"))
    rows = [("p1", 0, 5, 0.25), ("p1", 6, 9, 0.75), ("p2", 0, 4, 0.5)]
    predictions.write_text(
        "".join(
            json.dumps(
                dict(zip(("post_id", "start_char", "end_char", "probability"), row, strict=True))
                | {"criterion_id": "A.4"}
            )
            + "\n"
            for row in rows
        )
    )
    qrels.write_text("A.4 0 p2/0-4 1\nA.4 0 p1/0-5 0\nA.9 0 p2/0-4 1\n")
    assert main(["trec", str(predictions), str(qrels), f"output={run}"]) == 0
    printed = capsys.readouterr().out
    assert "Topics without a line in the run count as 0: A.9." in printed
    assert printed.splitlines()[2].split() == ["A.4", "0.500", "0.000", "0.100", "0.631"]
    assert run.read_text().splitlines() == [
        "A.4 Q0 p1/6-9 1 0.75 p",
        "A.4 Q0 p2/0-4 2 0.5 p",
        "A.4 Q0 p1/0-5 3 0.25 p",
    ]


@pytest.mark.parametrize("arguments", [[], ["a.run"], ["a.run", "b", "c"]])
def test_a_run_without_qrels_and_output_is_refused(arguments, capsys, own_logging):
    assert main(["trec", *arguments]) == 2
    assert "must be given a run and qrels" in capsys.readouterr().err


def test_a_trained_model_is_evaluated_by_another_protocol_apart_from_its_run(posts_run):
    found = evaluate(
        posts_run, split="test", overrides=["protocol=sentence_ranking"], verbose=False
    )
    assert found.directory.parent.name == "evaluations"
    assert "test/protocol/sentence_ranking/ap" in found.metrics
    facts = facts_of(found.directory)
    assert facts.own_config["protocol"]["name"] == "sentence_ranking"
    assert facts.config["protocol"]["name"] == "redsm5_posts"


def test_a_protocol_that_divides_the_corpus_is_about_no_other_division(posts_run):
    with pytest.raises(ConfigError, match="add protocol=none"):
        evaluate(posts_run, split="all", verbose=False)
    with pytest.raises(ConfigError, match="divides the posts into folds"):
        load_series_config("cv", "criteria", ["protocol=redsm5_posts"])


def test_a_run_of_other_documents_than_the_qrels_is_refused(tmp_path, capsys, own_logging):
    run, qrels = tmp_path / "a.run", tmp_path / "qrels"
    run.write_text("1 Q0 d1 1 0.5 t\n2 Q0 d2 1 0.4 t\n")
    qrels.write_text("1 0 s1 1\n2 0 s2 1\n")
    assert main(["trec", str(run), str(qrels)]) == 2
    told = capsys.readouterr().err
    assert "No document of the run is in the qrels under the same topic" in told
    assert "in the run: '1' 'd1', '2' 'd2'" in told
    assert "In the qrels: '1' 's1', '2' 's2'" in told

    qrels.write_text("1 0 s1 1\n2 0 d2 1\n")
    assert main(["trec", str(run), str(qrels)]) == 0
    assert "no document of the run is in the qrels: 1." in capsys.readouterr().out
    assert main(["trec", str(run), str(qrels), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topics_without_judged_document"] == ["1"]


def test_a_topic_without_a_relevant_document_is_named_in_the_json(tmp_path, capsys, own_logging):
    run, qrels = tmp_path / "a.run", tmp_path / "qrels"
    run.write_text("1 Q0 d1 1 0.5 t\n1 Q0 d2 2 0.4 t\n2 Q0 d1 1 0.5 t\n")
    qrels.write_text("1 0 d2 1\n2 0 d1 0\n3 0 d1 1\n")
    assert main(["trec", str(run), str(qrels), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_topics"], found["ap"]) == (2, 0.25)
    assert found["topics_without_relevant"] == ["2"]
    assert found["topics_not_in_run"] == ["3"]
