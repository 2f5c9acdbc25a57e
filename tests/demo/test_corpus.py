"""Pretraining sees no E2E and nothing held out; documents are reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.datasets.reader import data_digest
from app.demo.corpus import END, Corpus, framed
from app.demo.records import is_held_out, parse_facts, read_lines, read_sources
from app.demo.splits import split_all
from app.registry.shipped.manifest import read_manifest
from app.settings import SHIPPED_STORE

CUT = {
    "a9aee4aac58703de74e176594cc01053ef9eab06cd440fc92632b17914c02b1a": "e2e-train",
    "379101156090ad20707b77423fe95bd2b5f3d3c9d4b9d309af6e9c51b95ca29d": "restaurants-train",
    "1e60fd24d1cd878d999a7b9bb17392be4b266d6781a0fb573b5e7605a9d5ef3d": "restaurants-held-out",
    "668393dc01be4d8704b0c242229b13f3b6d7c2269118083bfa0c33b475ec9285": "scitldr-train",
    "a48cdbb62ef1610caf00a0daabb87eca55b45f936e4b7a56c1db13853b4055d4": "scitldr-held-out",
    "3f51c8677f875411f53e1af4404f37e8bf9f8bb8d537140cf7c0c8a707eb69e6": "webnlg-airport-train",
    "1f961961855b32f53ab4ae51622874c10cacb240e1314bebacd486645b6936ba": "webnlg-airport-valid",
    "2594705ba21997c14f97acc78af6b7126f1b65c172bc26f308a205e4959994c0": "webnlg-astronaut-train",
    "f47ea147d3259372d8a14502830add9ce912855be8186260b0fec1f898a20796": "webnlg-astronaut-valid",
    "0a813b03ec5dc4acaa8e31bfe8a0a485dd087b31e259a433738dcc6b3e5b2a37": "webnlg-university-train",
    "92e725373eea5cd463c0a25206d70fd149fddbde7dbc759cdfd636e11dcdb7f5": "webnlg-university-valid",
    # an earlier cut, of the first versions
    "f7b41a826f0f27ae155945211966c1c3578e5e29620d65f177ee1918c3c8212e": "e2e-train",
    "ae7c4e43268d27da52547986813a0c4db69215ad65b1760562512af7c54881be": "e2e-valid",
    "e97e8daa71b500afea275e594ef90481312bfe4c804e3c9c954dd9ae92edf33c": "scitldr-train",
    "54289854acf9f479ca70ef4ee53b45e11ad38440ea9fbb4839aa0e74305cb4c2": "scitldr-valid",
}
"""The digests of what `python -m app.demo.splits` cuts from E2E's development split, SciTLDR's and
WebNLG's training and development splits, and the files' names: it reads no test split."""


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


def test_shipped_prefixes_saw_files_cut_from_training_and_development_splits_alone() -> None:
    for name, prefix in read_manifest(SHIPPED_STORE).prefixes.items():
        for version in prefix.versions:
            for part in ("data", "validation"):
                file = version.provenance[part]
                found = CUT.get(file["sha256"])
                assert file["name"] == f"{found}.jsonl", (name, version.digest, part)


def test_the_files_that_were_cut_are_named_by_the_digest_that_provenance_has() -> None:
    held_out = Path(__file__).parent / "data" / "restaurants-held-out.jsonl"
    assert CUT[data_digest(held_out)] == held_out.stem


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
