"""The demo BART's texts: spans are hidden as BART does, passages are asked, nothing held out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.demo.exchanges import Exchanges
from app.demo.pairing import infill
from app.demo.passages import ask, central, gap_sentence, in_order, sentence_with, sentences
from app.demo.records import read_sources

MASK = -1
PARTS = (
    "The net copies words from the text.",
    "Training takes long.",
    "We show that the net copies long words from any text.",
    "Code is public.",
)


@pytest.fixture(scope="module")
def exchanges(data_folder: Path) -> Exchanges:
    return Exchanges(read_sources(data_folder))


@given(st.integers(0, 200), st.integers(0, 100_000))
def test_what_is_not_hidden_stays_in_order_and_no_two_masks_meet(length: int, seed: int) -> None:
    corrupted = infill(range(length), MASK, random.Random(seed))
    kept = [token for token in corrupted if token != MASK]
    assert kept == sorted(set(kept))
    assert (MASK, MASK) not in set(zip(corrupted, corrupted[1:], strict=False))
    assert length - len(kept) == round(0.3 * length)


def test_a_span_of_mean_three_becomes_one_mask_and_some_spans_are_empty() -> None:
    spans = [
        gap
        for seed in range(200)
        for gap in _spans_of(infill(range(100), MASK, random.Random(seed)), 100)
    ]
    assert 2.7 < sum(spans) / len(spans) < 3.1
    assert 0.02 < spans.count(0) / len(spans) < 0.09


def _spans_of(corrupted: list[int], length: int) -> list[int]:
    """How many tokens each mask stands for."""
    framed = [-1, *corrupted, length]
    spans = []
    last = -1
    for token, following in zip(corrupted, framed[2:], strict=True):
        if token == MASK:
            spans.append(following - last - 1)
        else:
            last = token
    return spans


def test_hiding_depends_on_the_seed_alone() -> None:
    first, again, other = (infill(range(50), MASK, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_held_out_files_and_lines_never_reach_the_exchanges(exchanges: Exchanges) -> None:
    for number in range(1500):
        exchange = exchanges.exchange(number)
        both = f"{exchange.source} {exchange.target}"
        assert "SECRET" not in both
        assert "eattype" not in both.lower()


def test_an_exchange_is_the_same_every_time(exchanges: Exchanges, data_folder: Path) -> None:
    again = Exchanges(read_sources(data_folder))
    for number in range(50):
        assert exchanges.exchange(number) == again.exchange(number)


def test_the_target_of_infilling_is_the_whole_text(exchanges: Exchanges) -> None:
    drawn = [exchanges.exchange(number) for number in range(300)]
    restored = [exchange for exchange in drawn if exchange.restore]
    assert 60 < len(restored) < 180
    assert all(exchange.source == exchange.target for exchange in restored)
    assert all(exchange.source and exchange.target for exchange in drawn)


def test_sentences_end_where_a_capital_follows() -> None:
    assert sentences("We win. By 3.5 points! No? (Yes.) #A#: hi. b") == [
        "We win.",
        "By 3.5 points!",
        "No?",
        "(Yes.) #A#: hi. b",
    ]


def test_the_central_sentence_shares_most_with_the_rest() -> None:
    assert central(PARTS) in (0, 2)
    source, answer = gap_sentence(PARTS, random.Random(1))
    assert answer == PARTS[central(PARTS)]
    sources = {gap_sentence(PARTS, random.Random(seed))[0] for seed in range(20)}
    assert sorted(answer in source for source in sources) == [False, True]


def test_a_sentence_is_found_by_a_word_that_it_alone_has() -> None:
    for seed in range(20):
        source, answer = sentence_with(PARTS, random.Random(seed))
        word, _, passage = source.partition(" ? ")
        if passage:
            assert [word in part.lower() for part in PARTS].count(True) == 1
            assert word in answer.lower()
        else:
            assert answer == PARTS[0]


def test_shuffled_sentences_come_back_in_order() -> None:
    for seed in range(20):
        source, answer = in_order(PARTS, random.Random(seed))
        assert answer in " ".join(PARTS)
        assert sorted(sentences(source)) == sorted(sentences(answer))


def test_a_passage_of_one_sentence_has_no_task() -> None:
    assert ask("Only this.", random.Random(0)) is None
    asked = ask(" ".join(PARTS), random.Random(0))
    assert asked is not None
    assert " :" in asked[0] or asked[0].startswith("sentence with")
