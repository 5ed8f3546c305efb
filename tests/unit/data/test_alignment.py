import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.alignment import Span, align, align_corpus, fold
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post, load_corpus
from psy_agents_noaug.errors import ConfigError


def aligned(evidence: str, text: str, threshold: float = 80) -> tuple[str, str | None]:
    kind, span, _ = align(evidence, text, fuzzy_threshold=threshold)
    return kind, None if span is None else text[span.start_char : span.end_char]


@pytest.mark.parametrize(
    "text",
    ["so 😔 tired of it", "e\u0301tat \u0915\u094d tired of it", "one\r\ntwo tired of it"],
    ids=["emoji", "combining marks", "CRLF"],
)
def test_offsets_count_code_points(text):
    kind, span, score = align("tired of it", text, fuzzy_threshold=90)
    assert (kind, score) == ("verbatim", 100.0)
    assert span == Span(text.index("tired"), len(text))


def test_the_first_verbatim_occurrence_counts():
    assert align("so tired", "so tired, so tired", fuzzy_threshold=90)[1] == Span(0, 8)


def test_whitespace_around_evidence_is_not_part_of_the_span():
    assert aligned(" tired \n", "I am tired of it") == ("verbatim", "tired")


@pytest.mark.parametrize(
    ("evidence", "text", "found"),
    [
        ("DIE STRASSE IST LEER", "Ja, die Straße ist leer.", "die Straße ist leer"),
        ('i can\'t "sleep"', "Well, I can’t “sleep” now", "I can’t “sleep”"),
        ("I am so tired", "x I  am\r\n\tso\u00a0tired y", "I  am\r\n\tso\u00a0tired"),
        ("tired... always - ever", "So tired… always — ever!", "tired… always — ever"),
        ("İstanbul 😔 OK", "in i̇stanbul 😔 ok.", "i̇stanbul 😔 ok"),
    ],
    ids=["sharp s", "quotes", "whitespace", "ellipsis and dash", "dotted I"],
)
def test_folded_evidence_maps_back_to_the_exact_original(evidence, text, found):
    assert aligned(evidence, text) == ("folded", found)


def test_a_folded_match_never_begins_inside_an_expanded_character():
    # "s ist" is in "strass ist" only with half of the ß.
    kind, _, _ = align("S IST", "die Straß ist", fuzzy_threshold=100)
    assert kind != "folded"
    assert aligned("S IST", "die Straß ist, das s ist da", 100) == ("folded", "s ist")


def test_a_fuzzy_match_is_moved_to_the_nearest_word_borders():
    text = "And then. I really cannot sleep at night. Nothing helps me."
    kind, found = aligned("I realy can not sleep at nite.", text)
    assert kind == "fuzzy"
    assert found == "I really cannot sleep at night."


def test_neighbouring_words_that_the_window_cuts_into_are_left_out():
    text = "Unfortunately I slept badly again tonight"
    assert aligned("I slept very badly again", text, 75) == ("fuzzy", "I slept badly again")


def test_text_that_resembles_nothing_is_lost():
    assert align("I cannot sleep at night", "We ate cake and danced.", fuzzy_threshold=80) == (
        "lost",
        None,
        0.0,
    )
    assert align("  ", "text", fuzzy_threshold=80) == ("lost", None, 0.0)


def test_evidence_longer_than_the_text_is_not_found_by_a_part_of_it():
    evidence = "I need help with everything that I do at home"
    assert aligned(evidence, "I need help") == ("lost", None)
    assert aligned("I really need some help!", " I really need some help ") == (
        "fuzzy",
        "I really need some help",
    )


@pytest.mark.parametrize("threshold", [0, -1, 100.5, float("nan")])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match="fuzzy_threshold"):
        align("a", "a", fuzzy_threshold=threshold)


@given(text=st.text(min_size=1, max_size=60), data=st.data())
def test_any_substring_aligns_to_an_equal_substring(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    evidence = text[start:end]
    kind, found = aligned(evidence, text)
    assert (kind, found) == (("verbatim", evidence.strip()) if evidence.strip() else ("lost", None))


@given(
    evidence=st.text("aß S’'… .é\r\n", min_size=1, max_size=12),
    text=st.text("aß S’'… .é\r\n", min_size=1, max_size=40),
)
def test_a_span_is_inside_the_text_and_folded_means_equal_when_folded(evidence, text):
    kind, found = aligned(evidence, text, 60)
    if kind == "lost":
        assert found is None
    else:
        assert found is not None
        assert found
        assert found == found.strip()
        assert kind == "fuzzy" or fold(found) == fold(evidence)


def corpus_of(*annotations: Annotation, text: str = "I can’t sleep. I am very tired.") -> Corpus:
    return Corpus((Post("p1", text, "p1"),), annotations, (), {}, "")


def test_the_report_counts_each_kind_and_names_the_rows():
    corpus = corpus_of(
        Annotation("p1", "A.4", 1, "I can't sleep.", None, None, None, 1),
        Annotation("p1", "A.6", 0, "I am very tired.", None, None, None, 2),
        Annotation("p1", "A.6", 1, "I am verry tired.", None, None, None, 3),
        Annotation("p1", "A.9", 1, "something else altogether", None, None, None, 4),
        Annotation("p1", "A.8", 0, None, 15, 19, None, 5),
        Annotation("p1", "A.7", 1, None, None, None, None, 6),
    )
    spans, report = align_corpus(corpus, fuzzy_threshold=80)
    assert spans == {1: Span(0, 14), 2: Span(15, 31), 3: Span(15, 31), 5: Span(15, 19)}
    counts = {"given": 1, "verbatim": 1, "folded": 1, "fuzzy": 1, "lost": 1}
    ids = {"folded": ["p1/A.4/1"], "fuzzy": ["p1/A.6/3 (97.0)"], "lost": ["p1/A.9/4"]}
    assert report.to_json() == {"counts": counts, "ids": ids, "hard_negatives": 2}


def test_a_paraphrased_corpus_loses_all_evidence_but_one_sentence(paraphrased_corpus):
    corpus = load_corpus(
        posts=paraphrased_corpus / "redsm5_posts.csv",
        annotations=paraphrased_corpus / "redsm5_annotations.csv",
        criteria=None,
        columns={"annotations": {"criterion_id": "DSM5_symptom", "evidence_text": "sentence_text"}},
        ignored_criteria=["SPECIAL_CASE"],
    )
    assert (len(corpus.posts), len(corpus.annotations), corpus.ignored) == (15, 22, {})
    assert sum(annotation.status == 0 for annotation in corpus.annotations) == 4
    texts = {post.post_id: post.text for post in corpus.posts}
    for threshold in (80, 90):
        spans, report = align_corpus(corpus, fuzzy_threshold=threshold)
        # Row 5 differs in one word; all others are paraphrases.
        counts = {"given": 0, "verbatim": 0, "folded": 0, "fuzzy": 1, "lost": 21}
        assert report.counts == counts
        assert list(spans) == [5]
        span = spans[5]
        found = texts["x_03"][span.start_char : span.end_char]
        assert found == "I feel terribly guilty about that."
    # Just below, where a match is a paraphrase: row 16 in the right place, but too short.
    spans, report = align_corpus(corpus, fuzzy_threshold=75)
    assert report.counts["fuzzy"] == 2
    assert sorted(spans) == [5, 16]
