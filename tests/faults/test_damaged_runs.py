"""Damaged files of a run: `tracking sync` and a resumed training do not end in tracebacks."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import StoppedError
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.records import read_history
from psy_agents_noaug.run.sync import sync
from psy_agents_noaug.run.train import train

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    """A copy of a finished run."""
    path = tmp_path / "outputs" / "criteria" / "done"
    shutil.copytree(finished, path)
    return RunDirectory(path)


@pytest.mark.faults("damaged files of a run that `tracking sync` reads", "one message, exit 2")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"\xff"),
        ("config.yaml", b""),
        ("manifest.json", b"{"),
        ("manifest.json", b'{"status": "finished"}'),
        ("manifest.json", b'{"status": "finished", "steps": "many", "data": {}}'),
        ("history.csv", b"step,loss\nmany,\xff\n"),
        ("history.csv", b"loss\n0.5\n"),
        ("metrics.json", b"{"),
    ],
)
def test_a_damaged_run_is_refused_by_sync_in_words(
    run: RunDirectory, only_message: Callable[[], str], own_logging: None, name: str, content: bytes
) -> None:
    (run.path / name).write_bytes(content)
    store = f"tracking.uri=sqlite:///{run.path.parent}/store.db"
    assert main(["tracking", "sync", str(run.path), store]) == 2
    told = only_message()
    assert name in told
    assert told.count("a copy") == 1


@pytest.mark.faults("half a line in evaluations.jsonl", "`tracking sync` delivers the others")
def test_sync_passes_over_a_damaged_line_and_keeps_all_lines(run: RunDirectory) -> None:
    fact = {"mlflow_run_id": "f" * 32, "tracking_uri": None, "data": {}, "weights_sha256": "0"}
    run.record_evaluation("val", **fact, step=1)
    with run.evaluations.open("ab") as file:
        file.write(b'{"split": "te')
    before = run.evaluations.read_bytes()
    told = sync(run.path, uri=f"sqlite:///{run.path.parent}/store.db")
    new = re.findall(r"evaluation of val: MLflow run (\w{32}): delivered", told)
    assert run.evaluations.read_bytes() == before.replace(b"f" * 32, new[0].encode())


@pytest.mark.faults("a damaged history.csv", "a resumed run writes it anew")
def test_a_damaged_history_does_not_keep_a_run_from_going_on(
    make_config: Callable[..., TrainConfig],
) -> None:
    def stop(history: object) -> NoReturn:
        raise StoppedError

    config = make_config("run_name=long", "resume=auto")
    with pytest.raises(StoppedError):
        train(config, on_evaluation=stop)
    path = Path(config.output_dir) / "criteria" / "long" / "history.csv"
    path.write_bytes(b"step\nmany\xff")
    assert train(config).directory == path.parent
    assert len(read_history(path)) > 1


@pytest.mark.faults("a stranger's run names a tracking server", "nothing is sent there")
def test_sync_sends_to_a_server_only_if_the_user_says_so(
    run: RunDirectory, only_message: Callable[[], str], own_logging: None
) -> None:
    recorded = run.config.read_text()
    named = recorded.replace("name: none\n  uri: null", "name: mlflow\n  uri: http://127.0.0.1:9/")
    assert named != recorded
    run.config.write_text(named)
    assert main(["tracking", "sync", str(run.path)]) == 2
    told = only_message()
    assert f"psy-agents tracking sync {run.path} tracking.uri=http://" in told
