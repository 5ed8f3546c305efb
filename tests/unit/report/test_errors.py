import csv
import functools
import json
import re
import stat

import pytest

from psy_agents_noaug.config.loading import lay_over, load_train_config, to_yaml
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.report.errors import confidence_of, kind_of, write_errors_page
from psy_agents_noaug.run.data import label_corpus

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 I lie awake. 😔 <b>So tired.</b>"
POSTS = {"p1": HOSTILE, "p2": "A quiet day. Nothing else.", "p3": "I sleep badly."}
SLEEP = HOSTILE.index("I lie"), HOSTILE.index(" 😔")


def line(post_id, criterion_id, **values):
    ids = {"example_id": f"{post_id}/{criterion_id}", "post_id": post_id, "group_id": post_id}
    return {**ids, "criterion_id": criterion_id, **values}


def decided(post_id, criterion_id, label, decision, probability):
    return line(
        post_id,
        criterion_id,
        label=label,
        probability=0.5,
        calibrated_probability=probability,
        decision=decision,
        threshold=0.4,
    )


@functools.cache
def settings_of(task, *settings):
    files = ["data=tables", "data.posts=posts.csv", "data.annotations=annotations.csv"]
    return load_train_config(task, [*files, *settings]).model_dump()


LINES = [
    decided("p1", "A.4", 1, 0, 0.1),
    decided("p2", "A.4", 0, 1, 0.9),
    decided("p2", "A.6", 0, 0, 0.2),
    decided("p3", "A.4", 1, 1, 0.8),
]


@pytest.fixture
def make_run(tmp_path):
    """Return a function from predictions by split to the directory of a run that made them."""

    def write(name, rows):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    def make(predictions, *settings, task="criteria"):
        write("posts.csv", [["post_id", "text"], *POSTS.items()])
        head = ["post_id", "criterion_id", "status", "start_char", "end_char"]
        rows = [["p1", "A.4", 1, *SLEEP], ["p3", "A.4", 1, "", ""], ["p2", "A.6", 0, 2, 7]]
        write("annotations.csv", [head, *rows])
        config = lay_over(settings_of(task, *settings), {"data.dir": str(tmp_path)})
        run = tmp_path / "run"
        (run / "predictions").mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(config))
        fingerprint = label_corpus(config).corpus.fingerprint
        (run / "manifest.json").write_text(json.dumps({"data": {"corpus": fingerprint}}))
        for split, lines in predictions.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (run / "predictions" / f"{split}.jsonl").write_text(text)
        return run

    return make


def data_of(page):
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found)


def example(label=1, evidence=()):
    return Example("p/A", "p", "p", "A", "text", label, True, evidence, ())


def spans(*verdicts, key):
    return [{"start_char": 0, "end_char": 4, key: verdict} for verdict in verdicts]


@pytest.mark.parametrize(
    ("label", "values", "kind"),
    [
        (1, {"decision": 1}, "right"),
        (0, {"decision": 1}, "false alarm"),
        (1, {"decision": 0}, "miss"),
        # A task of one's own, with ordinal labels.
        (3, {"decision": 1}, "miss"),
        (2, {"decision": 2}, "right"),
        # Of evidence alone, that there is some is the decision.
        (0, {"evidence": [False], "gold": []}, "false alarm"),
        (1, {"evidence": [], "gold": [False]}, "miss"),
        (1, {"evidence": [True], "gold": [True]}, "right"),
        (1, {"evidence": [True, False], "gold": [True]}, "wrong evidence"),
        (1, {"evidence": [True], "gold": [True, False]}, "wrong evidence"),
        (0, {"evidence": [], "gold": []}, "right"),
        (1, {"evidence": [None], "gold": None}, "right"),
        # Of both, the decision comes first.
        (1, {"decision": 0, "evidence": [True], "gold": [True]}, "miss"),
        (1, {"decision": 1, "evidence": [False], "gold": [False]}, "wrong evidence"),
        (0, {"decision": 0, "evidence": [False], "gold": []}, "wrong evidence"),
        (1, {"decision": 1, "evidence": [None], "gold": None}, "right"),
    ],
)
def test_the_kind_of_a_prediction_follows_its_decision_and_then_its_evidence(label, values, kind):
    found = {key: value for key, value in values.items() if key == "decision"}
    if "evidence" in values:
        found["evidence"] = spans(*values["evidence"], key="right")
        gold = values["gold"]
        found["gold_evidence"] = None if gold is None else spans(*gold, key="found")
    assert kind_of(found, example(label)) == kind


def test_confidence_is_the_probability_of_the_decision_or_the_distance_to_the_threshold():
    assert confidence_of({"probability": 0.3, "decision": 1}) == 0.3
    assert confidence_of({"probability": 0.3, "decision": 0}) == 0.7
    assert confidence_of({"probability": 0.9, "calibrated_probability": 0.6, "decision": 1}) == 0.6
    assert confidence_of({"null_score_diff": 1.5, "null_score_diff_threshold": 2.0}) == 0.5
    assert confidence_of({"null_score_diff": None, "null_score_diff_threshold": 2.0}) is None
    assert confidence_of({"severity": 1.2, "decision": 1}) is None


def test_the_page_holds_each_post_once_with_what_is_known_of_its_pairs(make_run):
    data = data_of(write_errors_page(make_run({"val": LINES})))
    columns = data["columns"]
    assert [data["kinds"][kind] for kind in columns["kind"]] == [
        "miss",
        "false alarm",
        "right",
        "right",
    ]
    assert columns["confidence"] == [0.9, 0.9, 0.8, 0.8]
    assert "predicted" not in columns
    assert "judged" not in columns
    assert [(post["id"], post["text"]) for post in data["posts"]] == list(POSTS.items())
    assert data["posts"][0]["spans"] == [[3, *SLEEP, 1]]
    assert data["posts"][1]["spans"] == [[5, 2, 7, 0]]


def test_no_text_is_markup_and_only_the_owner_may_read_the_page(make_run):
    page = write_errors_page(make_run({"val": LINES}))
    html = page.read_text(encoding="utf-8")
    assert "<img" not in html
    assert html.count("</script>") == html.count("<script") == 3
    assert html.index("holds the text of posts") < html.index("lie awake")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_of_a_model_of_sentences_the_judged_sentence_is_shown(make_run):
    start, end = POSTS["p2"].index("Nothing"), len(POSTS["p2"])
    sentence = line("p2", "A.4", label=0, probability=0.9, decision=1)
    sentence["example_id"] = f"p2/{start}-{end}/A.4"
    page = write_errors_page(make_run({"test": [sentence]}, "data.unit=sentence"))
    assert data_of(page)["columns"]["judged"] == [[start, end]]
    assert "the sentence that the prediction is about" in page.read_text(encoding="utf-8")


def test_val_comes_before_test_and_label_quality_is_of_unseen_posts_alone(make_run):
    data = data_of(
        write_errors_page(make_run({"train": LINES, "test": LINES[:1], "val": LINES[1:]}))
    )
    assert data["splits"] == ["val", "test", "train"]
    assert data["columns"]["quality"] == [0.1, 0.8, 0.8, 0.1, None, None, None, None]
    # The met pair that is not believed, and the other that is believed to be met.
    assert data["columns"]["suspected"] == [1, 0, 0, 1, 0, 0, 0, 0]


def test_out_of_fold_predictions_of_several_seeds_are_averaged_for_label_quality(make_run):
    seeds = [{**LINES[0], "seed": seed, "calibrated_probability": seed / 10} for seed in (1, 3)]
    lines = [*seeds, *({**other, "seed": 1} for other in LINES[1:])]
    data = data_of(write_errors_page(make_run({"out_of_fold": lines, "val": LINES})))
    columns = data["columns"]
    qualities = list(zip(columns["split"], columns["seed"], columns["quality"], strict=True))
    assert data["splits"] == ["val", "out of fold"]
    assert qualities[:5] == [(0, None, None)] * 4 + [(1, 1, 0.2)]
    assert qualities[5] == (1, 3, 0.2)


def test_another_corpus_than_the_one_that_was_judged_is_refused_without_its_words(
    make_run, tmp_path
):
    run = make_run({"val": LINES})
    posts = tmp_path / "posts.csv"
    posts.write_text(posts.read_text(encoding="utf-8").replace("quiet", "quavimorthle"), "utf-8")
    with pytest.raises(
        DataError, match=r"its content has changed since\. Bring the files"
    ) as error:
        write_errors_page(run)
    assert "quavimorthle" not in str(error.value)
    assert not (run / "errors.html").exists()


def test_predictions_of_other_pairs_are_refused(make_run):
    run = make_run({"val": [*LINES, line("p9", "A.4", label=0, decision=1)]})
    with pytest.raises(DataError, match="1 predictions are of pairs that it does not have"):
        write_errors_page(run)


def test_an_evaluation_apart_is_held_against_the_data_that_it_recorded(make_run):
    run = make_run({"all": LINES})
    recorded = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").unlink()
    with pytest.raises(DataError, match="is not the one"):
        write_errors_page(run)
    (run / "evaluations.jsonl").write_text(json.dumps({"split": "all", **recorded}) + "\n")
    assert data_of(write_errors_page(run))["splits"] == ["the corpus"]


def test_a_folder_without_settings_or_predictions_is_refused_with_what_to_do(make_run, tmp_path):
    with pytest.raises(ConfigError, match=r"must hold a config\.yaml"):
        write_errors_page(tmp_path)
    with pytest.raises(DataError, match="Make some by `psy-agents eval checkpoint="):
        write_errors_page(make_run({}))


def test_gold_and_predicted_evidence_are_both_in_the_data(make_run):
    evidence = {"start_char": 0, "end_char": 7, "score": 1.25, "right": False}
    found = line(
        "p1",
        "A.4",
        evidence=[evidence],
        gold_evidence=[dict(zip(("start_char", "end_char"), SLEEP, strict=True), found=False)],
        null_score_diff=-1.25,
        null_score_diff_threshold=0.25,
    )
    data = data_of(write_errors_page(make_run({"val": [found]}, task="evidence")))
    assert data["columns"]["predicted"] == [[[0, 7, 1.25, False]]]
    assert data["columns"]["confidence"] == [1.5]
    assert data["posts"][0]["spans"] == [[3, *SLEEP, 1]]
    assert not data["is_probability"]
    assert "quality" not in data["columns"]
