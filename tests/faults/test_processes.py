"""Several processes: stopped and resumed, started otherwise, or failing one at a time."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LoaderError,
    NonFiniteError,
    StorageError,
)
from psy_agents_noaug.run.directory import open_run_directory
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training import trainer
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    weights_sha256,
)

MakeConfig = Callable[..., TrainConfig]
Together = Callable[..., list[tuple[int, str]]]


def checkpoint_of(config: TrainConfig, which: str) -> Path:
    folder = Path(config.output_dir) / config.task.name / str(config.run_name) / "checkpoints"
    return folder / f"{which}_checkpoint.pt"


def weights(config: TrainConfig) -> list[str]:
    """Hashes of the best and the last weights of a run."""
    return [
        weights_sha256(load_checkpoint(checkpoint_of(config, w)).weights) for w in ("best", "last")
    ]


def send_at(step: int, patch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to this process during the update of this number."""
    original = trainer.Trainer._gradients

    def stopped(self: trainer.Trainer, share: trainer.Step) -> list[trainer.Tensor]:
        if self._state.step + 1 == step:
            signal.raise_signal(number)
        return original(self, share)

    patch.setattr(trainer.Trainer, "_gradients", stopped)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
@pytest.mark.parametrize(
    "fault", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
@pytest.mark.faults(
    "SIGTERM or SIGKILL to one of 2, 3 or 4 processes",
    "all end, none waits; resumed, the weights are those of a run that was not stopped, to the bit",
)
def test_a_stopped_and_resumed_run_of_several_processes_ends_in_the_same_weights(
    make_config: MakeConfig, together: Together, count: int, fault: signal.Signals
) -> None:
    whole, parts = (
        make_config(
            f"run_name={name}", "resume=auto", "training.eval_steps=4", "training.save_steps=1"
        )
        for name in ("whole", "parts")
    )

    def stopped(rank: int) -> None:
        if rank == count - 1:
            send_at(3, pytest.MonkeyPatch(), fault)
        train(parts)

    assert together(count, lambda rank: train(whole)) == [(0, "")] * count
    found = together(count, stopped)
    if fault == signal.SIGTERM:
        assert [code for code, _ in found] == [143] * count
    else:
        assert [code for code, _ in found] == [2] * (count - 1) + [-signal.SIGKILL]
        for _, message in found[:-1]:
            assert re.match(r"OtherProcessError: Another process .*[\s\S]*resume=auto", message)
    assert together(count, lambda rank: train(parts)) == [(0, "")] * count
    assert weights(parts) == weights(whole)


@pytest.mark.faults(
    "resumed with another number of processes", "refused with both numbers; nothing is changed"
)
def test_another_number_of_processes_is_refused_on_resume(
    make_config: MakeConfig, together: Together
) -> None:
    config = make_config("run_name=two", "resume=auto")

    def interrupted(rank: int) -> None:
        send_at(3, pytest.MonkeyPatch())
        train(config)

    assert [code for code, _ in together(2, interrupted)] == [143] * 2
    before = checkpoint_of(config, "last").read_bytes()
    message = r"began with 2 processes, but 1 process would go on .*--nproc-per-node=2"
    with pytest.raises(CheckpointError, match=message):
        train(config)
    assert checkpoint_of(config, "last").read_bytes() == before


def test_a_checkpoint_that_does_not_say_how_many_processes_there_were_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("run_name=old", "resume=auto")
    with monkeypatch.context() as patched:
        send_at(3, patched)
        with pytest.raises(Interrupted):
            train(config)
    last = checkpoint_of(config, "last")
    saved = load_checkpoint(last)
    assert saved.resume is not None
    assert saved.resume.pop("n_processes") == 1
    save_checkpoint(last, saved)
    train(config)
    assert load_checkpoint(last).step > 3


@pytest.mark.faults(
    "a checkpoint, or the run's directory, that one process does not see",
    "an error in every process, with what each sees; none waits",
)
def test_a_checkpoint_that_one_process_does_not_see_is_an_error_everywhere(
    make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config("run_name=two", "resume=auto")

    def interrupted(rank: int) -> None:
        send_at(3, pytest.MonkeyPatch())
        train(config)

    def elsewhere(rank: int) -> None:
        # The second machine has the directory, as rsync would leave it, and no checkpoint.
        os.chdir(tmp_path / ("outputs" if rank == 0 else "other"))
        train(make_config("run_name=two", "resume=auto", "output_dir=."))

    together(2, interrupted)
    for name in ("", "criteria", "criteria/two"):
        (tmp_path / "other" / name).mkdir()
    found = together(2, elsewhere, seconds=60)
    assert [code for code, _ in found] == [2, 2]
    for _, message in found:
        assert re.search(
            r"CheckpointError: .*see different checkpoints.*\n  - process 0: of step 3\n"
            r"  - process 1: none",
            message,
        )
    (tmp_path / "other/criteria/two").rmdir()
    found = together(2, elsewhere, seconds=60)
    assert [code for code, _ in found] == [2, 2]
    assert all("Process 1 of this training does not see criteria/two" in m for _, m in found)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.faults(
    "one process cannot read its data, its neighbours can", "an error in every process; none waits"
)
def test_bad_data_of_one_process_is_an_error_in_all_of_them(
    make_config: MakeConfig, together: Together, tiny_corpus: Path, tmp_path: Path, victim: int
) -> None:
    broken = shutil.copytree(tiny_corpus, tmp_path / "broken")
    (broken / "redsm5_posts.csv").write_text("post_id\n1\n")

    def work(rank: int) -> None:
        train(make_config(*([f"data.dir={broken}"] if rank == victim else [])))

    found = together(2, work, seconds=60)
    assert [code for code, _ in found] == [2, 2]
    assert all("DataError" in message and "redsm5_posts.csv" in message for _, message in found)


@pytest.mark.faults("the run's directory is in use, with several processes", "an error everywhere")
def test_a_directory_in_use_is_an_error_in_every_process(
    make_config: MakeConfig, together: Together
) -> None:
    config = make_config("run_name=busy")
    with open_run_directory(config):
        found = together(2, lambda rank: train(config), seconds=60)
    assert [(code, message.partition(":")[0]) for code, message in found] == [
        (2, "RunInUseError")
    ] * 2


@pytest.mark.faults(
    "the main process cannot write a checkpoint", "an error in every process; none waits"
)
def test_a_checkpoint_that_cannot_be_written_is_an_error_in_every_process(
    make_config: MakeConfig, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("No space left on device.")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    found = together(2, lambda rank: train(make_config("run_name=full")), seconds=60)
    assert found == [(2, "CheckpointError: No space left on device.")] * 2


@pytest.mark.faults(
    "another process cannot go on", "an error in every process; no MLflow run is open"
)
def test_the_tracker_is_opened_when_all_processes_can_go_on(
    make_config: MakeConfig, together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, opened = make_config("run_name=two", "resume=auto"), tmp_path / "opened"

    def interrupted(rank: int) -> None:
        send_at(3, pytest.MonkeyPatch())
        train(config)

    def refused(rank: int) -> None:
        def restore(*_: object) -> None:
            if rank == 1:
                raise CheckpointError("unfit")

        monkeypatch.setattr(trainer.Trainer, "restore", restore)
        monkeypatch.setattr(
            "psy_agents_noaug.run.train.open_tracker", lambda *_, **__: opened.touch()
        )
        train(config)

    together(2, interrupted)
    assert together(2, refused, seconds=60) == [(2, "CheckpointError: unfit")] * 2
    assert not opened.exists()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("error", [LoaderError("worker died"), ZeroDivisionError("a bug")])
@pytest.mark.faults(
    "one process gets no batch, as its worker is killed, or fails in its update",
    "the cause in every process, within seconds",
)
def test_an_update_that_fails_in_one_process_ends_all_of_them_with_the_cause(
    make_config: MakeConfig,
    together: Together,
    monkeypatch: pytest.MonkeyPatch,
    victim: int,
    error: Exception,
) -> None:
    collate = TrainingSteps.__getitem__

    def work(rank: int) -> None:
        def fail_at_3(self: TrainingSteps, step: int) -> object:
            if step == 3 and rank == victim:
                raise error
            return collate(self, step)

        monkeypatch.setattr(TrainingSteps, "__getitem__", fail_at_3)
        train(make_config("run_name=two"))

    found = together(2, work, seconds=60)
    if isinstance(error, LoaderError):
        assert found == [(2, "LoaderError: worker died")] * 2
    else:
        code, trace = found.pop(victim)
        assert code == 1
        assert "ZeroDivisionError: a bug" in trace
        cause = f"Process {victim} of this training failed with ZeroDivisionError"
        assert found == [(2, f"OtherProcessError: {cause}; its own output says why.")]


@pytest.mark.parametrize(
    "place",
    [
        "open_tracker",
        "RunDirectory.record_evaluation",
        "RunDirectory.add_metrics",
        "RunDirectory.write_predictions",
    ],
)
@pytest.mark.faults(
    "the main process cannot record an evaluation by several", "its message in every process"
)
def test_what_stops_the_main_process_of_an_evaluation_stops_all(
    finished: Path,
    together: Together,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
) -> None:
    run = shutil.copytree(finished, tmp_path / "outputs" / "criteria" / "done")

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    def work(rank: int) -> None:
        if rank == 0:
            monkeypatch.setattr(f"psy_agents_noaug.run.evaluate.{place}", refuse)
        evaluate(
            EvaluateConfig(checkpoint=str(run), split="val"), task_name="criteria", explicit={}
        )

    found = together(2, work, seconds=60)
    assert found == [(2, "StorageError: the disk is full")] * 2


@pytest.mark.faults("an error of all processes alike", "shown by the main process alone")
def test_an_error_of_all_processes_is_shown_once(
    make_config: MakeConfig, together: Together
) -> None:
    def work(rank: int) -> None:
        try:
            train(make_config("training.learning_rate=1e30", "training.max_grad_norm=null"))
        except NonFiniteError as error:
            raise ConfigError(f"shown elsewhere: {error.is_shown_elsewhere}") from None

    assert together(2, work, seconds=60) == [
        (2, "ConfigError: shown elsewhere: False"),
        (2, "ConfigError: shown elsewhere: True"),
    ]
