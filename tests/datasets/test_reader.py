"""Every format gives the same examples, and every fault is named by file and line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from app.datasets import lines, webnlg_xml
from app.datasets.example import Example
from app.datasets.reader import FORMATS, ReadOptions, data_digest, read_examples
from app.datasets.records import Columns
from app.errors import InvalidRequest

ENTRY = """<benchmark><entries>
<entry category="Airport" eid="Id1" size="2">
<originaltripleset><otriple>Aarhus | city | X</otriple></originaltripleset>
<modifiedtripleset>
<mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
<mtriple>Aarhus_Airport | runwayName | 10R/28L</mtriple>
</modifiedtripleset>
<lex comment="good" lid="Id1">Aarhus Airport serves Aarhus &amp; more.</lex>
<lex comment="bad" lid="Id2">nonsense</lex>
<lex comment="good" lid="Id3" lang="de">Auf Deutsch.</lex>
</entry>
</entries></benchmark>
"""
LINEARISED = (
    ' | Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus_Airport : runwayName : 10R/28L'
)


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def plain(path: Path, options: ReadOptions | None = None) -> list[tuple[str, tuple[str, ...], int]]:
    return [(each.input, each.targets, each.line) for each in read_examples(path, options)]


def test_csv_and_tsv_rows_are_examples_with_attributes(tmp_path: Path) -> None:
    text = 'input,target,kind\r\n"a, b","one\ntwo",x\r\nc,three,\r\n'
    table = put(tmp_path / "d.csv", b"\xef\xbb\xbf" + text.encode())
    assert read_examples(table) == [
        Example("a, b", ("one\ntwo",), 2, {"kind": ("x",)}),
        Example("c", ("three",), 4),
    ]
    tabbed = put(tmp_path / "d.tsv", "input\toutput\na\tone\n\nb\ttwo\n")
    assert plain(tabbed) == [("a", ("one",), 2), ("b", ("two",), 4)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = put(tmp_path / "d.csv", "q,first,second,target\na,1,2,3\nb,1,,3\n")
    options = ReadOptions(columns=Columns("q", ("first", "second")))
    assert plain(table, options) == [("a", ("1", "2"), 2), ("b", ("1",), 3)]
    record = put(tmp_path / "d.jsonl", '{"q": "a", "first": ["1", "2"]}')
    assert plain(record, ReadOptions(columns=Columns("q", ("first",)))) == [("a", ("1", "2"), 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input,target\na,b\nc\n", "d.csv:3: the row has 1 cells"),
        ("input,target\na,b\nc, \n", "d.csv:3: `target`: every target"),
        ("input,target\n ,b\n", "d.csv:2: `input` must be"),
        ("question,target\na,b\n", "d.csv:1: there is no column `input`; .*--input-column"),
        ("input,answer\na,b\n", "d.csv:2: give `target`"),
        ("input,input\na,b\n", "d.csv:1: two columns"),
        ('input,target\na,"b\nc\n', "d.csv:2: the row cannot be read"),
        ("input,target\na\0,b\n", "d.csv:2: `input` has a NUL"),
        ("input,target\n", "d.csv: there is no example"),
        (f"input,target\na,{'x' * 200_000}\n", "d.csv:2: .*field larger than"),
    ],
)
def test_a_bad_table_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_examples(put(tmp_path / "d.csv", text))


def test_e2e_csv_is_linearised_and_grouped(tmp_path: Path) -> None:
    table = put(
        tmp_path / "devset.csv",
        "mr,ref\n"
        '"name[Blue Spice], eatType[coffee shop], priceRange[£20-25]",One.\n'
        '"name[Aromi], near[Café X]",Two.\n'
        '"name[Blue Spice], eatType[coffee shop], priceRange[£20-25]",Three.\n',
    )
    assert plain(table) == [
        ("name : Blue Spice | eatType : coffee shop | priceRange : £20-25", ("One.", "Three."), 2),
        ("name : Aromi | near : Café X", ("Two.",), 3),
    ]
    bad = put(tmp_path / "bad.csv", "mr,ref\nname Blue Spice,One.\n")
    with pytest.raises(InvalidRequest, match=r"bad\.csv:2: the meaning representation"):
        read_examples(bad)


def test_the_authors_e2e_lines_keep_their_source(tmp_path: Path) -> None:
    path = put(
        tmp_path / "src1_valid.txt",
        "name : Blue Spice | Type : pub||Blue Spice is a pub . \r\n"
        "name : Blue Spice | Type : pub||A pub .\r\n",
    )
    assert plain(path) == [
        ("name : Blue Spice | Type : pub", ("Blue Spice is a pub .", "A pub ."), 1)
    ]


@pytest.mark.parametrize(
    ("line", "word"),
    [("no bars", "there is no `||`"), ("a|| ", "the target must"), ("||b", "the source must")],
)
def test_a_bad_e2e_line_is_named(tmp_path: Path, line: str, word: str) -> None:
    path = put(tmp_path / "d.txt", f"a||b\n{line}\n")
    with pytest.raises(InvalidRequest) as caught:
        read_examples(path)
    assert f"d.txt:2: {word}" in caught.value.message


def test_webnlg_xml_keeps_good_english_texts(tmp_path: Path) -> None:
    (example,) = read_examples(put(tmp_path / "airport.xml", ENTRY))
    assert example == Example(
        LINEARISED,
        ("Aarhus Airport serves Aarhus & more.",),
        2,
        {"category": ("Airport",), "size": ("2",)},
    )


def test_enriched_webnlg_and_folders_of_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "1triples").mkdir()
    put(tmp_path / "1triples" / "a.xml", ENTRY)
    enriched = ENTRY.replace("Aarhus_Airport", "B").replace(
        "Aarhus Airport serves Aarhus &amp; more.",
        "<references><reference>B</reference></references><text>B it is.</text>",
    )
    put(tmp_path / "b.xml", enriched)
    assert [each.targets for each in read_examples(tmp_path)] == [
        ("Aarhus Airport serves Aarhus & more.",),
        ("B it is.",),
    ]


@pytest.mark.parametrize("below", [("train", "test"), ("en/train", "en/test"), ("", "test")])
def test_training_and_test_parts_of_a_release_are_not_mixed(
    tmp_path: Path, below: tuple[str, str]
) -> None:
    for place, name in zip(below, ("1_train.xml", "Constrained_latest.xml"), strict=True):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        put(tmp_path / place / name, ENTRY)
    with pytest.raises(InvalidRequest) as caught:
        read_examples(tmp_path)
    first = tmp_path / (below[0] or "1_train.xml")
    assert "several parts of a data set (" in caught.value.message
    assert caught.value.message.endswith(f"must not be mixed; give one of them, such as {first}")
    assert len(read_examples(tmp_path / below[1])) == 1


def test_an_entry_without_a_good_text_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no example in it"):
        read_examples(put(tmp_path / "d.xml", ENTRY.replace('"good"', '"bad"')))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "d.xml:1: the file declares a document type"),
        ("<benchmark>\n<entry>\n", "d.xml:3: the file is not XML: no element found"),
        ("<a>\n<b></a>", "d.xml:2: the file is not XML: mismatched tag"),
        (ENTRY.replace(" | runwayName | ", " "), "d.xml:6: a triple must look like"),
        (
            ENTRY.replace("Aarhus Airport serves Aarhus &amp; more.", ""),
            "d.xml:8: a lexicalisation",
        ),
        ('<x><entry size="1">\n</entry></x>', "d.xml:1: the entry has no `mtriple`"),
        ("<a>" * 20, "d.xml:1: more than 16 elements"),
        ("<a>\udcff</a>".encode("utf-8", "surrogateescape"), "d.xml:1: the file is not XML"),
    ],
)
def test_xml_that_is_broken_or_dangerous_is_refused(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_examples(put(tmp_path / "d.xml", text))


def webnlg_json(**changed: object) -> str:
    facts = {
        "category": "Airport",
        "lexicalisations": [
            {"comment": "good", "lex": "Aarhus Airport serves Aarhus."},
            {"comment": "bad", "lex": "nonsense"},
        ],
        "modifiedtripleset": [
            {"subject": "Aarhus_Airport", "property": "cityServed", "object": '"Aarhus, Denmark"'},
            {"subject": "Aarhus_Airport", "property": "runwayName", "object": "10R/28L"},
        ],
        "size": "2",
        **changed,
    }
    return json.dumps({"entries": [{"1": facts}]}, indent=1)


def test_webnlg_json_has_the_same_inputs_as_its_xml(tmp_path: Path) -> None:
    assert read_examples(put(tmp_path / "train.json", webnlg_json())) == [
        Example(
            LINEARISED,
            ("Aarhus Airport serves Aarhus.",),
            1,
            {"category": ("Airport",), "size": ("2",)},
        )
    ]


def test_dart_json_is_linearised_with_relations_in_lower_case(tmp_path: Path) -> None:
    document = [
        {
            "tripleset": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "Location", "NC"]],
            "subtree_was_extended": False,
            "annotations": [{"source": "WikiSQL", "text": "One. "}, {"source": "E2E", "text": "2"}],
        }
    ]
    assert read_examples(put(tmp_path / "dart.json", json.dumps(document))) == [
        Example(
            "Mars Hill : joined : 1973 | Mars Hill : location : NC",
            ("One.", "2"),
            1,
            {"source": ("WikiSQL", "E2E")},
        )
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{]", "d.json:2: the file is not JSON"),
        ("[1]", "d.json: entry 1 must look like"),
        ('[{"tripleset": [["a", "b"]], "annotations": []}]', "entry 1: a triple must have three"),
        ('[{"tripleset": [["a", "b", 3]], "annotations": []}]', "entry 1: a triple must have"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": []}]', "entry 1 must have at least"),
        (
            '[{"tripleset": [["a", "b", "c"]], "annotations": [{"text": ""}]}]',
            "entry 1: every target must",
        ),
        (
            '[{"tripleset": [["a", "\\ud800", "c"]], "annotations": [{"text": "x"}]}]',
            "entry 1: a part of a triple has a NUL or a lone surrogate",
        ),
        ("[" * 100_000, "nested too deeply"),
        ('{"entries": [{"1": {}}]}', "entry 1 must look like"),
        ('[{"tripleset": NaN}]', "it has NaN"),
        (webnlg_json(modifiedtripleset=[{"subject": "a"}]), "entry 1 must look like"),
        (webnlg_json(modifiedtripleset=[]), "entry 1 must have at least one triple"),
    ],
)
def test_a_bad_document_is_named_by_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_examples(put(tmp_path / "d.json", text))


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    path = put(
        tmp_path / "d.json", '{"input": "a", "target": "b"}\n{"input": "c", "target": "d"}\n'
    )
    assert plain(path) == [("a", ("b",), 1), ("c", ("d",), 2)]


def test_source_and_target_files_belong_together(tmp_path: Path) -> None:
    source = put(tmp_path / "train.source", "An article .\nAnother .\n")
    target = put(tmp_path / "train.target", "One .\r\nTwo .\r\n")
    pairs = [("An article .", ("One .",), 1), ("Another .", ("Two .",), 2)]
    assert plain(source) == plain(target) == pairs
    digest = data_digest(source)
    assert digest == data_digest(target)
    put(target, "One .\n")
    assert data_digest(source) != digest
    with pytest.raises(InvalidRequest, match=r"train\.target:2: the line is missing"):
        read_examples(source)
    put(target, "One .\n\n")
    with pytest.raises(InvalidRequest, match=r"train\.target:2: the target must"):
        read_examples(source)
    target.unlink()
    with pytest.raises(InvalidRequest, match=r"train\.target: cannot be read"):
        read_examples(source)


def test_a_split_of_a_file_that_has_none_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"input": "a", "target": "b"}')
    with pytest.raises(InvalidRequest, match="format jsonl has no splits, so there is no `dev`"):
        read_examples(path, ReadOptions(split="dev"))


def test_folders_of_hugging_face_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"input": ["a", "b"], "targets": [["one", "two"], ["three"]], "kind": ["x", "y"]}
    data = datasets.Dataset.from_dict(rows)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, valid=data).save_to_disk(tmp_path / "many")
    expected = [
        Example("a", ("one", "two"), 1, {"kind": ("x",)}),
        Example("b", ("three",), 2, {"kind": ("y",)}),
    ]
    assert read_examples(tmp_path / "one") == expected
    assert read_examples(tmp_path / "many", ReadOptions(split="valid")) == expected
    with pytest.raises(InvalidRequest, match="several splits; choose one of train, valid"):
        read_examples(tmp_path / "many")
    with pytest.raises(InvalidRequest, match="no column `q`; the data set has input"):
        read_examples(tmp_path / "one", ReadOptions(columns=Columns("q")))
    assert data_digest(tmp_path / "one") == data_digest(tmp_path / "one")
    assert data_digest(tmp_path / "one") != data_digest(tmp_path / "many")
    put(tmp_path / "one" / "state.json", "{}")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_examples(tmp_path / "one")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "state.json", "{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'polyprefix\[train\]'"):
        read_examples(tmp_path)


def test_a_folder_of_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="give --data a file"):
        read_examples(tmp_path)


def test_a_list_of_records_is_read_as_records(tmp_path: Path) -> None:
    records = [{"input": "a", "targets": ["one", "two"]}, {"input": "b", "target": "three"}]
    path = put(tmp_path / "d.json", json.dumps(records, indent=1))
    assert plain(path) == [("a", ("one", "two"), 1), ("b", ("three",), 2)]
    columns = ReadOptions(columns=Columns("q", ("r",)))
    assert plain(put(tmp_path / "e.json", '[{"q": "a", "r": "b"}]'), columns) == [("a", ("b",), 1)]
    bad = put(tmp_path / "bad.json", '[{"input": "a", "target": "b"}, {"input": "a"}]')
    with pytest.raises(InvalidRequest, match=r"bad\.json: entry 2: give `target`"):
        read_examples(bad)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("d.parquet", b"PAR1", "d.parquet: this is a Parquet file, .*read_parquet"),
        ("d.jsonl", b"PAR1", "a Parquet file"),
        ("d.zip", b"PK\x03\x04", "a zip archive or an Excel file, .*save the table as CSV"),
        ("d.csv.gz", b"\x1f\x8b\x08", "a gzip archive, not a text; unpack it"),
        ("d.csv", b"\x1f\x8b\x08", "a gzip archive"),
    ],
)
def test_a_file_that_is_no_text_is_named(
    tmp_path: Path, name: str, start: bytes, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_examples(put(tmp_path / name, start + bytes(50)))


def test_a_folder_of_parquet_files_is_named(tmp_path: Path) -> None:
    put(tmp_path / "train.parquet", b"PAR1")
    with pytest.raises(InvalidRequest, match=r"holds Parquet files.*save_to_disk"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("d.csv", "input;target\na;b\n", "separated by semicolons; save the table with commas"),
        ("d.csv", "input\ttarget\na\tb\n", "separated by tabs; give --format tsv"),
        ("d.tsv", "input,target\na,b\n", "separated by commas; give --format csv"),
    ],
)
def test_a_table_with_another_separator_is_told(
    tmp_path: Path, name: str, text: str, advice: str
) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name}:1: there is no column .*{advice}"):
        read_examples(put(tmp_path / name, text))


def test_lines_may_end_with_carriage_returns_alone(tmp_path: Path) -> None:
    table = put(tmp_path / "d.csv", "input,target\ra,one\rb,two\r")
    assert plain(table) == [("a", ("one",), 2), ("b", ("two",), 3)]
    records = put(tmp_path / "d.jsonl", '{"input": "a", "target": "é"}\r{"input": "b"}')
    with pytest.raises(InvalidRequest, match=r"d\.jsonl:2: give `target`"):
        read_examples(records)
    stray = put(tmp_path / "d.source", "a\rb\nc\n")
    put(tmp_path / "d.target", "one\ntwo\n")
    assert plain(stray) == [("a\rb", ("one",), 1), ("c", ("two",), 2)]


def test_a_format_that_the_content_told_is_named_in_errors(tmp_path: Path) -> None:
    path = put(tmp_path / "d.txt", "name : Aromi\nname : Cotto||Cotto.\n")
    with pytest.raises(InvalidRequest, match=r"d\.txt:1: .*in the format jsonl; --format names"):
        read_examples(path)
    with pytest.raises(InvalidRequest, match=r"d\.txt:1: there is no `\|\|`") as caught:
        read_examples(path, ReadOptions(format="e2e"))
    assert "--format" not in caught.value.message


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = put(tmp_path / "d.dat", "input,target\na,b\n")
    assert plain(path, ReadOptions(format="csv")) == [("a", ("b",), 2)]
    with pytest.raises(InvalidRequest, match=", ".join(FORMATS)):
        read_examples(path, ReadOptions(format="parquet"))


def test_inputs_that_repeat_are_grouped_and_repeated_pairs_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [("a", "one", "x"), ("b", "two", "x"), ("a", "three", "y"), ("a", "one", "x")]
    text = "\n".join(
        json.dumps({"input": source, "target": target, "kind": kind})
        for source, target, kind in records
    )
    with caplog.at_level(logging.WARNING):
        examples = read_examples(put(tmp_path / "d.jsonl", text))
    assert examples == [
        Example("a", ("one", "three", "one"), 1, {"kind": ("x", "y")}),
        Example("b", ("two",), 2, {"kind": ("x",)}),
    ]
    assert "1 pairs of input and target are given more than once" in caplog.text


def test_whole_documents_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 50)
    for name, text in (("d.xml", ENTRY), ("d.json", webnlg_json())):
        with pytest.raises(InvalidRequest, match="longer than 50 bytes"):
            read_examples(put(tmp_path / name, text))
    monkeypatch.undo()
    monkeypatch.setattr(webnlg_xml, "MAX_TEXT", 10)
    with pytest.raises(InvalidRequest, match=r"d\.xml:\d+: a text is longer than 10"):
        read_examples(tmp_path / "d.xml")


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # a sparse file
    with pytest.raises(InvalidRequest, match=r"d\.txt:1: the line is longer than"):
        read_examples(path)
