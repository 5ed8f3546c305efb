import sys

import pytest

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.extras import require


def test_a_missing_optional_package_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError) as refused:
        require("optuna", extra="hpo", purpose="`psy-agents tune`")
    assert str(refused.value) == (
        "`psy-agents tune` needs optuna, which is not installed: "
        "pip install 'psy-agents-noaug[hpo]'"
    )


def test_an_installed_optional_package_is_not_imported_to_find_it() -> None:
    # Of the standard library, and imported by nobody.
    assert "this" not in sys.modules
    require("this", extra="hpo", purpose="A test")
    assert "this" not in sys.modules
