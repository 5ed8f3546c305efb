"""What a checkpoint gives away to somebody who has the posts, and what a shareable copy leaves out."""

import csv
import hashlib
import json
import logging
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.seen import KeyedHashes, OpenHashes, SeenPosts
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.errors import CheckpointError
from psy_agents_noaug.run.sharing import shareable
from psy_agents_noaug.run.train import train as train_config
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

LONG = "On day {n} of the stay in house {n} we walked {n} steps to the water, sang and slept well. "
PRIVATE = ("alice-of-ward-seven", "ward-seven-server", "secret-place")


@pytest.fixture(scope="module")
def posts(tiny_corpus):
    with (tiny_corpus / "redsm5_posts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "post_id": f"post-id-{number}",
            "text": f"{LONG.format(n=f'{number}x')}{row['text']}",
            "group_id": f"author-{number // 2}-of-forum",
        }
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def run(posts, tiny_corpus, tiny_encoder, overrides_for, tmp_path_factory):
    """A run of a corpus with authors, in folders whose names are private, with an encoder from such."""
    home = tmp_path_factory.mktemp("home") / PRIVATE[0]
    corpus = shutil.copytree(tiny_corpus, home / PRIVATE[2] / "corpus")
    encoder = shutil.copytree(tiny_encoder, home / PRIVATE[2] / "encoder")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((encoder / name).read_text(encoding="utf-8"))
        values |= {"_name_or_path": str(encoder), "name_or_path": str(encoder)}
        (encoder / name).write_text(json.dumps(values), encoding="utf-8")
    with (corpus / "redsm5_posts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(posts[0]))
        writer.writeheader()
        writer.writerows(posts)
    table = corpus / "redsm5_annotations.csv"
    text = table.read_text(encoding="utf-8")
    for number in range(len(posts)):
        text = text.replace(f"p{number:02d}", f"post-id-{number}")
    table.write_text(text, encoding="utf-8")
    ids = [row["post_id"] for row in posts]
    splits = {"format": 1, "train": ids[:14], "val": ids[14:22], "test": ids[22:]}
    (corpus / "splits.json").write_text(json.dumps(splits))
    own = {
        "data.dir": corpus,
        "data.splits": corpus / "splits.json",
        "data.columns.posts.group_id": "group_id",
        "model.pretrained_model": encoder,
        "output_dir": home / "outputs",
        "run_name": f"{PRIVATE[0]}-run",
        "tracking.uri": f"http://{PRIVATE[1]}:5000",
        "tracking.experiment": f"{PRIVATE[0]}-experiment",
    }
    settings = [*overrides_for(home), "training.max_steps=2"]
    return train([*settings, *(f"++{key}={value}" for key, value in own.items())], verbose=False)


def content(path: Path) -> bytes:
    """Return the decompressed bytes of a checkpoint, and the names of its parts."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return b"\n".join([*map(archive.read, names), *(name.encode() for name in names)])


def traces(row: dict[str, str]) -> dict[str, bytes]:
    """Return what could be recognised of a post, by name: texts, ids, and their usual hashes.

    Of a whole text the first 8 hexadecimal digits of a hash, of a part 12: longer ones begin with them,
    and so many shorter ones would be there by chance.
    """
    text, folded = row["text"], fold(row["text"])
    wholes = {text, folded, row["post_id"], row["group_id"]}
    words = folded.split()
    parts = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
    for span in sentences(text):
        sentence = text[span.start_char : span.end_char]
        parts |= {sentence, fold(sentence)}
    # The text of a criterion is in a checkpoint, and sentences of this corpus are such.
    found = {value: value.encode() for value in wholes}
    for values, n_digits in ((wholes, 8), (parts - wholes, 12)):
        for value in values:
            for name in ("md5", "sha1", "sha256", "blake2b", "blake2s"):
                digest = hashlib.new(name, value.encode()).digest()
                found[f"{name} of {value}"] = digest[:8]
                found[f"{name} of {value} in digits"] = digest.hex()[:n_digits].encode()
    return found


def found_in(path: Path, posts) -> list[str]:
    searched = content(path)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(searched, np.uint8), 8)
    begun = set(np.unique(np.ascontiguousarray(windows).view("<u8")).tolist())
    return [
        name
        for row in posts
        for name, trace in traces(row).items()
        if (len(trace) < 8 or int.from_bytes(trace[:8], "little") in begun) and trace in searched
    ]


def shared(run, name: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}.pt"
    save_checkpoint(path, shareable(load_checkpoint(run.directory / "checkpoints" / f"{name}.pt")))
    return path


@pytest.mark.parametrize("name", ["best_checkpoint", "last_checkpoint"])
def test_who_has_the_posts_finds_none_of_them_in_a_checkpoint(run, posts, name, tmp_path):
    own = run.directory / "checkpoints" / f"{name}.pt"
    assert found_in(own, posts) == []
    assert found_in(shared(run, name, tmp_path), posts) == []


def test_traces_of_posts_are_found_where_they_are(run, posts, tmp_path):
    path = run.directory / "checkpoints" / "best_checkpoint.pt"
    checkpoint = load_checkpoint(path)
    own = hashlib.sha256(fold(posts[3]["text"]).encode()).hexdigest()[:24]
    checkpoint.metadata["seen_texts"] = [own]
    old = tmp_path / "old.pt"
    save_checkpoint(old, checkpoint)
    assert found_in(old, posts)
    assert found_in(old, posts[:3]) == []


def test_the_filter_of_a_checkpoint_does_not_know_the_posts_by_what_is_in_it(run, posts):
    """As that of earlier versions did, whose key was the fingerprint of the corpus."""
    posts = [Post(**row) for row in posts]
    metadata = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt").metadata
    seen = metadata["seen_posts"]
    known = [*metadata["fingerprints"].values(), seen["key_check"], ""]
    for key in known:
        old = SeenPosts.from_metadata(seen, hashes=OpenHashes(key))
        assert (
            old.near_duplicates(posts) == old.same_texts(posts) == old.by_seen_authors(posts) == []
        )
    for key in map(str.encode, known):
        new = SeenPosts.from_metadata(seen, hashes=KeyedHashes(key))
        assert (
            new.near_duplicates(posts) == new.same_texts(posts) == new.by_seen_authors(posts) == []
        )
    own = KeyedHashes(bytes.fromhex((run.directory / "seen_posts.key").read_text()))
    assert len(SeenPosts.from_metadata(seen, hashes=own).near_duplicates(posts)) >= 22


def test_a_shareable_checkpoint_names_no_folder_server_user_or_run(run, tmp_path):
    own = run.directory / "checkpoints" / "best_checkpoint.pt"
    private = [name.encode() for name in PRIVATE]
    assert all(name in content(own) for name in private)  # what it is evaluated with
    searched = content(shared(run, "best_checkpoint", tmp_path))
    assert [name for name in private if name in searched] == []
    assert str(tmp_path.parent).encode() not in searched


def test_a_shareable_checkpoint_holds_no_secret_and_no_state_of_training(run, tmp_path):
    secret = (run.directory / "seen_posts.key").read_text().strip()
    checkpoint = load_checkpoint(shared(run, "last_checkpoint", tmp_path))
    assert checkpoint.resume is None
    assert {"seen_posts", "seen_texts"}.isdisjoint(checkpoint.metadata)
    assert set(checkpoint.metadata["fingerprints"]) == {"corpus"}
    for path in (*(run.directory / "checkpoints").iterdir(), tmp_path / "last_checkpoint.pt"):
        assert secret.encode() not in content(path)
        assert bytes.fromhex(secret) not in content(path)


@pytest.mark.slow
def test_the_secret_is_made_once_for_its_owner_alone_and_no_weight_hangs_on_it(
    make_config, weights_of
):
    first, second = (train_config(make_config(f"run_name={name}")) for name in "ab")
    paths = [run.directory / "seen_posts.key" for run in (first, second)]
    assert stat.S_IMODE(paths[0].stat().st_mode) == 0o600
    assert paths[0].read_text() != paths[1].read_text()
    assert weights_of(first) == weights_of(second)
    assert first.metrics == second.metrics
    before = paths[0].read_text()
    again = train_config(make_config("run_name=a", "resume=auto"))
    assert again.metrics == first.metrics
    assert paths[0].read_text() == before
    paths[0].write_text("damaged")
    with pytest.raises(CheckpointError, match=r"seen_posts\.key is damaged\. Put a copy of it"):
        train_config(make_config("run_name=a", "resume=auto"))


def test_a_shareable_checkpoint_is_evaluated_to_the_same_figures_and_says_what_it_cannot_know(
    run, tmp_path, caplog
):
    corpus = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt").config["data"]
    own = evaluate(run, split="val", verbose=False).metrics
    path = shared(run, "best_checkpoint", tmp_path)
    settings = {"data.dir": corpus["dir"], "output_dir": tmp_path / "elsewhere"}
    found = evaluate(path, settings, split="val", verbose=False)
    assert found.metrics == {**own, "val/seen_posts_unchecked": 1}
    assert "Not checked: whether training has seen these posts." in found.summary
    assert "was made to be shared" in caplog.text
    assert (
        "The corpus is the one that it was trained on: is it divided as in training?" in caplog.text
    )


def test_where_the_secret_is_gone_the_guard_says_that_it_cannot_check(run, tmp_path, posts, caplog):
    corpus = Path(
        load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt").config["data"]["dir"]
    )
    other = shutil.copytree(corpus, tmp_path / "other")
    table = other / "redsm5_posts.csv"
    table.write_text(
        table.read_text(encoding="utf-8") + "more,A post of one line.,someone\n", "utf-8"
    )
    splits = json.loads((other / "splits.json").read_text())
    splits["test"] = [*splits["train"], "more"]
    splits["train"] = [row["post_id"] for row in posts[22:]]
    (other / "splits.json").write_text(json.dumps(splits))
    settings = {"data.dir": other, "data.splits": "splits.json"}
    copied = Path(shutil.copytree(run.directory, tmp_path / "copied"))
    with pytest.raises(CheckpointError, match="has seen 14 posts of test in training"):
        evaluate(copied, settings, verbose=False)
    (copied / "seen_posts.key").write_text("0" * 64)
    assert evaluate(copied, settings, verbose=False).metrics["test/seen_posts_unchecked"] == 1
    assert "is not the one that its hashes were made with" in caplog.text
    (copied / "seen_posts.key").unlink()
    caplog.clear()
    found = evaluate(copied, settings, verbose=False)
    assert found.metrics["test/seen_posts_unchecked"] == 1
    assert "Not checked: whether training has seen these posts." in found.summary
    (told,) = [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "seen" in r.msg
    ]
    assert "seen_posts.key is not there, the secret of the run" in told
    # On the training's own data nothing has to be looked for.
    assert "test/seen_posts_unchecked" not in evaluate(copied, verbose=False).metrics


def test_another_division_of_the_training_corpus_is_refused_without_the_secret(run, tmp_path):
    copied = Path(shutil.copytree(run.directory, tmp_path / "copied"))
    (copied / "seen_posts.key").unlink()
    with pytest.raises(CheckpointError, match="divided in another way"):
        evaluate(copied, {"data.splits": None, "data.split_seed": 5}, verbose=False)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("org/model", "org/model"),
        ("bundled:all-MiniLM-L6-v2", "bundled:all-MiniLM-L6-v2"),
        ("/home/alice/models/mine", "mine"),
        ("~/models/mine", "mine"),
        ("../models/mine", "mine"),
        ("C:\\Users\\alice\\mine", "mine"),
        ("folder/of-alice/mine", "mine"),
        ("of-alice\\mine", "mine"),
    ],
)
def test_names_of_models_stay_and_paths_to_them_lose_their_folders(run, name, kept):
    checkpoint = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt")
    checkpoint.config["model"]["pretrained_model"] = name
    checkpoint.config["data"]["posts"] = f"below/{name}"
    config = shareable(checkpoint).config
    assert config["model"]["pretrained_model"] == kept
    assert "/" not in config["data"]["posts"]


def test_a_folder_that_looks_like_the_name_of_a_model_is_a_folder(run, tmp_path, monkeypatch):
    (tmp_path / "alice" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt")
    checkpoint.config["model"]["pretrained_model"] = "alice/mine"
    assert shareable(checkpoint).config["model"]["pretrained_model"] == "mine"
