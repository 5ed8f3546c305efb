import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from psy_agents_noaug.config.loading import (
    CONFIG_DIR,
    lay_over,
    load_evaluate_config,
    load_train_config,
    to_yaml,
)
from psy_agents_noaug.config.loading import (
    given as settings_given,
)
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run.checks import check_evaluation_settings
from psy_agents_noaug.tasks.registry import task_names

GROUPS = ("data", "model", "recipe", "protocol", "training", "tracking", "task")
REQUIRED = {
    "imported": ["data.dir=somewhere"],
    "redsm5": ["data.dir=somewhere"],
    "tables": ["data.posts=posts.csv", "data.annotations=annotations.csv"],
}


def choices(group: str) -> list[str]:
    names = (path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    return sorted(name for name in names if not name.startswith("_"))


def load(*overrides: str):
    return load_train_config("criteria", overrides)


def fault_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value)


@pytest.fixture
def best(tmp_path):
    """Return a function from the content of a best_config file to the override that names it."""

    def write(content: str) -> str:
        path = tmp_path / "best.yaml"
        path.write_text(content, encoding="utf-8")
        return f"best_config={path}"

    return write


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_shipped_yaml_composes_and_validates(group, choice):
    task = choice if group == "task" else "criteria"
    if group == "recipe" and choice != "none":
        task = choice.split("_")[0]
    overrides = [f"{group}={choice}", *REQUIRED.get(choice, [])]
    assert load_train_config(task, overrides).seed == 42


def test_a_script_refuses_the_task_of_another():
    with pytest.raises(ConfigError, match="use `psy-agents train task=evidence`"):
        load("task=evidence", "data.unit=post")


def test_a_fault_inside_the_task_is_named_by_its_key():
    assert "`task.loss` is 'hinge'" in fault_of("task.loss=hinge")
    assert "`task.strides` is not a known key" in fault_of("task.strides=3")
    told = fault_of("task.name=both")
    assert "`task` must be one of criteria, evidence, joint, but is both" in told


def test_evidence_is_not_looked_for_in_single_sentences():
    with pytest.raises(ConfigError, match=r"`data\.unit` must be post"):
        load_train_config("evidence", ["data.unit=sentence"])


def test_the_learning_rate_is_the_models_unless_it_is_set():
    assert load("model=minilm").training.learning_rate == 2e-4
    assert load("model=roberta_base").training.learning_rate == 5e-5
    assert load("training.learning_rate=3e-5").training.learning_rate == 3e-5


def epochs_and_rate(*overrides: str, task: str = "joint") -> tuple[int, float]:
    training = load_train_config(task, overrides).training
    return training.epochs, training.learning_rate


def test_an_architecture_chooses_the_recipe_of_its_task(best):
    own, without = (16, 3e-4), (10, 2e-4)
    chosen = "model.architecture=label_attention"
    assert epochs_and_rate() == without
    assert epochs_and_rate(chosen) == own
    assert epochs_and_rate(chosen, "training.epochs=7") == (7, 3e-4)
    assert epochs_and_rate(chosen, "recipe=none") == without
    assert epochs_and_rate("model={architecture: label_attention}") == own
    assert epochs_and_rate(chosen, task="criteria") == epochs_and_rate(task="criteria")
    searched = best("model: {architecture: label_attention}\ntraining: {epochs: 9}")
    assert epochs_and_rate(searched) == (9, 3e-4)
    assert epochs_and_rate(searched, "model.architecture=cross_encoder") == (9, 2e-4)


def test_an_evaluation_has_no_recipe():
    _, explicit = load_evaluate_config("joint", ["checkpoint=c.pt", "recipe=none"])
    with pytest.raises(ConfigError, match="leave out:\n  - `recipe`"):
        check_evaluation_settings(explicit)


@pytest.mark.parametrize("name", [name for name in choices("protocol") if name != "none"])
def test_a_protocol_sets_what_it_fixes(name):
    config = load(f"protocol={name}")
    assert config.protocol.name == name
    assert config.protocol.fixes["data"].items() <= config.data.model_dump().items()
    assert load().protocol.figures is None


def test_all_settings_that_would_make_another_protocol_are_refused_in_one_message():
    fault = fault_of("protocol=redsm5_posts", "data.unit=sentence", "data.split_seed=7")
    assert "`data.unit` must be 'post' under protocol=redsm5_posts, but is 'sentence'" in fault
    assert "`data.split_seed` must be 42 under protocol=redsm5_posts, but is 7" in fault


def test_a_protocol_is_not_changed_under_its_name():
    with pytest.raises(ConfigError, match=r"`protocol\.threshold`: a protocol is chosen as it is"):
        load("protocol=redsm5_posts", "protocol.threshold=0.4")


def test_a_task_without_labels_has_no_protocol():
    with pytest.raises(ConfigError, match="which the task evidence does not predict"):
        load_train_config("evidence", ["protocol=redsm5_posts"])
    assert load_train_config("joint", ["protocol=redsm5_posts"]).protocol.divides


def test_a_configuration_with_a_protocol_is_read_back(best):
    config = load("protocol=redsm5_posts")
    again = load(best(to_yaml(config)))
    assert again.model_dump() | {"best_config": None} == config.model_dump()


def test_an_evaluation_by_a_protocol_takes_what_it_fixes():
    _, explicit = load_evaluate_config("criteria", ["checkpoint=c.pt", "protocol=redsm5_posts"])
    laid = lay_over(yaml.safe_load(to_yaml(load("data.unit=sentence"))), explicit)
    assert (laid.data.unit, laid.data.division) == ("post", "random")
    assert laid.protocol.name == "redsm5_posts"


LABEL_ATTENTION = "model.architecture=label_attention"


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["model.share_encoder=false"], "one encoder: `model.share_encoder` must be true"),
        (["model.share_encoder=false", "model.criteria_encoder=x"], "without `model.criteria_enc"),
        (["task.fusion=concat"], "`task.fusion` must be none"),
        (["task.loss_weights=uncertainty"], "`task.loss_weights` must be numbers"),
        (
            ["model.criterion_vectors=learned", "data.held_out_criteria=[A.8]"],
            "`model.criterion_vectors=learned` has no vector for `data.held_out_criteria`",
        ),
    ],
)
def test_settings_that_label_attention_does_not_have_are_refused(overrides, fault):
    assert load_train_config("joint", overrides).task.name == "joint"
    with pytest.raises(ConfigError) as caught:
        load_train_config("joint", [LABEL_ATTENTION, *overrides])
    assert str(caught.value).count("\n  - ") == 1
    assert fault in str(caught.value)


def test_all_conflicts_of_label_attention_are_one_message():
    overrides = ["model.share_encoder=false", "task.fusion=concat", "data.unit=sentence"]
    with pytest.raises(ConfigError) as caught:
        load_train_config("joint", [LABEL_ATTENTION, *overrides])
    assert str(caught.value).count("\n  - ") == 3


def test_all_shipped_groups_were_found():
    assert {group: len(choices(group)) for group in GROUPS}.items() >= {
        ("data", 5),
        ("model", 6),
        ("recipe", 2),
        ("protocol", 4),
        ("training", 2),
        ("tracking", 2),
    }


@pytest.mark.parametrize("task", task_names())
def test_every_primary_config_composes_as_it_is(task):
    assert load_train_config(task, []).task.name == task


def test_the_evaluation_config_needs_a_checkpoint_alone():
    evaluation, explicit = load_evaluate_config("criteria", ["checkpoint=a/b.pt"])
    assert (evaluation.checkpoint, evaluation.split, explicit) == ("a/b.pt", "test", {})
    with pytest.raises(ConfigError, match=r"`checkpoint` must be given"):
        load_evaluate_config("criteria", [])


def test_all_faults_are_told_in_one_message():
    message = fault_of(
        "data=redsm5",
        "unknown=1",
        "training.unknown=1",
        "training.epochs=2.5",
        "training.learning_rate=fast",
        "model.pooling=median",
        "model.max_length=4",
        "run_name='a/b/c'",
    )
    for fault in (
        "`data.dir` must be given",
        "`unknown` is not a known key",
        "`training.unknown` is not a known key",
        "`training.epochs` is 2.5: input should be a valid integer",
        "`training.learning_rate` is 'fast'",
        "`model.pooling` is 'median': input should be 'cls', 'mean', 'max' or 'attention'",
        "`model.max_length` is 4",
        "`run_name` is 'a/b/c'",
    ):
        assert message.count(f"\n  - {fault}") == 1
    assert message.count("\n  - ") == 8


def test_every_missing_value_is_named():
    message = fault_of("data=tables")
    assert "`data.posts` must be given: data.posts=..." in message
    assert "`data.annotations` must be given: data.annotations=..." in message


def test_no_type_is_guessed():
    overrides = [
        "training.epochs=true",
        "seed=false",
        "training.eval_batch_size='3'",
        "training.deterministic=1",
        "model.head_dropout=true",
        "data.ignored_criteria=5",
    ]
    message = fault_of(*overrides)
    for override in overrides:
        assert f"\n  - `{override.partition('=')[0]}` is " in message


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run_name=2024_11_03", "2024_11_03"),
        ("run_name=2024", "2024"),
        ("run_name=1e5", "1e5"),
        ("run_name=true", "true"),
        ("run_name=null", None),
        ("++model.revision=12e4567", "12e4567"),
        ("data.dir=/a/b=c", "/a/b=c"),
        ("data.dir=/a/b=c,d (e)/it's", "/a/b=c,d (e)/it's"),
        ("data.dir='/a,b'", "/a,b"),
        ("output_dir=/a/\\=b", "/a/=b"),
        ("output_dir=~/x", str(Path.home() / "x")),
    ],
)
def test_a_text_setting_takes_what_is_written(override, value):
    found = load("data=redsm5", "data.dir=x", override)
    for part in override.lstrip("+").partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


def test_an_evaluation_takes_texts_as_they_are_written_too():
    evaluation, explicit = load_evaluate_config(
        "criteria", ["checkpoint=2024_11_03", "data.dir=a=b"]
    )
    assert (evaluation.checkpoint, explicit) == ("2024_11_03", {"data.dir": "a=b"})
    assert settings_given(["checkpoint=2024_11_03"]) == {"checkpoint": "2024_11_03"}


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("data.dir=/a,b", """ "data.dir='/a,b'";"""),
        ("data.dir=[a", """ "data.dir='[a'\""""),
        ("output_dir=${a", """ 'output_dir='"'"'${a'"'"''"""),
    ],
)
def test_a_text_that_hydra_reads_otherwise_is_refused_with_its_spelling(override, advice):
    assert advice in fault_of(override)


def test_a_number_is_not_taken_for_a_text():
    assert load("seed=1_000").seed == 1000
    assert "`training.epochs` is '3=4'" in fault_of("training.epochs=3=4")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_are_finite(value):
    message = fault_of(f"training.learning_rate={value}", f"training.max_grad_norm={value}")
    assert f"`training.learning_rate` is {value}" in message
    assert f"`training.max_grad_norm` is {value}" in message


def test_alternatives_of_a_setting_are_told_as_one_fault():
    message = fault_of("task.class_weights=[1.0]")
    assert message.count("`task.class_weights`") == message.count("\n  - ") == 1
    assert "'none' or 'balanced'; or" in message
    assert load("task.class_weights=[1.0,2]").task.class_weights == [1.0, 2.0]


def test_settings_that_contradict_each_other_are_refused_in_the_message_with_the_rest():
    message = fault_of(
        "training.cudnn_benchmark=true", "data.split_fractions=[0.5,0.5,0.5]", "seed=-1"
    )
    assert "\n  - `training.cudnn_benchmark` picks kernels by timing" in message
    assert "\n  - `data.split_fractions` must be three positive numbers" in message
    assert "\n  - `seed` is -1" in message
    assert message.count("\n  - ") == 3
    assert load("training.cudnn_benchmark=true", "training.deterministic=false")


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["data.source=files", "data.posts=null"], "`data.posts`"),
        (["data.source=hub"], "`data.repo`"),
    ],
)
def test_a_source_names_the_settings_it_lacks(overrides, missing):
    assert f"{missing} must be given for `data.source=" in fault_of(*overrides)


def test_an_unknown_choice_lists_the_known_ones():
    for choice in ("gpt", "null"):
        message = fault_of(f"model={choice}")
        assert f"but is {'None' if choice == 'null' else choice} instead" in message
        assert "minilm" in message


def test_a_word_that_is_no_override_is_refused():
    assert "key=value" in fault_of("fast")


def test_a_deleted_setting_is_missing():
    assert "`training.epochs` must be given" in fault_of("~training.epochs")


def test_sections_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        load().training.epochs = 3


@pytest.mark.parametrize(
    "content",
    [
        "training:\n  learning_rate: 1e-4\n  early_stopping: {patience: 2}\nseed: 0\n",
        "training.learning_rate: 1.0e-4\ntraining.early_stopping.patience: 2\nseed: 0\n",
        "training.learning_rate: 0.0001\ntraining: {early_stopping.patience: 2}\nseed: 0\n",
    ],
)
def test_a_best_config_may_be_nested_or_dotted(best, content):
    config = load(best(content))
    assert config.training.learning_rate == 1e-4
    assert config.training.early_stopping.patience == 2
    assert config.seed == 0


def test_an_empty_section_of_a_best_config_is_given_not_left_out(best):
    assert load(best("model.lora: {}\n")).model.lora.rank == 8
    assert load().model.lora is None


def test_the_command_line_wins_over_the_best_config(best):
    override = best("seed: 5\ntraining.epochs: 9\n")
    for order in itertools.permutations([override, "seed=7"]):
        config = load(*order)
        assert (config.seed, config.training.epochs) == (7, 9)


def test_a_best_config_may_choose_a_group_and_change_a_value_in_it(best):
    config = load(best("model: bert_base\nmodel.max_length: 64\ntraining: optimized\n"))
    assert config.model.pretrained_model == "google-bert/bert-base-uncased"
    assert config.model.max_length == 64
    assert config.training.amp == "auto"


def test_a_group_on_the_command_line_wins_over_that_of_the_best_config(best):
    config = load(best("model: bert_base\n"), "model=roberta_base")
    assert config.model.pretrained_model == "FacebookAI/roberta-base"


def test_no_value_of_a_best_config_changes_its_type(best):
    # 1 == 1.0 == True in Python, and YAML writes them apart.
    values = [0, 1, 0.0, 1.0, True, False, None, [1.0, 0]]
    seen = fault_of(best(yaml.safe_dump({"data.ignored_criteria": values})))
    for position, value in enumerate(values):
        assert f"`data.ignored_criteria.{position}` is {value!r}:" in seen


@settings(
    deadline=None,
    max_examples=4,
    phases=[Phase.generate],  # composing takes a while, and shrinking composes often
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    texts=st.lists(
        st.text(st.sampled_from("ab1e-.,=: '\"\\[]{}()#@~+*%&|<>/éß🐕\t"), max_size=12), min_size=20
    )
)
def test_any_text_in_a_best_config_survives(best, texts):
    texts += ["1e-4", "null", "", " x ", "a,b", "a=b", 'it\'s "so"', "a\\'", "C:\\", "\\\\", "\\"]
    content = {"data.ignored_criteria": texts, "data.splits": texts[0], "model.revision": texts[-1]}
    config = load(best(json.dumps(content, ensure_ascii=False)))
    assert config.data.ignored_criteria == texts
    assert (config.data.splits, config.model.revision) == (texts[0], texts[-1])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot be read"),
        ("model: {revision: '${nowhere}'}", "`model.revision` refer"),
        ("training.unknown: 1", "`training.unknown` is not a known key"),
        ("hpo: 5", "`hpo` in `best_config`"),
        ("hpo: {packages: 5}", "`hpo.packages` in `best_config`"),
        ("hpo: {data: [a]}", "`hpo.data` in `best_config`"),
    ],
)
def test_a_best_config_that_cannot_be_used_is_refused(best, content, fault):
    assert fault in fault_of(best(content))


def test_a_best_config_need_not_say_where_it_was_found(best):
    assert load(best("seed: 3\nhpo: {packages: null, data: {}}\n")).seed == 3


def test_a_best_config_must_exist(tmp_path):
    assert "is not there" in fault_of(f"best_config={tmp_path / 'none.yaml'}")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data=redsm5", "data.dir=x"],
        ["data=tables", *REQUIRED["tables"], "model=roberta_base", "seed=0"],
        ["data=redsm5_hub", "training=optimized", "training.max_grad_norm=null"],
        ["training.early_stopping={patience: 1, min_delta: 0.0}", "training.epochs=1"],
        ["model.lora={rank: 1, target_modules: [query, value]}", "model.head_dropout=0.0"],
        ["task.class_weights=[1.0,0.5]", "output_dir='a, b=c'", "tracking=none"],
        ["run_name='1e-4'", r"output_dir='C:\a'"],
    ],
)
def test_a_configuration_written_as_yaml_is_read_back_equal(best, overrides):
    config = load(*overrides)
    override = best(to_yaml(config))
    again = load(override).model_dump()
    # Where data goes is not the file's to say.
    own = {"output_dir": config.output_dir, "tracking": config.tracking.model_dump()}
    assert again | own | {"best_config": None} == config.model_dump()


def test_explicit_settings_of_an_evaluation_are_those_of_the_command_line():
    overrides = ["checkpoint=c.pt", "split=val", "data=redsm5", "data.dir=x", "training.amp=auto"]
    evaluation, explicit = load_evaluate_config("criteria", overrides)
    assert evaluation.split == "val"
    assert set(explicit) == {"data", "data.dir", "training.amp"}
    assert explicit["data"]["posts"] == "redsm5_posts.csv"
    assert (explicit["data.dir"], explicit["training.amp"]) == ("x", "auto")


def test_an_evaluation_deletes_no_setting():
    with pytest.raises(ConfigError, match=r"cannot delete .* ~training\.epochs"):
        load_evaluate_config("criteria", ["checkpoint=c.pt", "~training.epochs"])


def test_a_section_laid_over_replaces_it_whole():
    config = load("data=redsm5", "data.dir=here", "data.negatives=7.0").model_dump()
    overrides = ["checkpoint=c.pt", "data=redsm5_hub"]
    _, explicit = load_evaluate_config("criteria", overrides)
    laid = lay_over(config, explicit)
    assert (laid.data.source, laid.data.dir, laid.data.negatives) == ("hub", None, "all")
    assert laid.model_dump() | {"data": None} == config | {"data": None}


def test_a_key_laid_over_leaves_its_neighbours():
    config = load("data=redsm5", "data.dir=here").model_dump()
    laid = lay_over(config, {"data.dir": "there", "training.early_stopping.patience": 2})
    assert laid.data.dir == "there"
    assert laid.data.model_dump() | {"dir": "here"} == config["data"]
    assert laid.training.early_stopping.patience == 2
    assert config["data"]["dir"] == "here"


def test_what_is_laid_over_is_checked():
    with pytest.raises(ConfigError, match=r"`training\.unknown` is not a known key"):
        lay_over(load().model_dump(), {"training.unknown": 1})


def test_the_configuration_tree_must_be_there(monkeypatch):
    monkeypatch.setattr("psy_agents_noaug.config.loading.CONFIG_DIR", Path("nowhere"))
    assert "pip install -e ." in fault_of()


def test_a_folder_given_to_the_bundled_corpus_is_not_passed_over():
    with pytest.raises(ConfigError, match=r"`data.dir` is not read by `data=sample`"):
        load("data.dir=somewhere")
