import pytest

from psy_agents_noaug.data.negation import negations_agree


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("i am not sleeping", "i am now sleeping"),
        ("i never sleep", "i ever sleep"),
        ("i can't sleep", "i can sleep"),
        ("nothing is fun", "something is fun"),
        ("i do not eat or sleep", "i do not eat, not sleep"),
        ("i am motivated", "i am unmotivated"),
        ("i like it", "i dislike it"),
        ("i feel hopeful", "i feel hopeless"),
    ],
)
def test_texts_of_which_one_denies_the_other_do_not_agree(one, other):
    assert not negations_agree(one, other)
    assert not negations_agree(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("i can't sleep", "i cannot slep"),
        ("i can not sleep", "i cant sleep"),
        ("i don't eat", "i dont eat"),
        ("i am realy unhappy", "i am really unhappy"),
        ("tired", "so tired"),
    ],
)
def test_spellings_of_one_negation_agree(one, other):
    assert negations_agree(one, other)
