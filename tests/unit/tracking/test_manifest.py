import getpass
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from psy_agents_noaug.tracking import manifest as manifest_module
from psy_agents_noaug.tracking.manifest import environment, write_manifest

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def written(path, **changes):
    settings = {
        "task": "criteria",
        "run_name": "first",
        "created_at": "2026-01-02T03:04:05+00:00",
        "data": {"posts": 3, "sha256": "ab"},
        "weights_sha256": "cd",
        "command": ["scripts/train_criteria.py", "seed=1"],
    }
    return write_manifest(path, **{**settings, **changes})


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit that holds a package; returns the package's folder."""
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return package


def test_what_is_returned_is_what_is_in_the_file(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = written(path, extra={"best_step": 12})

    assert json.loads(path.read_text()) == manifest
    assert manifest["format"] == 1
    assert manifest["task"] == "criteria"
    assert manifest["weights_sha256"] == "cd"
    assert manifest["data"] == {"posts": 3, "sha256": "ab"}
    assert manifest["best_step"] == 12
    assert [child.name for child in tmp_path.iterdir()] == ["manifest.json"]


def test_the_manifest_carries_no_host_user_home_or_password(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/adalovelace"))
    monkeypatch.setattr(getpass, "getuser", lambda: "adalovelace")
    written(
        tmp_path / "manifest.json",
        command=[
            "/home/adalovelace/psy/scripts/train_criteria.py",
            "data.dir=/home/adalovelace/redsm5",
            "tracking.uri=postgresql://adalovelace:secret@db/mlflow",
        ],
        data={"posts": {"path": Path("/home/adalovelace/redsm5/posts.csv"), "rows": 3}},
        extra={"resumed_from": ["/home/adalovelace/last_checkpoint.pt"]},
    )
    text = (tmp_path / "manifest.json").read_text()

    assert "adalovelace" not in text
    assert "secret" not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert json.loads(text)["data"]["posts"] == {"path": "~/redsm5/posts.csv", "rows": 3}
    assert json.loads(text)["resumed_from"] == ["~/last_checkpoint.pt"]


def test_extra_entries_cannot_replace_the_manifests_own(tmp_path):
    with pytest.raises(ValueError, match="`extra` must not replace task, weights_sha256"):
        written(tmp_path / "manifest.json", extra={"weights_sha256": "x", "task": "y", "z": 1})


def test_the_environment_has_the_versions_that_are_installed(monkeypatch):
    monkeypatch.setattr(manifest_module, "_PACKAGES", ("torch", "no-such-distribution"))
    packages = environment()["packages"]

    assert re.match(r"\d+\.\d+", packages["torch"])
    assert packages["no-such-distribution"] is None


def test_the_environment_names_this_project_among_its_packages():
    assert environment()["packages"]["psy-agents-noaug"] is not None


@needs_git
def test_a_clean_checkout_gives_its_commit_and_an_edit_makes_it_dirty(checkout):
    clean = manifest_module._git_state(checkout)
    (checkout.parents[1] / "notes.md").write_text("not in the package")
    elsewhere = manifest_module._git_state(checkout)
    (checkout / "new.py").write_text("x = 1")
    edited = manifest_module._git_state(checkout)

    assert re.fullmatch(r"[0-9a-f]{40}", clean["commit"])
    assert clean == {"commit": clean["commit"], "dirty": False, "reason": None}
    assert elsewhere == clean
    assert edited == {**clean, "dirty": True}


@needs_git
def test_a_package_installed_inside_another_projects_checkout_does_not_take_its_commit(checkout):
    installed = checkout.parents[1] / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")

    assert manifest_module._git_state(installed) == {
        "commit": None,
        "dirty": None,
        "reason": "the package's files are not tracked by git",
    }


@needs_git
def test_the_repository_of_a_surrounding_git_hook_is_not_asked(checkout, tmp_path, monkeypatch):
    expected = manifest_module._git_state(checkout)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))

    assert manifest_module._git_state(checkout) == expected


@needs_git
def test_the_users_repository_is_not_locked(checkout):
    """A run that is killed meanwhile would leave a lock that keeps the user from committing."""
    index = checkout.parents[1] / ".git" / "index"
    os.utime(checkout / "__init__.py", (1, 1))
    before = index.read_bytes()
    assert manifest_module._git_state(checkout)["dirty"] is False
    assert index.read_bytes() == before


@needs_git
def test_outside_a_checkout_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(
        manifest_module,
        "_git",
        lambda folder, *arguments: (
            subprocess.run(
                ["git", "-C", str(folder), *arguments],
                check=True,
                capture_output=True,
                text=True,
                env={"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "PATH": "/usr/bin:/bin"},
            ).stdout
        ),
    )
    state = manifest_module._git_state(tmp_path)

    assert state["commit"] is None
    assert state["reason"] == "git ls-files failed with exit code 128"


def test_a_machine_without_git_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert manifest_module._git_state(tmp_path)["reason"] == "git is not installed"
