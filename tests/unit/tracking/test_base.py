from pathlib import Path

import pytest

from psy_agents_noaug.tracking.base import NullTracker, Tracker, without_private_parts


def test_the_null_tracker_takes_everything_and_keeps_nothing(tmp_path):
    tracker: Tracker = NullTracker()
    tracker.log_params({"a": {"b": 1}})
    tracker.log_metrics({"val/f1_macro": None}, step=0)
    tracker.log_artifact(tmp_path / "missing")
    tracker.set_tags({"a": "b"})
    tracker.finish("FINISHED")
    tracker.finish("KILLED")

    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.dir=/home/ada/redsm5", "data.dir=~/redsm5"),
        ("/home/ada/work/outputs/run", "./outputs/run"),
        ("/home/ada", "~"),
        ("['/home/ada/x', '/home/ada']", "['~/x', '~']"),
        ("/backup/home/ada/x", "/backup/home/ada/x"),
        ("/home/adam/x", "/home/adam/x"),
        ("file:///home/ada/x", "file://~/x"),
        ("postgresql://ada:secret@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("postgresql://db/x?user=ada&password=secret", "postgresql://db/x?user=ada&password=***"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
    ],
)
def test_home_working_directory_and_credentials_are_taken_out(monkeypatch, text, expected):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(Path, "cwd", lambda: Path("/home/ada/work"))

    assert without_private_parts(text) == expected


def test_a_root_as_home_or_working_directory_changes_nothing(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    monkeypatch.setattr(Path, "cwd", lambda: Path("/"))

    assert without_private_parts("/data/a b") == "/data/a b"
