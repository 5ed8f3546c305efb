"""An adaptation keeps the training laws, leaves out val and test, and gives an encoder to train with."""

import csv
import json
import logging
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from psy_agents_noaug import adapt as adapt_posts
from psy_agents_noaug.config.adaptation import load_adapt_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError, DataError, Interrupted
from psy_agents_noaug.models.masked_lm import MaskedLanguageModel
from psy_agents_noaug.run.adapt import Adaptation, adapt
from psy_agents_noaug.run.sync import sync
from psy_agents_noaug.run.train import train
from psy_agents_noaug.run.unlabelled import unlabelled_posts
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256
from psy_agents_noaug.training.trainer import Trainer

Adapt = Callable[..., Adaptation]
# See tests/unit/training/test_laws.py.
COMPARABLE = ("model.encoder_dropout=0.0", "training.adam_epsilon=0.0001")


@pytest.fixture(scope="session")
def unlabelled(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The posts of the corpus, a changed copy of a post of test, and 40 more posts."""
    with (tiny_corpus / "redsm5_posts.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["post_id"], row["text"]) for row in csv.DictReader(file)]
    test = json.loads((tiny_corpus / "splits.json").read_text())["test"]
    longest = max((text for post_id, text in rows if post_id in test), key=len)
    rows.append(("edited", f"Hello. {longest} Thank you all."))
    words = list({word for _, text in rows for word in text.split()})
    words.sort()
    for number in range(40):
        text = " ".join(words[(number * k + k * k) % len(words)] for k in range(1, 9 + number))
        rows.append((f"u{number}", f"{text}."))
    path = tmp_path_factory.mktemp("unlabelled") / "posts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("post_id", "text"), *rows])
    return path


@pytest.fixture
def settings(tiny_encoder: Path, tiny_corpus: Path, unlabelled: Path, tmp_path: Path) -> list[str]:
    return [
        f"data.posts={unlabelled}",
        "data=redsm5",
        f"data.dir={tiny_corpus}",
        "data.splits=splits.json",
        f"model.pretrained_model={tiny_encoder}",
        "model.max_length=48",
        "task.held_out=0.2",
        "tracking=none",
        "training.epochs=2",
        "training.train_batch_size=8",
        "training.micro_batch_tokens=256",
        "training.learning_rate=0.001",
        "training.amp=off",
        f"output_dir={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def run(settings: list[str]) -> Adapt:
    return lambda *more: adapt(load_adapt_config([*settings, *more]))


def hashes(result: Adaptation) -> list[str]:
    folder = result.directory / "checkpoints"
    names = ("best_checkpoint.pt", "last_checkpoint.pt")
    return [weights_sha256(load_checkpoint(folder / name).weights) for name in names]


def last_weights(result: Adaptation) -> dict[str, torch.Tensor]:
    return load_checkpoint(result.directory / "checkpoints" / "last_checkpoint.pt").weights


def relative_difference(one: Adaptation, other: Adaptation) -> float:
    a, b = last_weights(one), last_weights(other)
    return max(float((a[name] - b[name]).norm() / a[name].norm().clamp_min(1e-3)) for name in a)


def test_two_runs_with_one_seed_are_bit_identical_and_another_seed_is_not(run: Adapt) -> None:
    first, second, other = run("run_name=a"), run("run_name=b"), run("seed=7")
    assert hashes(first) == hashes(second)
    assert first.metrics == second.metrics
    assert hashes(first) != hashes(other)
    assert first.metrics["val/n_masked_tokens"] == other.metrics["val/n_masked_tokens"]


def test_mlflow_is_brought_up_to_date_with_an_adaptation(run: Adapt, tmp_path: Path) -> None:
    result, uri = run("training.epochs=1"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    sync(result.directory, uri=uri)
    manifest = json.loads((result.directory / "manifest.json").read_text())
    kept = MlflowClient(uri).get_run(manifest["mlflow_run_id"])
    assert kept.data.metrics["val/perplexity"] == result.metrics["val/perplexity"]
    assert kept.info.status == "FINISHED"


@pytest.mark.slow
def test_worker_processes_change_nothing(run: Adapt) -> None:
    first, second = run(), run("training.num_workers=2")
    assert hashes(first) == hashes(second)


def test_a_stopped_run_resumes_to_the_same_weights(
    run: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("run_name=whole")
    stop_at(monkeypatch, step=3)
    with pytest.raises(Interrupted):
        run("run_name=parts", "resume=auto")
    parts = run("run_name=parts", "resume=auto")
    assert hashes(parts) == hashes(whole)
    assert parts.metrics == whole.metrics
    assert not list(parts.directory.glob(".tokens*"))


def test_micro_batches_and_padding_change_nothing_but_rounding(run: Adapt) -> None:
    whole = run(*COMPARABLE)
    for other in ("training.micro_batch_tokens=64", "training.execution=padded"):
        assert relative_difference(whole, run(*COMPARABLE, other)) < 1e-4


def test_posts_of_val_and_test_are_left_out_and_counted(
    run: Adapt, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counts = json.loads((run().directory / "manifest.json").read_text())["posts"]
    assert counts["read"] == 71
    assert counts["same"] >= 16  # 8 of val, 8 of test
    assert counts["near"] >= 1
    (line,) = [line for line in caplog.messages if "have the text of a post of val or test" in line]
    assert line.endswith(f"p23 and {counts['same'] - 10} more")
    assert counts["train"] + counts["val"] + counts["same"] + counts["near"] == 71


def test_quotations_as_short_as_are_hardly_found_are_left_out_alike_each_time(
    settings: list[str], tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Chance decides of them, by the key of the search."""
    with (tiny_corpus / "redsm5_posts.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["post_id"] > "p21"]  # test
    words = max(texts, key=len).split()
    path = tmp_path / "quotations.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("post_id", "text"))
        for number in range(300):
            begin = number % (len(words) - 21)
            around = [f"own{number}word{place}" for place in range(30)]
            quoted = words[begin : begin + 20 + number % 2]
            writer.writerow((f"u{number}", " ".join([*around[:15], *quoted, *around[15:]])))
    config = load_adapt_config([*settings, f"data.posts={path}"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    found = []
    for _ in range(2):
        with unlabelled_posts(config, tokenizer, tmp_path) as posts:
            found.append((posts.counts, posts.fingerprint))
    assert found[0] == found[1]
    assert 0 < found[0][0]["near"] < 300


def test_the_result_trains_as_an_encoder_whose_identity_is_recorded(
    run: Adapt,
    make_config: Callable[..., TrainConfig],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    result = run()
    again = train(make_config(f"model.pretrained_model={result.model}"))
    manifest = json.loads((again.directory / "manifest.json").read_text())
    facts = manifest["adaptations"]["pretrained_model"]
    own = json.loads((result.directory / "manifest.json").read_text())
    assert facts["weights_sha256"] == own["encoder_sha256"]
    assert facts["is_unchanged"]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text("post_id,criterion_id,label,start_char,end_char,note\np00,A.5,1,,,\n")
    train(
        make_config(
            f"model.pretrained_model={result.model}",
            f"data.corrections={corrections}",
            "run_name=corrected",
        )
    )
    assert "was adapted to posts" not in caplog.text
    train(
        make_config(f"model.pretrained_model={result.model}", "data.splits=null", "run_name=other")
    )
    assert "was adapted to posts from which val and test of another corpus" in caplog.text


def test_an_adapted_encoder_has_a_head_and_can_be_adapted_again(run: Adapt) -> None:
    first = run()
    second = run(f"model.pretrained_model={first.model}", "run_name=second")
    heads = [
        json.loads((result.model / "adaptation.json").read_text())["language_model_head"]
        for result in (first, second)
    ]
    assert heads == ["new", "pretrained"]
    loaded = AutoModelForMaskedLM.from_pretrained(first.model)
    best = load_checkpoint(first.directory / "checkpoints" / "best_checkpoint.pt").weights
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(loaded.bert.get_parameter(name), best[f"backbone.{name}"])
    assert torch.equal(loaded.cls.predictions.decoder.weight, best[f"backbone.{name}"])
    assert loaded.config.hidden_dropout_prob == 0.1


def test_the_result_names_no_path_and_holds_no_post(
    run: Adapt, unlabelled: Path, tmp_path: Path
) -> None:
    folder = run("model.encoder_dropout=0.0").model
    texts = "".join(
        path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md")
    )
    assert str(tmp_path) not in texts
    assert str(unlabelled.parent) not in texts
    assert "We cooked soup" not in texts
    assert json.loads((folder / "config.json").read_text())["hidden_dropout_prob"] == 0.1


def test_the_loss_is_that_of_transformers_own_model(tiny_encoder: Path) -> None:
    config = BertConfig.from_pretrained(tiny_encoder)
    torch.manual_seed(0)
    theirs = BertForMaskedLM(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    batch = dict(tokenizer(["The bus was late.", "We cooked."], padding=True, return_tensors="pt"))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[1, 1] = 9, 11
    expected = theirs(**batch, labels=labels).loss
    ours = MaskedLanguageModel(theirs.bert, theirs).eval()
    places = torch.tensor([2, labels.shape[1] + 1])
    loss = torch.nn.functional.cross_entropy(ours(batch, places), torch.tensor([9, 11]))
    assert torch.allclose(loss, expected)


def test_faults_of_the_settings_are_told_before_anything_is_read(
    settings: list[str], tiny_encoder: Path, tmp_path: Path
) -> None:
    unmasked = tmp_path / "unmasked"
    shutil.copytree(tiny_encoder, unmasked)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(unmasked)
    for setting, fault in (
        (f"model.pretrained_model={unmasked}", "has no mask token"),
        ("model.max_length=129", "`model.max_length` must be at most 128"),
        ("training.monitor=val/nothing", "`training.monitor` must be a figure on val"),
    ):
        with pytest.raises(ConfigError, match=fault):
            adapt(load_adapt_config([*settings, "data.posts=/nowhere.csv", setting]))


def test_settings_that_no_adaptation_has_are_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match="`posts` must be given"):
        load_adapt_config([item for item in settings if not item.startswith("data.posts")])
    with pytest.raises(ConfigError, match=r"`model.lora` is of the tasks"):
        load_adapt_config([*settings, "model.lora={rank: 4}"])
    with pytest.raises(ConfigError, match=r"mask_probabilty"):
        load_adapt_config([*settings, "task.mask_probabilty=0.2"])


def test_the_posts_of_the_corpus_are_asked_for_by_their_own_name() -> None:
    with pytest.raises(ConfigError, match="`corpus_posts` must be given"):
        load_adapt_config(["data=tables", "data.posts=posts.csv"])


def test_a_file_of_which_nothing_is_left_is_refused_and_leaves_nothing(
    settings: list[str], tiny_corpus: Path, tmp_path: Path
) -> None:
    with (tiny_corpus / "redsm5_posts.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["post_id"] > "p21"]
    path = tmp_path / "test.csv"
    path.write_text("\n".join(["post_id,text", *(f'{r["post_id"]},"{r["text"]}"' for r in rows)]))
    with pytest.raises(
        DataError, match="leaves no post for train and val: 8 were read, 8 left out"
    ):
        adapt_posts(path, settings[1:], verbose=False)
    assert not (tmp_path / "outputs").exists()


def stop_at(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Let a signal arrive once, after an update."""
    original = Trainer._update
    done: list[int] = []

    def update(self: Trainer) -> bool:
        if self.step == step and not done:
            done.append(step)
            signal.raise_signal(signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "_update", update)
