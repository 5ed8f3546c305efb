"""The default criteria: the nine of a major depressive episode, in our own words.

The wording is a paraphrase for encoders, not the text of the manual. The aliases are the symptom
names of ReDSM5 (Bao, Pérez, Parapar, CIKM 2025).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion that posts are classified by.

    Attributes:
        text: the description that the encoder reads together with the post.
        aliases: other names of the criterion in annotation files; case does not matter.
    """

    criterion_id: str
    name: str
    text: str
    aliases: tuple[str, ...] = ()


MAJOR_DEPRESSIVE_EPISODE: tuple[Criterion, ...] = (
    Criterion(
        "A.1",
        "Depressed mood",
        "The person feels sad, empty, hopeless or tearful on most days.",
        ("DEPRESSED_MOOD",),
    ),
    Criterion(
        "A.2",
        "Loss of interest or pleasure",
        "The person no longer enjoys or cares about things they used to like.",
        ("ANHEDONIA",),
    ),
    Criterion(
        "A.3",
        "Change in appetite or weight",
        "The person eats much more or less than usual, or gains or loses weight without trying.",
        ("APPETITE_CHANGE",),
    ),
    Criterion(
        "A.4",
        "Sleep problems",
        "The person cannot fall or stay asleep, or sleeps far too much.",
        ("SLEEP_ISSUES",),
    ),
    Criterion(
        "A.5",
        "Restlessness or slowing",
        "The person is visibly restless and agitated, or moves and speaks unusually slowly.",
        ("PSYCHOMOTOR",),
    ),
    Criterion(
        "A.6",
        "Fatigue",
        "The person is tired, drained or without energy on most days.",
        ("FATIGUE",),
    ),
    Criterion(
        "A.7",
        "Worthlessness or guilt",
        "The person feels worthless or blames themselves far beyond what is reasonable.",
        ("WORTHLESSNESS",),
    ),
    Criterion(
        "A.8",
        "Trouble thinking or deciding",
        "The person struggles to concentrate, think clearly or make decisions.",
        ("COGNITIVE_ISSUES",),
    ),
    Criterion(
        "A.9",
        "Suicidal thoughts",
        "The person thinks about death or suicide, plans it, or has attempted it.",
        ("SUICIDAL_THOUGHTS",),
    ),
)
