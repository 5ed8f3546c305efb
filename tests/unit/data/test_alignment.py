import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.alignment import align, align_corpus
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post, load_corpus
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.offsets import OffsetStyle
from psy_agents_noaug.data.span import Span
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


@given(
    st.lists(st.sampled_from(["so", "can't", "été", "😔", "x,", "…", "不", "&amp;"]), min_size=1),
    st.data(),
)
def test_any_words_of_a_text_align_to_equal_words(words, data):
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    evidence = " ".join(words[start:end])
    assert aligned(evidence, " ".join(words)) == ("verbatim", evidence)


@pytest.mark.parametrize(
    ("evidence", "text", "found"),
    [
        ("tired", "My dad retired. I am so tired.", 24),
        ("die", "He studied the soldier. I want to die", 34),
        ("sad", "The ambassador left. _sad_", 22),
        ("eat", "It was great. I can&#39;t eat", 26),
        ("can", "I can't. Yes I can", 15),
        ("5", "15 of 5", 6),
    ],
)
def test_evidence_is_found_as_words_and_not_inside_them(evidence, text, found):
    assert align(evidence, text, fuzzy_threshold=90) == (
        "verbatim",
        Span(found, found + len(evidence)),
        100.0,
    )


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ("tired", "My dad retired last year."),
        ("motivated", "I am unmotivated at work"),
        ("so tired", "He is also tired of it"),
        ("can", "I can&#39;t"),
        ("e", "cafe\u0301"),
    ],
)
def test_evidence_that_occurs_inside_words_alone_is_lost(evidence, text):
    assert aligned(evidence, text, 90) == ("lost", None)


def test_a_selection_that_lost_a_letter_at_its_end_is_moved_to_the_nearest_words():
    text = "Well I'm so tired of this"
    assert aligned("m so tired of thi", text, 90) == ("fuzzy", "so tired of this")
    assert aligned("so tired of thi", text, 90) == ("fuzzy", "so tired of this")


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ("I am not sleeping", "These days I am now sleeping"),
        ("I am now sleeping", "These days I am not sleeping"),
        ("I feel very motivated at work", "I feel very unmotivated at work"),
        ("I can sleep at night", "I can't sleep at night"),
        ("there is nothing that I enjoy", "there is something that I enjoy"),
    ],
)
def test_a_negation_is_never_fuzzed_away(evidence, text):
    assert aligned(evidence, text) == ("lost", None)


def test_behind_a_match_that_negates_otherwise_a_weaker_one_is_found():
    text = "Once I was now sleeping well. Then I was not sleping wel."
    assert aligned("I was not sleeping well.", text) == ("fuzzy", "I was not sleping wel.")


@pytest.mark.parametrize(
    ("evidence", "text", "found"),
    [
        ("cafe\u0301 alone", "In the caf\u00e9 alone, yes", "caf\u00e9 alone"),
        ("so sad now", "I am s\u200bo sad\ufeff now.", "s\u200bo sad\ufeff now"),
        ("can't & won't", "I can&#39;t &amp; won&#x27;t.", "can&#39;t &amp; won&#x27;t"),
        ("I&#39;m sad", "Yes, I'm sad", "I'm sad"),
    ],
    ids=["NFD", "zero width", "entities in the post", "entities in the evidence"],
)
def test_what_reads_the_same_is_found_at_its_place_in_the_post(evidence, text, found):
    assert aligned(evidence, text) == ("folded", found)


def test_scripts_without_spaces_have_a_border_between_any_two_characters():
    assert aligned("睡不着", "我整夜都睡不着，不知道", 90) == ("verbatim", "睡不着")
    assert aligned("ストレス", "私のストレスフリー", 90) == ("verbatim", "ストレス")
    assert aligned("ไม่หลับ", "ฉันนอนไม่หลับทั้งคืน", 90) == ("verbatim", "ไม่หลับ")
    # A fuzzy match is not widened to the whole clause.
    text = "今天我整夜都睡不着，不知道怎么办"
    assert aligned("我整夜都睡不著", text) == ("fuzzy", "我整夜都睡不着")


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
    assert report.to_json() == {
        "counts": counts,
        "ids": ids,
        "hard_negatives": 2,
        "ambiguous": {"count": 0, "ids": []},
        "missing_evidence": 0,
        "offsets": {
            "offset_unit": "code_points",
            "inclusive_ends": False,
            "cut_words": {"count": 0, "ids": []},
            "suggested": None,
        },
    }
    assert len(report.warnings()) == 1
    assert report.warnings()[0].endswith("(post/criterion/row): p1/A.9/4")


REPEATED = "I cry. We ate. I cry. It rained."


def evidence_rows(*sentence_ids: str | None, text: str = "I cry.", criterion: str = "A.1"):
    return [
        Annotation("p1", criterion, 1, text, None, None, sentence_id, row)
        for row, sentence_id in enumerate(sentence_ids, start=1)
    ]


def test_two_annotated_copies_take_successive_occurrences():
    corpus = corpus_of(*evidence_rows(None, None), text=REPEATED)
    spans, report = align_corpus(corpus, fuzzy_threshold=90)
    assert spans == {1: Span(0, 6), 2: Span(15, 21)}
    assert report.ambiguous == []


def test_copies_that_are_written_differently_in_the_post_are_both_found():
    corpus = corpus_of(*evidence_rows(None, None), text="I cry. We ate. i  CRY.")
    assert align_corpus(corpus, fuzzy_threshold=90)[0] == {1: Span(0, 6), 2: Span(15, 22)}


def test_the_sentence_id_decides_between_repeats():
    corpus = corpus_of(*evidence_rows("p1_2"), text=REPEATED)
    spans, report = align_corpus(corpus, fuzzy_threshold=90)
    assert (spans, report.ambiguous) == ({1: Span(15, 21)}, [])


def test_what_nothing_decides_is_listed_and_counted_in_the_log_without_its_ids():
    corpus = corpus_of(*evidence_rows(None), text=REPEATED)
    spans, report = align_corpus(corpus, fuzzy_threshold=90)
    assert spans == {1: Span(0, 6)}
    assert report.to_json()["ambiguous"] == {"count": 1, "ids": ["p1/A.1/1"]}
    (warning,) = report.warnings()
    assert "evidence of 1 annotations occurs several times" in warning
    assert "p1/A.1" not in warning


def test_repeats_of_different_criteria_do_not_take_occurrences_from_each_other():
    corpus = corpus_of(
        *evidence_rows("p1_0"), *(evidence_rows(None, "p1_0", criterion="A.2")[1:]), text=REPEATED
    )
    assert align_corpus(corpus, fuzzy_threshold=90)[0] == {1: Span(0, 6), 2: Span(0, 6)}


def test_offsets_that_cut_words_are_doubted_in_one_warning_that_names_the_unit():
    text = "😭😭😭 It rained. I lie awake. It was late."
    rows = [Annotation("p1", f"A.{n}", 1, None, 18, 30, None, n) for n in (1, 2)]
    corpus = corpus_of(*rows, text=text)
    spans, report = align_corpus(corpus, fuzzy_threshold=90)
    assert spans[1] == Span(18, 30)
    assert report.to_json()["offsets"] == {
        "offset_unit": "code_points",
        "inclusive_ends": False,
        "cut_words": {"count": 2, "ids": ["p1/A.1/1", "p1/A.2/2"]},
        "suggested": {"offset_unit": "utf16", "inclusive_ends": False, "mended": 2},
    }
    assert report.warnings() == [
        "2 of 2 spans given by offsets begin or end inside a word: "
        "`data.offset_unit=utf16` would mend 2 of them."
    ]


def test_offsets_are_doubted_under_another_unit_too():
    rows = [Annotation("p1", "A.1", 1, None, 12, 24, None, 1)]  # UTF-16: 15, 27
    corpus = corpus_of(*rows, text="😭😭😭 rained. I lie awake. It was late.")
    _, report = align_corpus(corpus, fuzzy_threshold=90, offsets=OffsetStyle("utf16"))
    assert report.to_json()["offsets"]["offset_unit"] == "utf16"
    assert len(report.cut) == 0
    rows = [Annotation("p1", "A.1", 1, None, 10, 21, None, 1)]
    _, report = align_corpus(
        corpus_of(*rows, text=corpus.posts[0].text),
        fuzzy_threshold=90,
        offsets=OffsetStyle("utf16"),
    )
    assert len(report.cut) == 1


def test_offsets_whose_text_the_file_gives_are_not_doubted():
    corpus = corpus_of(Annotation("p1", "A.1", 1, "etired", 1, 7, None, 1), text="retired")
    assert align_corpus(corpus, fuzzy_threshold=90)[1].cut == []


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


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ("I want to die", "Well. I don't want to die"),
        ("I have energy for work", "I don't have energy for work"),
        ("I feel like eating anything", "I never feel like eating anything"),
        ("I enjoy my hobbies now", "I no longer enjoy my hobbies now"),
        ("I felt tired", "Nobody felt tired"),
    ],
)
def test_a_negation_just_before_a_similar_text_counts(evidence, text):
    assert align(evidence, text, fuzzy_threshold=90)[0] == "lost"


def test_a_negation_in_the_clause_before_does_not_count():
    text = "I don't know, I feal tired all day"
    kind, span, _ = align("I feel tired all day", text, fuzzy_threshold=90)
    assert (kind, text[span.start_char : span.end_char]) == ("fuzzy", "I feal tired all day")


def test_the_same_words_by_two_annotators_are_one_place_and_ambiguous():
    text = "I cry. We ate. I cry."
    rows = [
        Annotation("p1", "A.1", 1, "I cry.", None, None, None, row, annotator_id=name)
        for row, name in ((1, "x"), (2, "y"))
    ]
    corpus = Corpus((Post("p1", text, "p1"),), tuple(rows), (), {}, "")
    spans, report = align_corpus(corpus, fuzzy_threshold=90)
    assert spans[1] == spans[2] == Span(0, 6)
    assert len(report.ambiguous) == 2
