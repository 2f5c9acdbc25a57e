"""Pretraining sees no E2E and nothing held out; documents are reproducible."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.demo.corpus import END, Corpus, framed
from app.demo.records import is_held_out, parse_facts, read_lines, read_sources
from app.demo.splits import split_all
from app.registry.shipped.manifest import read_manifest
from app.settings import SHIPPED_STORE


@pytest.fixture(scope="module")
def corpus(data_folder: Path) -> Corpus:
    return Corpus(read_sources(data_folder))


def test_held_out_files_and_lines_never_reach_the_corpus(corpus: Corpus) -> None:
    texts = [corpus.document(number).text for number in range(1500)]
    assert not [text for text in texts if "SECRET" in text or "eattype" in text.lower()]


def test_the_held_out_part_of_dart_is_not_among_the_sources(data_folder: Path) -> None:
    sources = read_sources(data_folder)
    subjects = {pair.facts[0].subject for pair in sources.pairs if pair.origin == "dart"}
    held_out = {f"Team {n}" for n in range(40) if is_held_out(f"Team {n} : wins : {n}")}
    assert held_out
    assert subjects == {f"Team {n}" for n in range(40)} - held_out


def test_training_and_validation_files_are_disjoint_and_complete(
    data_folder: Path, tmp_path: Path
) -> None:
    counts = split_all(data_folder, tmp_path)
    assert counts["webnlg-astronaut-train.jsonl"] == counts["webnlg-astronaut-valid.jsonl"] == 1
    assert counts["dart-train.jsonl"] + counts["dart-valid.jsonl"] == 40
    assert counts["dialogsum-train.jsonl"] + counts["dialogsum-valid.jsonl"] == 1


def test_an_abstract_of_the_training_split_is_not_held_out(
    data_folder: Path, tmp_path: Path
) -> None:
    counts = split_all(data_folder, tmp_path)
    [held_out] = read_lines(tmp_path / "scitldr-held-out.jsonl")
    assert counts["scitldr-held-out.jsonl"] == 1
    assert held_out["input"] == "Another abstract, of two lines."


def test_no_file_for_training_or_validation_has_a_line_of_a_test_split(
    data_folder: Path, tmp_path: Path
) -> None:
    for name in ("webnlg", "dart", "e2e", "scitldr", "dialogsum"):
        assert "OFFICIAL TEST" in (data_folder / name / "test.jsonl").read_text()
    split_all(data_folder, tmp_path)
    for file in tmp_path.iterdir():
        assert "OFFICIAL TEST" not in file.read_text(encoding="utf-8"), file.name
    sources = read_sources(data_folder)
    assert "OFFICIAL TEST" not in str(sources)


def test_shipped_prefixes_saw_the_files_of_the_splits_and_no_test_split(
    data_folder: Path, tmp_path: Path
) -> None:
    split_all(data_folder, tmp_path)
    made = {re.sub("webnlg-.*?-", "webnlg-", file.name) for file in tmp_path.iterdir()}
    made.add("e2e-valid.jsonl")  # an earlier cut of E2E's development split
    for name, prefix in read_manifest(SHIPPED_STORE).prefixes.items():
        for version in prefix.versions:
            for part in ("data", "validation"):
                file = version.provenance[part]["name"]
                assert "test" not in file, name
                assert re.sub("webnlg-.*?-", "webnlg-", file) in made, name


def test_a_document_is_the_same_every_time(corpus: Corpus, data_folder: Path) -> None:
    again = Corpus(read_sources(data_folder))
    for number in range(50):
        assert corpus.document(number) == again.document(number)
    assert len({corpus.document(number).text for number in range(200)}) > 150


def test_stray_marks_are_cleaned(data_folder: Path) -> None:
    targets = [text for pair in read_sources(data_folder).pairs for text in pair.targets]
    assert "The test pilot Alan Bean flew on Apollo 12." in targets


def test_the_frame_is_the_one_that_prefixes_are_trained_with() -> None:
    assert framed(" name : X", "X is it.").text == f" name : X {END} X is it. {END}"


def test_facts_of_another_form_are_left_out() -> None:
    assert parse_facts("a : b") is None
    facts = parse_facts("a : b : c | d : e : f")
    assert facts is not None
    assert [fact.relation for fact in facts] == ["b", "e"]
