"""INCEpTION: WebAnno TSV 3.x, UIMA CAS XMI, and the archives of both."""

import io
import re
import zipfile
from xml.sax.saxutils import quoteattr

import pytest
from annotated import OTHER, TEXT, at, units

from psy_agents_noaug.importers import sources
from psy_agents_noaug.importers.xmi import read_xmi

HEADER = (
    "#FORMAT=WebAnno TSV 3.{minor}\n"
    "#T_SP=webanno.custom.Symptom|certainty|symptom\n"
    "#T_SP=webanno.custom.Doubtful\n"
    "#T_RL=webanno.custom.Cause|kind|BT_webanno.custom.Symptom\n\n\n"
)


def tsv(sentences, cells, *, minor=3):
    """A document: sentences of space-separated tokens, and the cells of some tokens."""
    lines, position, text = [HEADER.format(minor=minor)], 0, " ".join(sentences)
    for number, sentence in enumerate(sentences, start=1):
        lines.append(f"#Text={sentence}\n")
        for index, token in enumerate(sentence.split(" "), start=1):
            key = f"{number}-{index}"
            own = cells.get(key, "_\t_\t_\t_\t_")
            lines.append(f"{key}\t{position}-{position + units(token)}\t{token}\t{own}\t\n")
            position += units(token) + 1
        lines.append("\n")
    return "".join(lines), text


SENTENCES = ["😀👍🏽 I cannot sleep", "I cry all day and I cry at night"]
CELLS = {
    "1-2": "high[1]\tA.4[1]\t_\t_\t_",
    "1-3": "high[1]\tA.4[1]\t_\t_\t_",
    "1-4": "high[1]|*[2]\tA.4[1]|A.6[2]\t*\tcauses\t2-1[0_1]",
    "2-1": "*[2]\tA.6[2]\t_\t_\t_",
    "2-2": "*\tlow\\|mood\t_\t_\t_",
}
MAP = {"Symptom.certainty:*": None, "Doubtful": None, "low|mood": "A.1"}


def test_tsv_has_spans_of_several_tokens_stacks_and_layers_without_features(imported, written):
    content, text = tsv(SENTENCES, CELLS)
    path = written("post1.tsv", content)
    result = imported("inception", path, map=MAP, spans_imply_label=True)
    assert result.posts == {"post1": text}
    assert result.rows == [
        ("post1", None, "A.1", 1, "cry"),
        ("post1", None, "A.4", 1, "I cannot sleep"),
        ("post1", None, "A.6", 1, "sleep I"),
    ]
    assert result.left("relations") == 1
    assert result.report["offset_units"] == {"utf16": 1}


@pytest.mark.parametrize(
    ("version", "escaped", "text"),
    [
        ("3.1", r"\u00e4 \uD83D\uDE00 \"sad\"\f day", 'ä 😀 "sad"\f day'),
        ("3.2", 'ä 😀 "sad"\\f day\\b\\r', 'ä 😀 "sad"\f day\b\r'),
        ("3.3", r"#Sentence.id=s1|ä 😀 C:\\temp sad", r"ä 😀 C:\temp sad"),
    ],
)
def test_the_text_of_each_version_of_tsv_is_unescaped(imported, written, version, escaped, text):
    head, _, escaped = escaped.rpartition("|")
    lines = [HEADER.format(minor=version[-1]) + head, f"#Text={escaped}"]
    for number, found in enumerate(re.finditer(r'[^\s"]+', text), start=1):
        start = units(text[: found.start()])
        label = "A.1" if found[0] == "sad" else "_"
        cells = f"*\t{label}" if label != "_" else "_\t_"
        lines.append(
            f"1-{number}\t{start}-{start + units(found[0])}\t{found[0]}\t{cells}\t_\t_\t_\t"
        )
    path = written("p.tsv", "\n".join(lines))
    result = imported("inception", path, spans_imply_label=True)
    assert (result.posts, result.rows[0][-1]) == ({"p": text}, "sad")


def test_a_unit_without_a_character_is_left_out_and_counted(imported, written):
    content, _ = tsv(SENTENCES, CELLS)
    between = "1-4.1\t19-19\t\t*\tA.2\t_\t_\t_\t\n"
    path = written("p.tsv", content.replace("\n\n#Text=I cry", f"\n{between}\n#Text=I cry"))
    result = imported("inception", path, map=MAP, spans_imply_label=True)
    assert {row[2] for row in result.rows} == {"A.1", "A.4", "A.6"}
    assert result.left("without a character") == 1


def test_true_and_false_of_tsv_are_attributes(imported, written):
    header = "#FORMAT=WebAnno TSV 3.3\n#T_SP=webanno.custom.Symptom|symptom|negated\n\n\n"
    tokens = ["1-1\t0-5\tSleep\tA.4\ttrue\t", "1-2\t6-11\tsadly\tA.1\tfalse\t"]
    path = written("p.tsv", "\n".join([f"{header}#Text=Sleep sadly", *tokens]))
    turned = {"A.4[negated]": {"criterion_id": "A.4", "status": 0}}
    result = imported("inception", path, map=turned, spans_imply_label=True)
    assert result.rows == [("p", None, "A.1", 1, "sadly"), ("p", None, "A.4", 0, "Sleep")]
    assert result.left("attribute negated") == 1


def test_another_feature_of_the_span_is_an_attribute(imported, written):
    content, _ = tsv(SENTENCES, CELLS)
    turned = {**MAP, "A.4[certainty=high]": {"criterion_id": "A.4", "status": 0}}
    result = imported("inception", written("p.tsv", content), map=turned, spans_imply_label=True)
    assert ("p", None, "A.4", 0, "I cannot sleep") in result.rows


def test_tsv_of_two_sentences_on_lines_of_their_own_keeps_the_lines_of_a_sentence(
    imported, written
):
    content = (
        f"{HEADER.format(minor=3)}"
        "#Text=Not\n#Text=well\n1-1\t5-8\tNot\t*\tA.1\t_\t_\t_\n1-2\t9-13\twell\t_\t_\t_\t_\t_\n"
    )
    result = imported("inception", written("p.tsv", content), map=MAP, spans_imply_label=True)
    assert (result.posts["p"], result.rows[0][-1]) == ("     Not\nwell", "Not")


def test_a_project_export_names_documents_and_annotators(imported, written):
    content, _ = tsv(SENTENCES, CELLS)
    bare, _ = tsv(SENTENCES, {})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as project:
        project.writestr("annotation/post 1.txt/anna.tsv", content)
        project.writestr("annotation/post 1.txt/ben.tsv", bare)
        project.writestr("annotation/post 1.txt/INITIAL_CAS.tsv", bare)
        project.writestr("source/post 1.txt", "ignored")
    path = written("project.zip", archive.getvalue())
    settings = {"map": MAP, "spans_imply_label": True, "empty": "negative"}
    result = imported("inception", path, **settings)
    assert result.report["annotators"] == {"anna": 1, "ben": 1}
    assert ("post 1.txt", "anna", "A.6", 1, "sleep I") in result.rows
    assert ("post 1.txt", "ben", "A.6", 0, None) in result.rows
    assert result.left("INITIAL_CAS") == 1


def test_the_sources_of_a_project_are_no_documents_of_it(imported, written):
    content, _ = tsv(SENTENCES, CELLS)
    bare, _ = tsv(SENTENCES, {})
    files = {"annotation/p.tsv/anna.tsv": content, "source/p.tsv": bare}
    settings = {"map": MAP, "spans_imply_label": True, "empty": "negative"}
    result = imported("inception", written("project.zip", archive(files)), **settings)
    assert (result.posts.keys(), result.left("(source)")) == ({"p.tsv"}, 1)
    alone = imported("inception", written("source/q.tsv", content).parents[1], **settings)
    assert "q" in alone.posts


@pytest.mark.parametrize("name", ["p.tsv", "p " * 100 + ".tsv"])
@pytest.mark.parametrize(("old", "new"), [("TSV 3.3", "TSV 2.0"), ("\tcannot\t", "\tcan\t")])
def test_a_document_of_which_one_annotator_cannot_be_read_is_left_out(
    imported, written, name, old, new
):
    content, _ = tsv(SENTENCES, CELLS)
    other, _ = tsv(["I cry all night", "Nothing else"], {"1-2": "*\tA.1\t_\t_\t_"})
    files = {
        f"annotation/{name}/anna.tsv": content.replace(old, new, 1),
        f"annotation/{name}/ben.tsv": content,
        "annotation/q.tsv/anna.tsv": other,
        "annotation/q.tsv/ben.tsv": other,
    }
    settings = {"map": MAP, "spans_imply_label": True, "faulty": "leave_out"}
    result = imported("inception", written("project.zip", archive(files)), **settings)
    assert (result.posts.keys(), result.left("documents with faults")) == ({"q.tsv"}, 1)


def test_two_files_of_one_document_without_annotators_are_refused(refused, written):
    content, _ = tsv(SENTENCES, CELLS)
    written("export/anna/one.tsv", content)
    path = written("export/ben/one.tsv", content).parents[1]
    message = refused("inception", path, map=MAP, spans_imply_label=True)
    assert message.count("must be the only file of its document and annotator") == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("TSV 3.3", "TSV 2.0", "line 1: must begin with #FORMAT=WebAnno TSV 3.x"),
        ("\tcannot\t", "\tcannot\t_\t", "must be a token below #Text="),
        ("\tcannot\t", "\tcan\t", "where their offsets say"),
        ("\n1-1", "\nwhat\n1-1", "must be a token or begin with #"),
    ],
)
def test_malformed_tsv_is_refused(refused, written, old, new, told):
    content, _ = tsv(SENTENCES, CELLS)
    assert told in refused("inception", written("post1.tsv", content.replace(old, new, 1)), map=MAP)


# ------------------------------------------------------------------------------------------------ XMI

TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<typeSystemDescription xmlns="http://uima.apache.org/resourceSpecifier"><types>
{types}
</types></typeSystemDescription>"""
TYPE = """<typeDescription><name>{name}</name><description/>
<supertypeName>{parent}</supertypeName><features>{features}</features></typeDescription>"""
FEATURE = """<featureDescription><name>{name}</name><description/>
<rangeTypeName>{range}</rangeTypeName></featureDescription>"""


def feature(name, range="uima.cas.String"):
    return FEATURE.format(name=name, range=range)


def types():
    annotation = "uima.tcas.Annotation"
    own = "webanno.custom.Symptom"
    link = feature("Governor", own) + feature("Dependent", own)
    shared = feature("shared", "uima.cas.StringArray").replace(
        "</featureD", "<multipleReferencesAllowed>true</multipleReferencesAllowed></featureD"
    )
    described = [
        (own, annotation, feature("symptom") + feature("sure", "uima.cas.Boolean")),
        ("webanno.custom.Cause", annotation, link),
        (
            "webanno.custom.Document",
            "uima.cas.AnnotationBase",
            feature("label") + feature("many", "uima.cas.StringArray") + shared,
        ),
        ("webanno.custom.Flag", "uima.cas.AnnotationBase", ""),
        (
            "webanno.custom.Answers",
            "uima.cas.AnnotationBase",
            feature("insomnia", "uima.cas.Boolean") + feature("severity", "uima.cas.Integer"),
        ),
        ("de.tudarmstadt.ukp.dkpro.core.api.segmentation.type.Token", annotation, ""),
        (
            METADATA,
            "uima.tcas.DocumentAnnotation",
            feature("documentTitle") + feature("documentId"),
        ),
    ]
    return TYPES.format(
        types="\n".join(TYPE.format(name=n, parent=p, features=f) for n, p, f in described)
    )


METADATA = "de.tudarmstadt.ukp.dkpro.core.api.metadata.type.DocumentMetaData"


def xmi(text, spans, labels=(), head="", *, more="", title=None, user=None, sure="true"):
    """A CAS; offsets are UTF-16 units, as Java writes them."""
    elements, ids = [], []

    def add(element):
        ids.append(len(ids) + 10)
        elements.append(element.format(id=ids[-1]))

    for words, label in spans:
        start, end = at(words, text, utf16=True)
        add(
            f'<custom:Symptom xmi:id="{{id}}" sofa="1" begin="{start}" end="{end}" '
            f'symptom={quoteattr(label)} sure="{sure}"/>'
        )
    add('<type:Token xmi:id="{id}" sofa="1" begin="0" end="2"/>')
    for label in labels:
        add(f'<custom:Document xmi:id="{{id}}" sofa="1" label={quoteattr(label)}/>')
    if more:
        add(f'<custom:{more} xmi:id="{{id}}" sofa="1"/>')
    if title is not None:
        add(
            f'<meta:DocumentMetaData xmi:id="{{id}}" sofa="1" begin="0" end="{units(text)}" '
            f"documentTitle={quoteattr(title)} documentId={quoteattr(user)}/>"
        )
    if len(spans) > 1:
        add('<custom:Cause xmi:id="{id}" sofa="1" begin="0" end="2" Governor="10" Dependent="11"/>')
    quoted = quoteattr(text, {"\n": "&#10;"})
    return f"""<?xml version="1.0" encoding="UTF-8"?>{head}
<xmi:XMI xmlns:xmi="http://www.omg.org/XMI" xmlns:cas="http:///uima/cas.ecore"
 xmlns:custom="http:///webanno/custom.ecore"
 xmlns:meta="http:///de/tudarmstadt/ukp/dkpro/core/api/metadata/type.ecore"
 xmlns:type="http:///de/tudarmstadt/ukp/dkpro/core/api/segmentation/type.ecore" xmi:version="2.0">
<cas:NULL xmi:id="0"/>{"".join(elements)}
<cas:Sofa xmi:id="1" sofaNum="1" sofaID="_InitialView" mimeType="text" sofaString={quoted}/>
<cas:View sofa="1" members="{" ".join(map(str, ids))}"/></xmi:XMI>"""


def archive(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, member in files.items():
            opened.writestr(name, member)
    return content.getvalue()


XMI = xmi(TEXT, [("I cannot sleep", "A.4"), ("I cry all day,\nand", "A.1")], ["A.4", "A.1"])


@pytest.fixture
def cassis():
    pytest.importorskip("cassis", reason="the extra `import` is not installed")


@pytest.mark.usefixtures("cassis")
def test_xmi_in_an_archive_with_its_types_is_read(imported, written):
    path = written("post1.zip", archive({"post1.xmi": XMI, "TypeSystem.xml": types()}))
    result = imported("inception", path)
    assert result.posts == {"post1": TEXT}
    assert result.rows == [
        ("post1", None, "A.1", 1, "I cry all day,\nand"),
        ("post1", None, "A.4", 1, "I cannot sleep"),
    ]
    assert result.left("relations") == 1
    assert result.left("attribute sure") == 2


@pytest.mark.usefixtures("cassis")
@pytest.mark.parametrize(("sure", "status"), [("true", 1), ("false", 0)])
def test_true_and_false_of_xmi_are_attributes(imported, written, sure, status):
    content = xmi(TEXT, [("I cannot sleep", "A.4")], sure=sure)
    path = written("post1.zip", archive({"post1.xmi": content, "TypeSystem.xml": types()}))
    turned = {"A.4[sure=false]": {"criterion_id": "A.4", "status": 0}}
    result = imported("inception", path, map=turned, spans_imply_label=True)
    assert result.rows == [("post1", None, "A.4", status, "I cannot sleep")]


@pytest.fixture
def answered(written):
    """A folder with three documents: the answer yes, the answer no, and none."""
    path = written("corpus/TypeSystem.xml", types())
    answers = {"yes": 'insomnia="true" severity="3"', "no": 'insomnia="false"', "none": ""}
    for name, own in answers.items():
        written(f"corpus/{name}.xmi", xmi(f"{TEXT} {name}", [], more=f"Answers {own}"))
    return path.parent


@pytest.mark.usefixtures("cassis")
def test_true_and_false_of_a_document_are_attributes_of_a_label_named_by_the_layer(
    imported, answered
):
    turned = {"Answers[insomnia]": "A.4", "Answers": None}
    result = imported("inception", answered, map=turned, empty="leave_out", negatives="explicit")
    assert result.rows == [("no", None, "A.4", 0, None), ("yes", None, "A.4", 1, None)]
    assert result.left("attribute severity") == 1
    assert result.left("of a document without a value (Answers)") == 1
    no = {"criterion_id": "A.4", "status": 0}
    turned = {"Answers": "A.4", "Answers[insomnia=false]": no}
    result = imported("inception", answered, map=turned, empty="leave_out")
    assert result.rows == [("no", None, "A.4", 0, None), ("yes", None, "A.4", 1, None)]


@pytest.mark.usefixtures("cassis")
def test_true_and_false_of_a_document_do_not_vanish_without_a_map(refused, answered):
    message = refused("inception", answered, empty="negative")
    assert "'Answers' in Answers: must be mapped to a criterion, or to null (2 times" in message


@pytest.mark.usefixtures("cassis")
def test_a_layer_of_documents_without_features_is_a_label(imported, written):
    content = xmi(TEXT, [], more="Flag")
    path = written("post1.zip", archive({"post1.xmi": content, "TypeSystem.xml": types()}))
    assert imported("inception", path, map={"Flag": "A.4"}).rows == [
        ("post1", None, "A.4", 1, None)
    ]


@pytest.mark.usefixtures("cassis")
def test_the_metadata_of_xmi_name_document_and_annotator(imported, written):
    for user, label in (("anna", "A.4"), ("ben", "A.6")):
        content = xmi(TEXT, [("I cannot sleep", label)], title="one.txt", user=user)
        members = {f"{user}.xmi": content, "TypeSystem.xml": types()}
        path = written(f"exports/{user}/one.zip", archive(members))
    result = imported("inception", path.parents[1], spans_imply_label=True, negatives="none")
    assert result.rows == [
        ("one.txt", "anna", "A.4", 1, "I cannot sleep"),
        ("one.txt", "ben", "A.6", 1, "I cannot sleep"),
    ]


@pytest.mark.usefixtures("cassis")
def test_xmi_that_may_be_of_any_document_is_refused_where_annotators_are_named(
    imported, refused, written
):
    written("exports/TypeSystem.xml", types())
    for name, text in (("one", TEXT), ("two", OTHER)):
        content = xmi(text, [], ["A.4"], title=f"{name}.txt", user="ben")
        path = written(f"exports/{name}/ben.xmi", content)
    written("exports/one/anna.xmi", XMI[:-30])
    message = refused("inception", path.parents[1], faulty="leave_out")
    assert "one/anna.xmi: cannot be read; faulty=leave_out needs to know" in message
    for name, text in (("one", TEXT), ("two", OTHER)):
        written(f"exports/{name}/ben.xmi", xmi(text, [], ["A.4"], title=f"{name}.txt", user="x"))
    kept = imported("inception", path.parents[1], faulty="leave_out")
    assert kept.posts.keys() == {"one.txt", "two.txt"}


@pytest.mark.usefixtures("cassis")
def test_xmi_of_a_project_has_an_archive_for_each_annotator(imported, written):
    empty = xmi(TEXT, [], [])
    other = xmi(OTHER, [], ["A.2"])
    inner = {
        "annotation/one.txt/anna.zip": archive({"anna.xmi": XMI, "TypeSystem.xml": types()}),
        "annotation/one.txt/ben.zip": archive({"ben.xmi": empty, "TypeSystem.xml": types()}),
        "curation/two.txt/CURATION_USER.zip": archive(
            {"CURATION_USER.xmi": other, "TypeSystem.xml": types()}
        ),
    }
    result = imported("inception", written("p.zip", archive(inner)), empty="negative")
    assert result.posts == {"one.txt": TEXT, "two.txt": OTHER}
    assert result.report["annotators"] == {"CURATION_USER": 1, "anna": 1, "ben": 1}
    assert ("one.txt", "ben", "A.4", 0, None) in result.rows


@pytest.mark.usefixtures("cassis")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            XMI.replace(
                "?>", '?><!DOCTYPE x [<!ENTITY a "xylozephyrquill"><!ENTITY b "&a;&a;&a;">]>', 1
            ),
            "<!DOCTYPE",
        ),
        (XMI.replace('end="', 'end="9', 1), "malformed XMI"),
        (XMI[:-30], "must be XML"),
        (XMI.replace("custom:Symptom", "custom:Unknown"), "malformed XMI"),
        (XMI.replace(' label="A.4"', ' shared="14"'), "Document.shared must be a list of text"),
    ],
)
def test_xmi_that_is_malformed_or_declares_entities_is_refused(refused, written, content, told):
    written("corpus/TypeSystem.xml", types())
    message = refused("inception", written("corpus/post1.xmi", content).parent)
    assert "post1.xmi: cannot be read" in message
    assert told in message
    assert "xylozephyrquill" not in message


@pytest.mark.usefixtures("cassis")
def test_labels_in_a_list_of_xmi_are_read_and_empty_elements_are_none(imported, written):
    listed = '<custom:Document xmi:id="12" sofa="1"><many>A.4</many><many/></custom:Document>'
    plain = '<custom:Document xmi:id="12" sofa="1" label="A.4"/>'
    content = xmi(TEXT, [("I cannot sleep", "A.4")], ["A.4"])
    assert plain in content
    written("corpus/TypeSystem.xml", types())
    path = written("corpus/post1.xmi", content.replace(plain, listed)).parent
    assert imported("inception", path).rows == [("post1", None, "A.4", 1, "I cannot sleep")]


@pytest.mark.usefixtures("cassis")
def test_a_bug_in_reading_marks_is_not_told_as_malformed_xmi(imported, written, monkeypatch):
    monkeypatch.setattr(f"{read_xmi.__module__}.marks_of_features", lambda *_: 1 / 0)
    written("corpus/TypeSystem.xml", types())
    with pytest.raises(ZeroDivisionError):
        imported("inception", written("corpus/post1.xmi", XMI).parent)


@pytest.mark.usefixtures("cassis")
def test_xmi_without_its_types_is_refused(refused, written):
    assert "must come with its TypeSystem.xml" in refused("inception", written("post1.xmi", XMI))


def test_entities_are_found_in_any_encoding():
    content = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a []><a/>'.encode("utf-16")
    file = sources.SourceFile(sources.PurePosixPath("a.xmi"), content)
    with pytest.raises(sources.DataError, match="document type"):
        sources.refuse_entities(file)


@pytest.mark.parametrize("encoding", ["foo", "gb2312", "utf-32"])
def test_xml_in_an_encoding_that_is_not_read_is_told(encoding):
    content = f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode()
    file = sources.SourceFile(sources.PurePosixPath("a.xmi"), content)
    with pytest.raises(sources.DataError, match="encoding that it declares is not read"):
        sources.refuse_entities(file)
