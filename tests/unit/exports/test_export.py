"""An export: where it goes, what the card says, and that nothing private is in it."""

import csv
import getpass
import hashlib
import json
import os
import shutil
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from psy_agents_noaug import __version__, evaluate, export, train
from psy_agents_noaug.cli import main
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.exports import export as export_module
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

REPOSITORY = Path(__file__).parents[3]
OLD = REPOSITORY / "tests" / "data" / "checkpoints_0.1.0"
PRIVATE = "alice-of-ward-seven"


@pytest.fixture(scope="module")
def run(overrides_for, tmp_path_factory, tiny_corpus):
    """A run with evaluations, in folders with a private name."""
    home = tmp_path_factory.mktemp("home") / PRIVATE
    corpus = shutil.copytree(tiny_corpus, home / "corpus")
    settings = [*overrides_for(home), f"data.dir={corpus}", f"run_name={PRIVATE}-run"]
    result = train([*settings, "training.max_steps=2"], verbose=False)
    for _ in range(2):
        evaluate(result, split="test", verbose=False)
    return result


def exported(run, kind: str, folder: Path, **settings) -> str:
    """Export a run, and return its card."""
    export(run, kind, {"output": folder, **settings}, verbose=False)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_has_the_figures_of_the_run_with_intervals_and_baselines(run, tmp_path):
    card = exported(run, "huggingface", tmp_path / "new" / "folder", license="cc-by-nc-4.0")
    metrics = json.loads((run.directory / "metrics.json").read_text())
    f1, low, high = (metrics[f"test/f1_macro{end}"] for end in ("", "_ci_low", "_ci_high"))
    interval = "[too few]" if low is None else f"[{low:.3f}, {high:.3f}]"
    (row,) = [line for line in card.split("On test:")[1].splitlines() if "| model |" in line][:1]
    assert row.startswith(f"| model | {f1:.3f} {interval} |")
    assert f"| tfidf_lr | {metrics['test/baseline_tfidf_lr/f1_macro']:.3f} " in card
    gains = {
        name: metrics[f"test/baseline_{name}/f1_macro_gain_ci_low"]
        for name in ("tfidf_lr", "majority", "always_met")
    }
    (told, *_) = [line for line in card.split("On test:")[1].splitlines() if line[:3] == "By "]
    for name, low in gains.items():
        assert (name in told) == (low is None or low <= 0)
    assert "Evaluations of this run's models on test so far: 2." in card
    assert "| train | 14 |" in card
    assert "| A.9 | Suicidal thoughts | " in card
    assert "no diagnosis" in card
    data = ModelCard(card).data
    assert (data.license, data.library_name) == ("cc-by-nc-4.0", "transformers")
    figures = {one.metric_type: one.metric_value for one in data.eval_results}
    assert figures["f1_macro"] == pytest.approx(f1, abs=1e-4)
    assert {one.dataset_split for one in data.eval_results} == {"test"}


def test_the_card_says_how_evidence_is_made_to_agree_with_the_label(make_trained):
    told = {}
    for decoding in ("independent", "consistent"):
        trained = make_trained("joint", f"task.decoding={decoding}")
        folder = trained.exported("huggingface", output=trained.path.with_name(decoding))
        told[decoding] = "decided unmet has no evidence" in (folder / "README.md").read_text()
    assert told == {"independent": False, "consistent": True}


def test_the_card_says_what_decides_of_a_whole_post_whose_sentences_are_judged(make_trained):
    trained = make_trained("criteria", "data.unit=sentence", "data.sentences=all")
    checkpoint = load_checkpoint(trained.path)
    rule = {**checkpoint.decision_rule, "posts": checkpoint.decision_rule}
    save_checkpoint(trained.path, replace(checkpoint, decision_rule=rule))
    card = (trained.exported("huggingface") / "README.md").read_text(encoding="utf-8")
    assert "Its texts are single sentences of posts" in card
    assert "`posts` in settings.json are its thresholds" in card


def test_the_card_cites_what_citation_cff_says():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    from psy_agents_noaug.exports.card import CITATION

    assert f"title = {{{cited['title']}}}" in CITATION
    assert f"author = {{{{{cited['authors'][0]['name']}}}}}" in CITATION
    assert f"version = {{{__version__}}}" in CITATION


def test_figures_of_other_weights_are_not_told_of_these(run, tmp_path, caplog):
    last = tmp_path / "run"
    shutil.copytree(run.directory, last)
    manifest = json.loads((last / "manifest.json").read_text())
    (last / "manifest.json").write_text(json.dumps({**manifest, "weights_sha256": "0" * 64}))
    card = exported(last, "huggingface", tmp_path / "other")
    assert "does not report these weights" in caplog.text
    assert "There are no figures on test." in card
    assert "without intervals and baselines" in card


def test_a_checkpoint_of_other_data_has_no_sizes_and_evaluations_of_the_run_where_it_lies(
    run, tmp_path
):
    copied = shutil.copytree(run.directory, tmp_path / "run")
    path = copied / "checkpoints" / "best_checkpoint.pt"
    foreign = load_checkpoint(path)
    data = {"corpus": "another", "splits": "another"}
    save_checkpoint(path, replace(foreign, metadata={**foreign.metadata, "fingerprints": data}))
    card = exported(path, "huggingface", tmp_path / "export")
    assert "Evaluations of this run's models on test so far: not known." in card
    assert "| train |" not in card


def test_a_lone_checkpoint_says_what_it_knows(run, tmp_path):
    path = shutil.copy(run.directory / "checkpoints" / "best_checkpoint.pt", tmp_path / "one.pt")
    result = export(path, "huggingface", verbose=False)
    assert result.folder == tmp_path / "one-huggingface"
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "The sizes of the splits are not known" in card
    assert "Evaluations of this run's models on test so far: not known." in card
    assert "| model | 0." in card


@pytest.mark.parametrize(
    "kind", ["huggingface", "bundle", pytest.param("onnx", marks=pytest.mark.slow)]
)
def test_nothing_private_and_no_trace_of_a_post_is_in_an_export(run, tmp_path, kind):
    folder = tmp_path / "public"
    exported(run, kind, folder)
    content = b"".join(unpacked(path) for path in sorted(folder.rglob("*")) if path.is_file())
    private = [PRIVATE, str(tmp_path), str(REPOSITORY), str(Path.home()), "/site-packages/"]
    # Shorter names are parts of words.
    private += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    with (run.directory.parents[1] / "corpus" / "redsm5_posts.csv").open(encoding="utf-8") as file:
        posts = list(csv.DictReader(file))
    for post in posts:
        text = fold(post["text"]).encode()
        private += [post["text"], f'"{post["post_id"]}"', hashlib.sha256(text).hexdigest()[:24]]
    data = json.loads((run.directory / "manifest.json").read_text())["data"]
    private.append(data["splits"])
    assert [word for word in private if word.encode() in content] == []
    assert b"seen_posts" not in content
    # What is looked for would be found.
    assert PRIVATE in (run.directory / "config.yaml").read_text()
    assert data["corpus"].encode() in content


def unpacked(path: Path) -> bytes:
    """Return the bytes of a file; of an archive those of its parts."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def test_a_bundle_is_evaluated_as_the_run_was(run, tmp_path):
    folder = tmp_path / "bundle"
    card = exported(run, "bundle", folder)
    assert "psy-agents eval checkpoint=FOLDER" in card
    corpus = run.directory.parents[1] / "corpus"
    found = evaluate(folder, {"data.dir": corpus, "output_dir": tmp_path}, verbose=False)
    before = json.loads((run.directory / "metrics.json").read_text())
    assert found.metrics["test/f1_macro"] == before["test/f1_macro"]
    assert found.metrics["test/brier"] == before["test/brier"]
    # Predictions have the ids of posts, which a folder to share must not.
    assert (tmp_path / "criteria") in found.directory.parents
    assert not list(folder.rglob("*.jsonl"))


@pytest.mark.parametrize("task", ["criteria", "evidence", "joint"])
def test_checkpoints_of_0_1_0_are_exported(task, tmp_path):
    path = shutil.copy(OLD / f"{task}.pt", tmp_path)
    card = exported(path, "huggingface", tmp_path / "new")
    assert f"# psy-agents-noaug-{task}" in card


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(run, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="full, which is not empty: remove it, or choose another"):
        exported(run, "bundle", folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match=r"notes\.txt, which is no folder"):
        exported(run, "bundle", folder / "notes.txt")


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(export_module, "write_text", fail)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Exception, match="empty cannot be written: the disk is full"):
        exported(run, "bundle", empty)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    monkeypatch.undo()
    exported(run, "bundle", empty)
    assert (empty / "checkpoints" / "best_checkpoint.pt").is_file()
    assert {oct(path.stat().st_mode)[-3:] for path in empty.iterdir() if path.is_file()} == {"644"}


@pytest.mark.usefixtures("own_logging")
def test_the_command_prints_how_to_load_what_it_wrote(run, tmp_path, capsys):
    folder = tmp_path / "new"
    given = [f"checkpoint={run.directory}", "format=huggingface", f"output={folder}"]
    assert main(["export", *given]) == 0
    out = capsys.readouterr().out
    assert f"export: {folder}" in out
    assert "AutoModel.from_pretrained(folder" in out
    assert main(["export", *given, "task=joint"]) == 2
    assert "must be a checkpoint of the task `joint`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"format": "pickle"}, "huggingface"),
        ({"format": "bundle", "quantize": "int8"}, "`quantize` belongs to format=onnx"),
        ({"format": "bundle", "license": "All rights!"}, "license"),
        ({"format": "bundle", "outptu": "x"}, "output"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(settings, told):
    kind = settings.pop("format")
    with pytest.raises(ConfigError, match=told):
        export("nowhere", kind, settings, verbose=False)
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        export("nowhere", "bundle", verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("criteria", []),
        ("evidence", []),
        ("joint", []),
        ("joint", ["model.architecture=label_attention"]),
        ("evidence", ["model.architecture=label_attention"]),
    ],
)
def test_int8_is_measured_on_val_where_the_posts_are(overrides_for, tmp_path, task, settings):
    # Posts of several windows.
    given = [*overrides_for(tmp_path / "outputs", task), "model.max_length=48", "training.epochs=1"]
    result = train([*given, *settings], task=task, verbose=False)
    card = exported(result, "onnx", tmp_path / "new", quantize="int8")
    row = next(line for line in card.splitlines() if line.startswith("| fp32 |"))
    assert any(line.startswith("| int8 |") for line in card.splitlines())
    header = next(line for line in card.splitlines() if line.startswith("| val |"))
    names = [cell.strip() for cell in header.split("|")[2:-1]]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    expected = {name: result.metrics.get(f"val/{name}") for name in names}
    assert [name for name, value in expected.items() if value is not None]
    for name, cell in zip(names, cells, strict=True):
        value = expected[name]
        assert cell == ("-" if value is None else f"{value:.3f}")
