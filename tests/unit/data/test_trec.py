import pytest

from psy_agents_noaug.data.trec import qrels_lines, read_qrels, read_run, run_lines
from psy_agents_noaug.errors import DataError


def test_runs_and_qrels_are_read_back_with_ids_that_have_spaces(tmp_path):
    run, qrels = tmp_path / "test.run", tmp_path / "test.qrels"
    documents = ["post 1/0-5", "100% sure/é", "p\u2028q"]
    run.write_text(run_lines("A.1", documents, ["0.75", "0.5", "1e-05"], tag="my run"))
    qrels.write_text(qrels_lines("A.1", [(document, 1) for document in documents]))
    assert run.read_text().splitlines()[0] == "A.1 Q0 post%201/0-5 1 0.75 my%20run"
    assert read_run(run) == {"A.1": dict(zip(documents, [0.75, 0.5, 1e-05], strict=True))}
    assert read_qrels(qrels) == {"A.1": dict.fromkeys(documents, 1)}


@pytest.mark.parametrize(
    "lines",
    [
        # The columns of eRisk's g_qrels_majority_2.csv.
        ["query,q0,docid,rel", "1,0,s_405_1279_15,1", "1,0,s_1_2_3,0", "21,0,s_405_1279_15,0"],
        ["1, 0, s_405_1279_15, 1", '"1","0","s_1_2_3","0"', "", "21,0,s_405_1279_15,0"],
        ["1 0 s_405_1279_15 1", "1\t0\ts_1_2_3\t0", "", "21 0 s_405_1279_15 0"],
        ["query q0 docid rel", "1 0 s_405_1279_15 1", "1 0 s_1_2_3 0", "21 0 s_405_1279_15 0"],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_qrels_of_erisk_are_read_with_commas_or_blanks_and_with_a_header(lines, end, tmp_path):
    qrels = tmp_path / "majority.csv"
    qrels.write_text("".join(f"{line}{end}" for line in lines), newline="")
    found = read_qrels(qrels)
    assert found == {"1": {"s_405_1279_15": 1, "s_1_2_3": 0}, "21": {"s_405_1279_15": 0}}


def test_a_header_is_the_first_line_alone_and_ids_between_blanks_may_have_commas(tmp_path):
    qrels = tmp_path / "qrels"
    qrels.write_text("1 0 a,b,c,d 1\n1 0 d rel\n")
    with pytest.raises(DataError, match="line 2: must have a whole number as word 4"):
        read_qrels(qrels)
    qrels.write_text("1 0 a,b,c,d 1\n")
    assert read_qrels(qrels) == {"1": {"a,b,c,d": 1}}


def test_a_line_that_is_too_long_for_a_cell_is_a_fault(tmp_path):
    run = tmp_path / "a.run"
    run.write_text("x" * 200_000)
    with pytest.raises(DataError, match="line 1: must have 6 words"):
        read_run(run)


def test_all_faults_of_a_file_are_one_message(tmp_path):
    run = tmp_path / "a.run"
    run.write_text("1 Q0 d1 1 0.5 tag\n1 Q0 d1 2 0.4 tag\n1 Q0 d2 3 nan tag\n1 Q0 d3\n")
    with pytest.raises(DataError) as caught:
        read_run(run)
    for part in (
        "is not a run: topic Q0 document rank score tag",
        "line 2: must hold a document of a topic once ('d1')",
        "line 3: must have a number as word 5 ('nan')",
        "line 4: must have 6 words (3)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "must have a line"),
        (b"1 0 d1 0.5\n", "must have a whole number as word 4"),
        (b"1 0 d1 \xff\n", "must be in UTF-8"),
    ],
)
def test_a_file_that_is_no_qrels_is_refused(content, fault, tmp_path):
    (tmp_path / "qrels").write_bytes(content)
    with pytest.raises(DataError, match=fault):
        read_qrels(tmp_path / "qrels")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"qrels cannot be read: No such file"):
        read_qrels(tmp_path / "qrels")
