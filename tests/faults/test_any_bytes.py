"""Any bytes as an input file: a result or one message; never a traceback, a hang or a post's text."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.train import train

SECRET = "xylozephyrquill"  # a word of the tiny corpus
TINY = ["training.max_steps=1", "training.eval_steps=1", "data.token_cache=off"]

# What has stopped readers of CSV, JSON and YAML before.
NASTY = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'{"format": 1, "train": ' + b"9" * 6000 + b"}",
    b"- " * 5000,
    b"a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c]\n",
    b"a: &a\n  b: *a\n",
    b"!!python/object/apply:os.system ['echo run']\n",
    b"output_dir: ${oc.env:HOME}\n",
    b"training: {epochs: .inf}\n",
    b"? {a: b}\n: c\n",
    b"post_id,text\n" + b'"' * 5001,
    b"post_id,text\n" + b"x" * 200_000,
    b"\xed\xa0\x80",
    b'{"train": ["\\ud800"]}',
    b"NaN",
    b"1e999",
]
FILES = {
    "posts": "redsm5_posts.csv",
    "annotations": "redsm5_annotations.csv",
    "splits": "splits.json",
    "best_config": "best_config.yaml",
    "config": "config.yaml",
    "checkpoint": "best_checkpoint.pt",
}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes that are anything, or `good` with a few places changed."""
    if draw(st.booleans()):
        return draw(st.one_of(st.binary(max_size=300), st.sampled_from(NASTY)))
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 1, 2, 50, 10**9])))
        content[begin:end] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(NASTY)))
    return bytes(content)


@pytest.fixture(scope="module")
def good_files(
    overrides_for: Callable[..., list[str]],
    tiny_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a readable file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(tiny_corpus, folder, dirs_exist_ok=True)
    (folder / "best_config.yaml").write_text("training:\n  learning_rate: 0.001\nseed: 3\n")
    config = load_train_config("criteria", [*overrides_for(folder / "runs"), *TINY])
    run = train(config).directory
    shutil.copy(run / "config.yaml", folder)
    shutil.copy(run / "checkpoints" / "best_checkpoint.pt", folder)
    return folder


@pytest.fixture
def answer(
    overrides_for: Callable[..., list[str]],
    good_files: Path,
    tmp_path: Path,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[str, bytes], list[str]]:
    """Return a function that runs the command which reads a file, to the faults of its answer."""

    def judge(kind: str, content: bytes) -> list[str]:
        folder = tmp_path / "files"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good_files, folder, ignore=shutil.ignore_patterns("runs"))
        (folder / FILES[kind]).write_bytes(content)
        overrides = [*overrides_for(tmp_path / "outputs"), *TINY, f"data.dir={folder}"]
        command = ["train", "task=criteria", *overrides]
        if kind == "best_config":
            command.append(f"best_config={folder / FILES[kind]}")
        if kind == "config":
            run = tmp_path / "outputs" / "criteria" / "stopped"
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / FILES[kind], run)
            command += ["resume=auto", f"run_name=new{len(list(run.parent.iterdir()))}"]
        if kind == "checkpoint":
            command = ["eval", "task=criteria", f"checkpoint={folder / FILES[kind]}"]
            command += [f"data.dir={folder}"]
        code = main(command)
        out, err = capfd.readouterr()
        faults = {
            f"exit code {code}": code not in (0, 2),
            "a traceback": "Traceback" in err,
            "a text": SECRET in out + err,
            "no message": code == 2 and "Error: " not in err,
        }
        return [fault for fault, is_there in faults.items() if is_there]

    return judge


@pytest.mark.slow
@pytest.mark.faults("any bytes as an input file", "a result, or one message without a post's text")
@pytest.mark.parametrize("kind", FILES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(
    answer: Callable[[str, bytes], list[str]], good_files: Path, kind: str, data: st.DataObject
) -> None:
    content = data.draw(damaged((good_files / FILES[kind]).read_bytes()))
    assert answer(kind, content) == []


@pytest.mark.slow
@pytest.mark.faults("bytes that have stopped readers", "a result, or one message")
@pytest.mark.parametrize("content", NASTY, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("kind", FILES)
def test_what_has_stopped_readers_is_read_or_refused(
    answer: Callable[[str, bytes], list[str]], kind: str, content: bytes
) -> None:
    assert answer(kind, content) == []
