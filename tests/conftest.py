"""Shared fixtures: a tiny random encoder, a tiny corpus, and the command line of a fast run."""

import csv
import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.metrics.tables import render_table
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256
from psy_agents_noaug.utils.signals import STOP_SIGNALS

REPOSITORY = Path(__file__).parents[1]
CANARY = "xylozephyrquill"
# What a task needs besides `overrides` for tiny inputs.
TINY_SETTINGS = {
    "criteria": (),
    "evidence": ("task.stride=8",),
    "joint": ("task.evidence.stride=8",),
}

_NEUTRAL = [
    "The bus was late again this morning.",
    "We cooked soup and watched a film.",
    "My exam is on Friday at noon.",
    "The dog chased a ball in the park 🐕.",
    "I bought a new lamp for my desk.",
    f"Our code word for the trip is {CANARY}.",
]


# Tiny models gain nothing from a second thread, and lose a lot where other work wants the core. The last
# bit of a sum depends on the number of threads, so the processes that tests start get as many.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Started by `nohup` or in the background of a script, the tests would inherit that these signals are
# ignored, and so would the processes that they start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_MATRIX = pytest.StashKey[dict[tuple[str, str, str], list[pytest.TestReport]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MATRIX] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the reports of each row of the fault matrix: area, fault, and what the product does."""
    report = yield
    marker = item.get_closest_marker("faults")
    if marker:
        fault, outcome = marker.args
        area = item.path.stem.removeprefix("test_").replace("_", " ")
        item.config.stash[_MATRIX].setdefault((area, fault, outcome), []).append(report)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the fault matrix if the faults are what was asked for (`make faults`)."""
    if config.option.markexpr != "faults":
        return
    rows = [["area", "fault", "what happens", "held", "seconds"]]
    for (area, fault, outcome), reports in config.stash[_MATRIX].items():
        held = "NO" if any(report.failed for report in reports) else "yes"
        skipped = all(report.skipped for report in reports if report.when == "setup")
        seconds = sum(report.duration for report in reports)
        rows.append([area, fault, outcome, "not run" if skipped else held, f"{seconds:.1f}"])
    terminalreporter.section("faults")
    terminalreporter.write_line(render_table(rows, left=4))


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's caches out of the tests, and the tests out of them."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (2 layers of width 32) and a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [criterion.text for criterion in MAJOR_DEPRESSIVE_EPISODE] + _NEUTRAL
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials)
    )
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=128,
            )
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in RoBERTa's format, whose tokens may be parts of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [criterion.text for criterion in MAJOR_DEPRESSIVE_EPISODE] + _NEUTRAL,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in ReDSM5's layout: 30 posts of unequal length, a positive or a negative in most."""
    folder = tmp_path_factory.mktemp("corpus")
    posts, annotations = [], []
    for number in range(30):
        post_id = f"p{number:02d}"
        criterion = MAJOR_DEPRESSIVE_EPISODE[number % 9]
        sentence = criterion.text
        neutral = [_NEUTRAL[(number + k) % len(_NEUTRAL)] for k in range(1 + number % 5)]
        posts.append((post_id, " ".join([*neutral, sentence])))
        status = int(number % 4 != 0)
        alias = criterion.aliases[0]
        annotations.append((post_id, f"{post_id}_0", sentence, alias, status, "made up"))
    _write(folder / "redsm5_posts.csv", ["post_id", "text"], posts)
    columns = ["post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status", "explanation"]
    _write(folder / "redsm5_annotations.csv", columns, annotations)
    ids = [post_id for post_id, _ in posts]
    splits = {"format": 1, "train": ids[:14], "val": ids[14:22], "test": ids[22:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture(scope="session")
def paraphrased_corpus() -> Path:
    """A made-up folder in ReDSM5's layout whose evidence, as in the public one, is paraphrased."""
    return REPOSITORY / "tests" / "data" / "paraphrased"


@pytest.fixture(scope="session")
def overrides_for(tiny_encoder: Path, tiny_corpus: Path) -> Callable[..., list[str]]:
    """Return a function from output_dir and task to the command line of a run that takes a second."""
    return lambda output_dir, task="criteria": [
        "data=redsm5",
        f"data.dir={tiny_corpus}",
        "data.splits=splits.json",
        "data.negatives=2.0",
        f"model.pretrained_model={tiny_encoder}",
        "model.max_length=96",
        "tracking=none",
        "report=false",  # it takes longer than the training
        "training.epochs=2",
        "training.train_batch_size=8",
        "training.micro_batch_tokens=256",
        "training.learning_rate=0.001",
        "training.amp=off",  # machines differ in what `auto` chooses, and maths is compared to 1e-5
        f"output_dir={output_dir}",
        *TINY_SETTINGS[task],
    ]


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Let the operating system refuse larger files in a `with` block, as a full disk does.

    A block, since pytest's own output may be a file: outside of a test it must be free to grow.
    """
    return _file_size_limit


@pytest.fixture
def task_name() -> str:
    """The task of the fixtures below; a test's own parameter of this name replaces it."""
    return "criteria"


@pytest.fixture
def architecture() -> str:
    """`model.architecture` of the fixtures below; a test's own parameter replaces it."""
    return "cross_encoder"


@pytest.fixture
def overrides(
    overrides_for: Callable[..., list[str]], tmp_path: Path, task_name: str, architecture: str
) -> list[str]:
    """The command line of a run that takes a second: tiny model, tiny corpus, no tracking."""
    own = [] if architecture == "cross_encoder" else [f"model.architecture={architecture}"]
    return [*overrides_for(tmp_path / "outputs", task_name), *own]


class ScriptProcess:
    """One of `scripts/` in a process of its own, forked by `context`; see `start_script`."""

    _PROGRAM = """
import os, runpy, sys
for number, path in enumerate(outputs, start=1):
    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
sys.argv = command
exec(prelude)
runpy.run_path(command[0], run_name="__main__")
"""

    def __init__(
        self, context: ForkServerContext, outputs: Path, *command: str, prelude: str = ""
    ) -> None:
        self._command = [str(REPOSITORY / "scripts" / command[0]), *command[1:]]
        self._outputs = [outputs / "out", outputs / "err"]
        names = {"command": self._command, "outputs": self._outputs, "prelude": prelude}
        self._process = context.Process(target=exec, args=(self._PROGRAM, names))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        self._process.join(200)
        texts = [path.read_text() for path in self._outputs]
        return subprocess.CompletedProcess(self._command, self._process.exitcode, *texts)


@pytest.fixture(scope="session")
def start_script(
    own_caches: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ScriptProcess]:
    """Return a function from a script's name and arguments to the process that runs it.

    A `prelude` of Python code is run in it before.

    Imports take most of a short run's time. Here they are made once, by the process that others are
    forked from; it is not this one, so nothing that a test left behind is inherited.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["psy_agents_noaug.run.train", "mlflow", "pytest"])
    return lambda *command, prelude="": ScriptProcess(
        context, tmp_path_factory.mktemp("script"), *command, prelude=prelude
    )


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Let an entry point set up logging and signals in this process, and put both back after it."""
    root, ours = logging.getLogger(), logging.getLogger("psy_agents_noaug")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers[:] = []
    stops = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in stops.items():
        signal.signal(number, handler)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def make_config(overrides: list[str], task_name: str) -> Callable[..., TrainConfig]:
    """Return a function from further overrides to the checked configuration of a fast run."""
    return lambda *more: load_train_config(task_name, [*overrides, *more])


@pytest.fixture
def weights_of(task_name: str) -> Callable[[RunResult], tuple[str, str]]:
    """Return a function from a finished run to the hashes of its best and its last weights."""

    def hashes(result: RunResult) -> tuple[str, str]:
        folder = result.directory / "checkpoints"
        best, last = (
            load_checkpoint(folder / name, task=task_name)
            for name in ("best_checkpoint.pt", "last_checkpoint.pt")
        )
        return weights_sha256(best.weights), weights_sha256(last.weights)

    return hashes


def _write(path: Path, columns: list[str], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
