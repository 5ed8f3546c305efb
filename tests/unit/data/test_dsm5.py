from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE


def test_the_nine_criteria_are_in_the_order_of_the_manual():
    ids = [criterion.criterion_id for criterion in MAJOR_DEPRESSIVE_EPISODE]
    assert ids == [f"A.{number}" for number in range(1, 10)]


def test_redsm5_names_stand_for_their_criteria():
    aliases = {c.criterion_id: c.aliases for c in MAJOR_DEPRESSIVE_EPISODE}
    assert aliases == {
        "A.1": ("DEPRESSED_MOOD",),
        "A.2": ("ANHEDONIA",),
        "A.3": ("APPETITE_CHANGE",),
        "A.4": ("SLEEP_ISSUES",),
        "A.5": ("PSYCHOMOTOR",),
        "A.6": ("FATIGUE",),
        "A.7": ("WORTHLESSNESS",),
        "A.8": ("COGNITIVE_ISSUES",),
        "A.9": ("SUICIDAL_THOUGHTS",),
    }


def test_every_text_is_one_short_sentence_of_its_own():
    texts = [criterion.text for criterion in MAJOR_DEPRESSIVE_EPISODE]
    assert len(set(texts)) == 9
    for text in texts:
        assert text.endswith(".")
        assert text.count(".") == 1
        assert len(text.split()) <= 20
