"""`format=onnx`: ONNX Runtime gives the outputs of the model, for any number of posts and tokens."""

import json
import sys

import pytest
import torch

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.exports import onnx as onnx_module

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

CRITERION = MAJOR_DEPRESSIVE_EPISODE[1].text
LABEL_ATTENTION = "model.architecture=label_attention"
TWO_ENCODERS = "model.share_encoder=false"
slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "settings", "family"),
    [
        ("criteria", [LABEL_ATTENTION], "bert"),
        pytest.param("joint", [LABEL_ATTENTION], "bert", marks=slow),
        pytest.param("joint", [TWO_ENCODERS, "task.fusion=evidence_attention"], "bert", marks=slow),
        pytest.param("joint", [LABEL_ATTENTION], "minilm", marks=slow),
        pytest.param("criteria", [], "minilm", marks=slow),
        pytest.param("criteria", [], "roberta", marks=slow),
        pytest.param("criteria", ["model.pooling=attention"], "modernbert", marks=slow),
        pytest.param("criteria", [LABEL_ATTENTION], "modernbert", marks=slow),
        pytest.param("criteria", [LABEL_ATTENTION], "deberta-v2", marks=slow),
        pytest.param("criteria", ["model.pooling=max"], "distilbert", marks=slow),
        pytest.param("evidence", ["model.head_layers=2"], "roberta", marks=slow),
        pytest.param("evidence", [LABEL_ATTENTION], "deberta-v2", marks=slow),
        pytest.param("joint", ["task.fusion=concat"], "deberta-v2", marks=slow),
        pytest.param("joint", ["model.lora={rank: 2, alpha: 4.0}"], "electra", marks=slow),
    ],
)
def test_the_code_on_the_card_gives_the_outputs_of_the_model(
    make_trained, loaded, task, settings, family
):
    trained = make_trained(task, *settings, family=family)
    scores = loaded(trained.exported("onnx"))["scores"]
    for posts in (trained.posts, trained.posts[:1], [*trained.posts, "Soup. " * 12]):
        reads_texts = LABEL_ATTENTION in settings
        found = scores(posts) if reads_texts else scores(CRITERION, posts)
        expected = trained.outputs(1, posts)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value, atol=1e-4, rtol=0)


@slow
def test_two_encoders_may_have_unlike_tokenizers(make_trained, loaded, family_encoder):
    other = f"model.evidence_encoder={family_encoder('roberta')}"
    trained = make_trained("joint", TWO_ENCODERS, other, "task.fusion=concat")
    found = loaded(trained.exported("onnx"))["scores"](CRITERION, trained.posts)
    for name, value in trained.outputs(1, trained.posts).items():
        torch.testing.assert_close(torch.from_numpy(found[name]), value, atol=1e-4, rtol=0)


@slow
def test_int8_is_written_beside_and_measured(make_trained):
    trained = make_trained("criteria")
    folder = trained.exported("onnx", quantize="int8")
    assert (folder / "model_int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "a probability differed by up to 0.0" in card
    assert "the posts that are here are not those of the training" in card


@slow
def test_a_file_whose_outputs_differ_is_not_exported(make_trained, monkeypatch):
    monkeypatch.setattr(onnx_module, "difference", lambda *_: 2e-4)
    trained = make_trained("criteria")
    with pytest.raises(ConfigError, match=r"within 0\.0001, but they differ by 2\.0e-04"):
        trained.exported("onnx")
    assert not trained.path.with_suffix("").exists()


def test_without_its_packages_the_extra_is_named(make_trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(
        "psy_agents_noaug.utils.extras.find_spec", lambda name: None if name == "onnxscript" else 1
    )
    with pytest.raises(ConfigError, match=r"onnxscript.*psy-agents-noaug\[export\]"):
        make_trained("criteria").exported("onnx")


def test_settings_hold_what_decisions_need(make_trained):
    folder = make_trained("joint", LABEL_ATTENTION).exported("huggingface")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["thresholds"] == {"A.1": 0.4, "A.2": 0.4, "A.3": 0.4}
    assert settings["null_score_diff_threshold"] == -1.5
    assert settings["criteria"][1]["text"] == CRITERION
    assert (settings["task"], settings["max_length"]) == ("joint", 96)
