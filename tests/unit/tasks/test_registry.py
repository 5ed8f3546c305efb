from importlib.metadata import EntryPoint

import pytest

from psy_agents_noaug.config.loading import compose_config, group_choices
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tasks import registry
from psy_agents_noaug.tasks.base import Task, TaskEvaluation


@pytest.fixture
def entry_points(monkeypatch):
    """Return a function that makes `name = value` the entry points of other packages."""

    def make(**entries: str) -> None:
        found = [EntryPoint(n, v, registry.ENTRY_POINTS) for n, v in entries.items()]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: found)

    return make


@pytest.mark.parametrize("name", ["criteria", "evidence", "joint"])
def test_a_task_and_its_settings_belong_together(name):
    task = registry.task_class(name)
    assert task.name == name
    assert task.settings is registry.settings_model(name)
    assert task.settings.headline_metrics


def test_tasks_are_the_folders_and_the_entry_points(entry_points):
    assert registry.task_names() == ["criteria", "evidence", "joint"]
    entry_points(severity="severity_task:SeverityTask", criteria="other:CriteriaTask")
    assert registry.task_names() == ["criteria", "evidence", "joint", "severity"]
    assert registry.task_class("criteria").__module__.startswith("psy_agents_noaug")


def test_an_unknown_task_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="one of criteria, evidence, joint, but is severity"):
        registry.settings_model("severity")


@pytest.mark.parametrize(
    ("value", "said"),
    [("no_such_module:Task", "cannot be imported"), ("json:JSONDecoder", "must name a subclass")],
)
def test_an_entry_point_that_is_no_task_is_refused_with_its_place(entry_points, value, said):
    entry_points(mine=value)
    with pytest.raises(ConfigError, match=said) as raised:
        registry.task_class("mine")
    assert value in str(raised.value)


def test_a_task_of_another_name_than_its_entry_point_is_refused(entry_points):
    entry_points(mine="psy_agents_noaug.tasks.criteria.task:CriteriaTask")
    with pytest.raises(ConfigError, match="'mine', the name of its entry point, as `name`"):
        registry.task_class("mine")


def test_a_task_whose_package_lies_in_a_folder_with_any_name_is_composed(
    entry_points, monkeypatch, tmp_path
):
    package = tmp_path / "José's, (own) #1=a" / "mine"
    (package / "configs" / "task").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "configs" / "task" / "mine.yaml").write_text(
        "# @package _global_\ntask: {name: mine, deep: 3}\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    entry_points(mine="mine:Task")
    assert compose_config("config", [], task="mine")["task"] == {"name": "mine", "deep": 3}
    assert compose_config("config", [], task="criteria")["task"]["name"] == "criteria"
    assert group_choices()["task"] == ["criteria", "evidence", "joint", "mine"]


def test_a_task_or_an_evaluation_without_its_methods_cannot_be_made():
    class Half(Task):
        def predict(self, model, batch):
            return {}

    with pytest.raises(TypeError, match=r"abstract methods? .*encode.*loss"):
        Half(None, None)
    with pytest.raises(TypeError, match="fit_decision_rule"):
        TaskEvaluation()
