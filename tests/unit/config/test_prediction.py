"""The settings of a prediction."""

import pytest

from psy_agents_noaug.config.prediction import load_predict_config
from psy_agents_noaug.errors import ConfigError

NEEDED = ("checkpoint=run", "data.posts=mine.csv")


def refusal(*overrides):
    with pytest.raises(ConfigError) as raised:
        load_predict_config(overrides)
    return str(raised.value)


def test_a_checkpoint_and_a_file_of_posts_are_enough():
    config = load_predict_config(NEEDED)
    assert (config.checkpoint, config.data.posts, config.data.dir) == ("run", "mine.csv", None)
    assert config.data.source == "files"
    assert config.overrides == {}
    assert refusal().count("must be given") == 2


@pytest.mark.parametrize("data", ["imported", "redsm5", "redsm5_hub", "sample", "tables"])
def test_ones_own_file_is_read_with_the_columns_of_any_data_configuration(data):
    config = load_predict_config([*NEEDED, f"data={data}", "data.columns.posts.text=body"])
    assert (config.data.source, config.data.dir) == ("files", None)
    assert config.data.columns["posts"]["text"] == "body"
    assert set(config.data.columns) == {"posts"}


def test_the_posts_of_a_data_configuration_are_read_where_it_has_them():
    bundled = load_predict_config(["checkpoint=run", "data=sample"]).data
    assert (bundled.source, bundled.posts) == ("bundled", "redsm5_posts.csv")
    own = load_predict_config(["checkpoint=run", "data=redsm5", "data.dir=corpus"]).data
    assert (own.source, own.dir, own.posts) == ("files", "corpus", "redsm5_posts.csv")
    assert "`data.dir` must be given" in refusal("checkpoint=run", "data=redsm5")
    assert "`data.posts` must be given" in refusal("checkpoint=run", "data=redsm5_hub")


def test_settings_that_replace_the_trainings_are_those_that_are_given():
    given = ["training.amp=off", "training.eval_batch_size=4", "model.max_length=64"]
    config = load_predict_config([*NEEDED, *given, "task.decoding=consistent"])
    assert config.overrides == {
        "training.amp": "off",
        "training.eval_batch_size": 4,
        "model.max_length": 64,
        "task.decoding": "consistent",
    }


def test_thresholds_and_prevalences_are_numbers_or_by_criterion():
    config = load_predict_config([*NEEDED, "threshold={A.1:0.4,A.10:0.5}", "prevalence=0.1"])
    assert (config.threshold, config.prevalence) == ({"A.1": 0.4, "A.10": 0.5}, 0.1)
    told = refusal(*NEEDED, "threshold=high", "prevalence={A.1:1.5}", "criteria=[]", "skip=-1")
    assert "`threshold` is 'high'" in told
    assert "`prevalence" in told
    assert "`criteria` is []" in told
    assert "`skip` is -1" in told


def test_a_path_that_looks_like_a_number_is_a_path():
    config = load_predict_config(["checkpoint=1e5", "data.posts=20241103", "output=007"])
    assert (config.checkpoint, config.data.posts, config.output) == ("1e5", "20241103", "007")


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=3",
        "training=optimized",
        "model=minilm",
        "model.pretrained_model=x",
        "data.unit=sentence",
        "data.annotations=x.csv",
        "data.source=hub",
        "data.columns.annotations.status=x",
        "tracking=none",
        "seed=3",
        "output_dir=x",
    ],
)
def test_settings_of_a_training_without_an_effect_are_refused(override):
    key = override.partition("=")[0]
    assert f"`{key}` has no effect on predictions; leave it out." in refusal(*NEEDED, override)


def test_all_slips_are_in_one_message():
    told = refusal(
        "checkpoint=run", "data.post=x.csv", "thresold=0.5", "training.ampp=off", "rows=word"
    )
    for fault in (
        "`data.posts` must be given: data.posts=...",
        "`data.post` is not a known key; did you mean `data.posts`?",
        "`thresold` is not a known key; did you mean `threshold`?",
        "`training.ampp` is not a known key; did you mean `training.amp`?",
        "`rows` is 'word'",
    ):
        assert fault in told
