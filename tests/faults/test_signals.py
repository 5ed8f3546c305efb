"""Signals: SIGHUP, Ctrl-C twice, a terminal that is gone, and signals to some of several processes."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import Interrupted
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training import trainer
from psy_agents_noaug.training.checkpoint import load_checkpoint

LONG = ("run_name=long", "training.epochs=2000", "training.eval_steps=100000", "resume=auto")

REPOSITORY = Path(__file__).parents[2]

StartScript = Callable[..., Any]


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The last checkpoint of the run `long`."""
    return tmp_path / "outputs/criteria/long/checkpoints/last_checkpoint.pt"


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.faults("SIGHUP", "as SIGTERM: state saved, exit 129")
def test_a_hangup_saves_and_ends_with_its_own_code(
    start_script: StartScript, overrides: list[str], last: Path
) -> None:
    child = start_script("train_criteria.py", *overrides, *LONG, "training.save_steps=1")
    wait_for(last.exists)
    child.send_signal(signal.SIGHUP)
    done = child.wait()
    assert done.returncode == 129, done.stderr
    assert "by signal 1; the state is saved" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.faults("SIGHUP under `nohup`", "the run goes on")
def test_a_hangup_that_is_ignored_stays_ignored(
    start_script: StartScript, overrides: list[str], last: Path
) -> None:
    prelude = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    child = start_script(
        "train_criteria.py", *overrides, "run_name=long", "training.save_steps=1", prelude=prelude
    )
    wait_for(last.exists)
    child.send_signal(signal.SIGHUP)
    done = child.wait()
    assert done.returncode == 0, done.stderr


@pytest.mark.faults("SIGHUP during `eval` and `tune`", "one message, exit 129")
@pytest.mark.parametrize("script", ["eval_criteria.py", "run_hpo_stage.py"])
def test_a_hangup_ends_the_other_commands_too(
    start_script: StartScript, make_config: Callable[..., TrainConfig], script: str
) -> None:
    prelude = (
        "import signal\n"
        "from psy_agents_noaug.run import evaluate, train\n"
        "def read(*_, **__):\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "evaluate.prepare_data = train.prepare_data = read\n"
    )
    if script == "eval_criteria.py":
        result = train(make_config("run_name=long", "training.max_steps=1"))
        settings = [f"checkpoint={result.directory}"]
    else:
        settings = ["task=criteria", "hpo=stage0_sanity", "data=sample", "model=minilm"]
    done = start_script(script, *settings, "tracking=none", prelude=prelude).wait()
    assert done.returncode == 129, done.stderr
    assert "Stopped without saving more" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.faults("the terminal of a training is gone", "state saved, exit 129")
def test_a_terminal_that_is_gone_does_not_keep_a_training_from_saving(
    overrides: list[str], last: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = [*overrides, *LONG, "training.save_steps=1"]
        os.execv(sys.executable, [sys.executable, "-m", "psy_agents_noaug", "train", *arguments])
    os.set_blocking(terminal, False)

    def saved() -> bool:
        with suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        return last.exists()

    wait_for(saved)
    step = load_checkpoint(last).step
    os.close(terminal)
    began = time.monotonic()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert time.monotonic() - began < 60  # the training: much longer
    assert load_checkpoint(last).step > step


@pytest.mark.faults("Ctrl-C twice during a save", "no traceback, exit 130, last checkpoint whole")
def test_ctrl_c_twice_during_a_save_leaves_the_checkpoint_before(
    start_script: StartScript, overrides: list[str], last: Path
) -> None:
    prelude = (
        "import signal, torch\n"
        "save, saves = torch.save, []\n"
        "def interrupted(payload, file):\n"
        "    saves.append(payload['step'])\n"
        "    save(payload, file)\n"
        "    if len(saves) == 3:\n"
        "        for _ in range(3):\n"
        "            try:\n"
        "                signal.raise_signal(signal.SIGINT)\n"
        "            except KeyboardInterrupt as error:\n"
        # As a library does that has been called back.
        "                raise RuntimeError('unexpected position') from error\n"
        "torch.save = interrupted\n"
    )
    child = start_script(
        "train_criteria.py", *overrides, *LONG, "training.save_steps=2", prelude=prelude
    )
    done = child.wait()
    assert done.returncode == 130, done.stderr
    assert "Stopped without saving more; resume=auto goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(last).step == 4


@pytest.mark.faults("Ctrl-C while Python imports the command", "exit 130 without a word")
@pytest.mark.parametrize("entry", ["scripts/train_criteria.py", "src/psy_agents_noaug/__main__.py"])
@pytest.mark.parametrize("module", ["cli", "errors", "process", "tasks.registry"])
def test_ctrl_c_during_the_first_imports_is_no_traceback(entry: str, module: str) -> None:
    program = (
        "import runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == f'psy_agents_noaug.{sys.argv[1]}':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_path({str(REPOSITORY / entry)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, module], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.slow
@pytest.mark.faults("Ctrl-C again and again", "no traceback, exit 130, whatever is interrupted")
def test_ctrl_c_at_any_moment_is_never_a_traceback(
    start_script: StartScript, overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    for number in range(8):
        output = tmp_path / f"run{number}"
        settings = (*overrides_for(output), *LONG, "training.save_steps=1")
        child = start_script("train_criteria.py", *settings)
        wait_for((output / "criteria/long/checkpoints/last_checkpoint.pt").exists)
        for _ in range(4):
            time.sleep(0.003 * number)
            with suppress(ProcessLookupError):  # it has ended
                child.send_signal(signal.SIGINT)
        done = child.wait()
        assert done.returncode == 130, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.faults("a signal during the last evaluation", "obeyed: the run is not finished")
def test_a_signal_during_the_last_evaluation_is_not_lost(
    make_config: Callable[..., TrainConfig],
    weights_of: Callable[[RunResult], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = trainer.Trainer._history_row

    def signalled(self: trainer.Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return log(self, metrics)

    config = make_config("run_name=long", "resume=auto", "training.eval_steps=100000")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_history_row", signalled)
        with pytest.raises(Interrupted, match="the state is saved"):
            train(config)
    whole = train(make_config("run_name=whole", "training.eval_steps=100000"))
    assert weights_of(train(config)) == weights_of(whole)


@pytest.mark.faults("a signal after the last update", "obeyed: the run is not finished")
def test_a_signal_after_the_last_update_is_not_lost(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer.Trainer._run

    def signalled(self: trainer.Trainer, *args: Any) -> None:
        run(self, *args)
        signal.raise_signal(signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped", exit_code=143)

    monkeypatch.setattr(trainer.Trainer, "_run", signalled)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Interrupted):
            train(make_config("run_name=short", "training.max_steps=1"))
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start_two(overrides: list[str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a training of two processes and returns their launcher."""
    started = []

    def start(*settings: str, program: str) -> Any:
        script = tmp_path / "program.py"
        script.write_text(
            f"{program}\nimport sys\nfrom psy_agents_noaug.cli import main\n"
            "sys.exit(main(['train', *sys.argv[1:]]))\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", str(script), *overrides, *settings]
        with (tmp_path / "err").open("w") as err:
            launcher = subprocess.Popen(command, stdout=err, stderr=err, start_new_session=True)
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.faults(
    "a signal to one or all of several processes", "all stop in seconds, state saved"
)
@pytest.mark.parametrize(("victim", "phase"), [("other", "update"), ("launcher", "evaluation")])
def test_processes_stop_together_within_seconds(
    start_two: Callable[..., Any], last: Path, tmp_path: Path, victim: str, phase: str
) -> None:
    slow = (
        "import time\n"
        "from psy_agents_noaug.tasks.criteria.task import CriteriaTask\n"
        "predict = CriteriaTask.predict\n"
        "def slowly(*args):\n"
        "    time.sleep(2)\n"
        "    return predict(*args)\n"
        "CriteriaTask.predict = slowly\n"
    )
    # An evaluation takes 36 batches of each process, 72 seconds.
    steps = 3 if phase == "evaluation" else 100_000
    launcher = start_two(
        *LONG,
        f"training.eval_steps={steps}",
        "training.eval_batch_size=1",
        "training.save_steps=2",
        program=slow,
    )
    wait_for(last.exists)
    if phase == "evaluation":
        time.sleep(1)
    ranks = sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.environ()["RANK"])
    target = ranks[1] if victim == "other" else launcher
    target.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, alive = psutil.wait_procs(ranks, timeout=25)
    assert not alive
    assert time.monotonic() - began < 25  # a launcher kills after 30 seconds
    launcher.wait(20)
    said = (tmp_path / "err").read_text()
    assert "by signal 15; the state is saved" in said
    checkpoint = load_checkpoint(last)
    if phase == "evaluation":
        assert checkpoint.step == 3


@pytest.mark.slow
@pytest.mark.faults(
    "a signal, while a worker of one of several processes hangs",
    "all stop in seconds, state saved",
)
def test_processes_stop_together_while_one_waits_for_a_batch(
    start_two: Callable[..., Any], last: Path, tmp_path: Path
) -> None:
    launcher = start_two(
        *LONG,
        "training.num_workers=1",
        "training.loader_timeout=null",
        "training.save_steps=2",
        program="",
    )
    wait_for(last.exists)
    ranks = sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.environ()["RANK"])
    for worker in ranks[1].children():
        worker.suspend()
    time.sleep(2)
    launcher.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(ranks, timeout=25)  # the launcher kills after 30 seconds
    assert not alive
    launcher.wait(20)
    assert "by signal 15; the state is saved" in (tmp_path / "err").read_text()
    assert load_checkpoint(last).step > 0


@pytest.mark.slow
@pytest.mark.faults(
    "a worker of one of several processes is killed", "one message with the cause, all end, exit 2"
)
def test_a_killed_worker_of_one_process_is_one_message(
    start_two: Callable[..., Any], last: Path, tmp_path: Path
) -> None:
    launcher = start_two(*LONG, "training.num_workers=1", "training.save_steps=2", program="")
    wait_for(last.exists)
    ranks = sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.environ()["RANK"])
    for worker in ranks[1].children():
        worker.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    launcher.wait(60)
    said = (tmp_path / "err").read_text()
    assert said.count("LoaderError: A worker process that collates batches was killed") == 1
    assert "OtherProcessError" not in said
    assert re.search(r"exitcode +: 2 ", said)
