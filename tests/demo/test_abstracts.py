"""What the prefix on abstracts learns from: whole sentences that a linear model picks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.demo.records import read_lines
from app.demo.scitldr.ranker import SentenceRanker
from app.demo.scitldr.sentences import is_whole, whole_sentences, without_opening
from app.demo.scitldr.split import write_abstracts

THINGS = ("nets", "trees", "codes", "games", "waves", "cells", "maps", "words")


def abstract(number: int) -> tuple[str, str]:
    """An abstract whose second sentence agrees with its summary, and the summary."""
    thing = f"{THINGS[number % 8]} of kind {number}"
    text = (
        f"It is known that much has been said about science. In this paper, we offer a theory of"
        f" {thing} with proofs. Code is on the public site for everyone."
    )
    return text, f"A theory of {thing} with proofs"


@pytest.fixture(scope="module")
def ranker() -> SentenceRanker:
    made = SentenceRanker()
    made.train(*zip(*map(abstract, range(60)), strict=True))
    return made


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Liu et al. (2016) found a way to rest. We show a much better way!",
            ["Liu et al. (2016) found a way to rest.", "We show a much better way!"],
        ),
        (
            "Too short here. Models, e.g. BART, are good at this. This fragment is not one",
            ["Models, e.g. BART, are good at this."],
        ),
        ("Why do large nets learn? (We do not know that.)", ["Why do large nets learn?"]),
    ],
)
def test_an_abstract_has_whole_sentences_of_five_words_or_more(text: str, found: list[str]) -> None:
    assert whole_sentences(text) == found


@pytest.mark.parametrize("text", ["lower case only", "No end", ""])
def test_an_abstract_without_whole_sentences_stays_as_it_is(text: str) -> None:
    assert not is_whole(text)
    assert whole_sentences(text) == [text]


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        (
            "In this paper, we offer a theory of nets with proofs.",
            "We offer a theory of nets with proofs.",
        ),
        (
            "However, in rare cases this may lead to a loss.",
            "In rare cases this may lead to a loss.",
        ),
        (
            "Here we offer a theory of nets with proofs.",
            "We offer a theory of nets with proofs.",
        ),
        ("In this paper, we offer a theory.", "In this paper, we offer a theory."),
        (
            "Based on BERT (Devlin, 2019), we offer a theory of nets with proofs.",
            "Based on BERT (Devlin, 2019), we offer a theory of nets with proofs.",
        ),
    ],
)
def test_an_opening_goes_if_a_sentence_remains(sentence: str, left: str) -> None:
    assert without_opening(sentence) == left


def test_the_ranker_picks_the_kind_of_sentence_that_agrees_with_summaries(
    ranker: SentenceRanker,
) -> None:
    for number in range(60, 80):
        text, _ = abstract(number)
        assert ranker.pick(text) == whole_sentences(text)[1]
        assert SentenceRanker().pick(text) == whole_sentences(text)[0]


def test_the_parts_are_disjoint_and_training_targets_are_sentences(tmp_path: Path) -> None:
    folder = tmp_path / "scitldr"
    folder.mkdir()
    others = [(f"Nothing is said about the authors of number {n}.", "Nothing") for n in range(9)]
    for part, numbers in (("train", range(200)), ("dev", range(190, 230))):
        pairs = [*map(abstract, numbers), *(others if part == "train" else ())]
        lines = [json.dumps({"input": text, "targets": [summary]}) for text, summary in pairs]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    counts = write_abstracts(tmp_path, tmp_path / "out")
    train, valid, held_out = (
        list(read_lines(tmp_path / "out" / f"scitldr-{part}.jsonl"))
        for part in ("train", "valid", "held-out")
    )
    assert counts["scitldr-held-out.jsonl"] == len(held_out) == 30
    assert len(valid) > 10
    inputs = [record["input"] for record in (*train, *valid, *held_out)]
    left_out = {text for text, _ in others} - {record["input"] for record in valid}
    assert len(left_out) > 1
    expected = {abstract(number)[0] for number in range(230)} | {text for text, _ in others}
    assert sorted(inputs) == sorted(expected - left_out)
    for record in train:
        [target] = record["targets"]
        assert target == without_opening(whole_sentences(record["input"])[1])
    picked = (tmp_path / "out" / "scitldr-held-out-picked.txt").read_text().splitlines()
    assert picked == [without_opening(whole_sentences(text)[1]) for text in inputs[-30:]]
