"""INCEpTION: WebAnno TSV 3.x, UIMA CAS XMI, and the archives of both."""

import io
import zipfile
from xml.sax.saxutils import quoteattr

import pytest
from annotated import OTHER, TEXT, at, units

from psy_agents_noaug.importers import sources

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


@pytest.mark.parametrize("minor", [1, 2, 3])
def test_tsv_is_read_in_all_versions_of_three(imported, written, minor):
    content, text = tsv(SENTENCES, CELLS, minor=minor)
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
    described = [
        (own, annotation, feature("symptom") + feature("sure", "uima.cas.Boolean")),
        ("webanno.custom.Cause", annotation, link),
        ("webanno.custom.Document", "uima.cas.AnnotationBase", feature("label")),
        ("de.tudarmstadt.ukp.dkpro.core.api.segmentation.type.Token", annotation, ""),
    ]
    return TYPES.format(
        types="\n".join(TYPE.format(name=n, parent=p, features=f) for n, p, f in described)
    )


def xmi(text, spans, labels=(), head=""):
    """A CAS; offsets are UTF-16 units, as Java writes them."""
    elements, ids = [], []

    def add(element):
        ids.append(len(ids) + 10)
        elements.append(element.format(id=ids[-1]))

    for words, label in spans:
        start, end = at(words, text, utf16=True)
        add(
            f'<custom:Symptom xmi:id="{{id}}" sofa="1" begin="{start}" end="{end}" '
            f'symptom={quoteattr(label)} sure="true"/>'
        )
    add('<type:Token xmi:id="{id}" sofa="1" begin="0" end="2"/>')
    for label in labels:
        add(f'<custom:Document xmi:id="{{id}}" sofa="1" label={quoteattr(label)}/>')
    if len(spans) > 1:
        add('<custom:Cause xmi:id="{id}" sofa="1" begin="0" end="2" Governor="10" Dependent="11"/>')
    quoted = quoteattr(text, {"\n": "&#10;"})
    return f"""<?xml version="1.0" encoding="UTF-8"?>{head}
<xmi:XMI xmlns:xmi="http://www.omg.org/XMI" xmlns:cas="http:///uima/cas.ecore"
 xmlns:custom="http:///webanno/custom.ecore"
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
    assert result.left("feature Symptom.sure") == 2


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
    ],
)
def test_xmi_that_is_malformed_or_declares_entities_is_refused(refused, written, content, told):
    written("corpus/TypeSystem.xml", types())
    message = refused("inception", written("corpus/post1.xmi", content).parent)
    assert "post1.xmi: cannot be read" in message
    assert told in message
    assert "xylozephyrquill" not in message


@pytest.mark.usefixtures("cassis")
def test_xmi_without_its_types_is_refused(refused, written):
    assert "must come with its TypeSystem.xml" in refused("inception", written("post1.xmi", XMI))


def test_entities_are_found_in_any_encoding():
    content = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a []><a/>'.encode("utf-16")
    file = sources.SourceFile(sources.PurePosixPath("a.xmi"), content)
    with pytest.raises(sources.DataError, match="document type"):
        sources.refuse_entities(file)
