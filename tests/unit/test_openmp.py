"""How long threads spin is set before PyTorch's OpenMP is loaded, however the package is entered."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.utils.reproducibility import describe_system, system_info

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))
PRINT = "; import os; print(os.environ.get('GOMP_SPINCOUNT'))"
# Of GNU's OpenMP, which is that of Linux.
CHOSEN = "10000" if sys.platform == "linux" else None
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def python() -> Python:
    """Return a function that runs Python in an environment of these OpenMP settings alone."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )

    return run


def test_importing_the_package_sets_it_and_does_not_import_torch(python):
    loaded = "; import sys; print('torch' in sys.modules)"
    done = python("-c", f"import psy_agents_noaug{PRINT}{loaded}")
    assert done.stdout.split() == [str(CHOSEN), "False"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_sets_it_and_does_not_import_torch_first(python, script):
    loaded = "; import sys; print('torch' in sys.modules)"
    done = python("-c", f"import runpy; runpy.run_path({str(script)!r}){PRINT}{loaded}")
    assert done.stdout.split() == [str(CHOSEN), "False"]


def test_the_command_sets_it_and_info_says_so(python):
    report = json.loads(python("-m", "psy_agents_noaug", "info", "--json").stdout)
    assert report["system"]["openmp"].get("GOMP_SPINCOUNT") == CHOSEN


def test_the_openmp_of_pytorch_reads_it(python):
    done = python("-c", "import psy_agents_noaug, torch", OMP_DISPLAY_ENV="verbose")
    assert ("GOMP_SPINCOUNT = '10000'" in done.stderr) == (CHOSEN is not None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_the_users_own_setting_wins(python, variables, expected):
    done = python("-c", f"import psy_agents_noaug{PRINT}", **variables)
    assert done.stdout.strip() == expected


def test_nothing_is_changed_after_torch_as_it_would_be_too_late(python):
    done = python("-c", f"import torch, psy_agents_noaug{PRINT}")
    assert done.stdout.strip() == "None"


def test_the_system_has_the_openmp_settings_that_are_set(monkeypatch):
    for name in (*SETTINGS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert system_info()["openmp"] == {}
    assert "\nOpenMP        no settings\n" in describe_system(system_info())
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert system_info()["openmp"] == {"OMP_WAIT_POLICY": "passive"}
    assert "\nOpenMP        OMP_WAIT_POLICY=passive\n" in describe_system(system_info())
