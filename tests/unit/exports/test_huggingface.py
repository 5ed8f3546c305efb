"""`format=huggingface`: what transformers loads gives the logits of the model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE

CRITERION = MAJOR_DEPRESSIVE_EPISODE[1].text
LABEL_ATTENTION = "model.architecture=label_attention"
TWO_ENCODERS = "model.share_encoder=false"
CLS, MEAN = "model.pooling=cls", "model.pooling=mean"
slow = pytest.mark.slow


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", CLS),
        ("roberta", CLS),
        ("deberta-v2", CLS),
        ("electra", CLS),
        ("distilbert", CLS),
        ("modernbert", CLS),
        ("modernbert", MEAN),
        pytest.param("minilm", CLS, marks=slow),
    ],
)
def test_a_linear_head_becomes_a_sequence_classifier_of_the_same_logits(
    make_trained, loaded, family, pooling
):
    trained = make_trained("criteria", pooling, family=family)
    folder = trained.exported("huggingface")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.id2label, model.config.problem_type) == (
        {0: "not met", 1: "met"},
        "single_label_classification",
    )
    code = loaded(folder)
    classify = code["classify"]
    inputs = classify.tokenizer([CRITERION] * 2, trained.posts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    expected = trained.outputs(1, trained.posts)["log_odds"]
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, atol=1e-5, rtol=0)
    assert expected.unique().numel() == 2
    pairs = [{"text": CRITERION, "text_pair": post} for post in trained.posts]
    found = classify(pairs, truncation="only_second", max_length=96)
    met = [next(one["score"] for one in each if one["label"] == "met") for each in found]
    assert met == pytest.approx(expected.sigmoid().tolist(), abs=1e-6)


def test_a_pair_that_is_too_long_is_cut_where_a_window_ends(make_trained, loaded):
    trained = make_trained("criteria", CLS, "task.long_posts=truncate")
    long = "The bus was late again this morning. " * 60
    classify = loaded(trained.exported("huggingface"))["classify"]
    pair = {"text": CRITERION, "text_pair": long}
    (found,) = classify([pair], truncation="only_second", max_length=96)
    expected = trained.outputs(1, [long])["log_odds"].sigmoid().item()
    assert {one["label"]: one["score"] for one in found}["met"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("criteria", [MEAN]),
        ("criteria", ["model.pooling=attention", "model.head_layers=3", "model.head_width=8"]),
        ("criteria", ["model.pooling=max"]),
        ("criteria", [LABEL_ATTENTION]),
        ("evidence", ["model.head_layers=2"]),
        ("evidence", [LABEL_ATTENTION, "model.criterion_vectors=learned"]),
        ("joint", []),
        ("joint", ["task.fusion=evidence_attention"]),
        ("joint", [TWO_ENCODERS, "task.fusion=concat", "model.pooling=attention"]),
        ("joint", [LABEL_ATTENTION, "model.head_layers=2"]),
        ("criteria", [MEAN, "model.lora={rank: 2, alpha: 4.0}"]),
    ],
)
@pytest.mark.parametrize("family", ["bert", pytest.param("roberta", marks=slow)])
def test_the_code_on_the_card_gives_the_logits_of_every_other_model(
    make_trained, loaded, task, settings, family
):
    trained = make_trained(task, *settings, family=family)
    folder = trained.exported("huggingface")
    assert (folder / "head.safetensors").is_file()
    scores = loaded(folder)["scores"]
    reads_texts = LABEL_ATTENTION in settings
    found = scores(trained.posts) if reads_texts else scores(CRITERION, trained.posts)
    assert_same(found, trained.outputs(1, trained.posts))


def test_two_encoders_may_have_unlike_tokenizers(make_trained, loaded, family_encoder):
    other = f"model.evidence_encoder={family_encoder('roberta')}"
    trained = make_trained("joint", TWO_ENCODERS, other, "task.fusion=concat")
    scores = loaded(trained.exported("huggingface"))["scores"]
    assert_same(scores(CRITERION, trained.posts), trained.outputs(1, trained.posts))


@slow
@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "minilm"])
@pytest.mark.parametrize("settings", [["task.fusion=evidence_attention"], [LABEL_ATTENTION]])
def test_the_code_on_the_card_knows_every_encoder(make_trained, loaded, family, settings):
    trained = make_trained("joint", *settings, family=family)
    scores = loaded(trained.exported("huggingface"))["scores"]
    reads_texts = LABEL_ATTENTION in settings
    found = scores(trained.posts) if reads_texts else scores(CRITERION, trained.posts)
    assert_same(found, trained.outputs(1, trained.posts))


def test_a_head_whose_logits_another_class_cannot_give_is_exported_apart(make_trained, caplog):
    trained = make_trained("criteria", CLS)
    # tanh of such logits is far from linear.
    trained.scale_head(1e4)
    folder = trained.exported("huggingface")
    assert "cannot give the logits of this model" in caplog.text
    assert json.loads((folder / "head.json").read_text())["pooling"] == "cls"
    assert load_file(folder / "head.safetensors")["label.0.weight"].abs().max() > 100
