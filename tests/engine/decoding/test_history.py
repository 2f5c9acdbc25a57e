"""What bans and penalties know of a sequence's tokens, however they came to be there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.decoding.history import TokenHistory, banned_by_ngrams
from app.model.frozen import FrozenModel
from tests.engine.harness import SteppedEngine, make_request

TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def counted(history: TokenHistory) -> dict[int, int]:
    return dict(zip(history.distinct.tolist(), history.counts.tolist(), strict=True))


@given(TOKENS, st.lists(st.integers(1, 9), max_size=9), st.integers(0, 5))
def test_tokens_are_counted_the_same_in_whatever_pieces_they_come(
    token_ids: list[int], pieces: list[int], num_prompt: int
) -> None:
    history, end = TokenHistory(num_prompt), 0
    for piece in [*pieces, len(token_ids)]:
        end = min(len(token_ids), end + piece)
        history.catch_up(token_ids[:end])
    generated = Counter(token_ids[num_prompt:])
    assert history.tokens.tolist() == token_ids
    assert counted(history) == {token: generated[token] for token in token_ids}


def test_a_copy_goes_on_by_itself() -> None:
    history = TokenHistory(2)
    history.catch_up([1, 2, 3])
    copy = history.copy()
    history.catch_up([1, 2, 3, 4, 4])
    copy.catch_up([1, 2, 3, 5])
    assert history.tokens.tolist() == [1, 2, 3, 4, 4]
    assert counted(history) == {1: 0, 2: 0, 3: 1, 4: 2}
    assert copy.tokens.tolist() == [1, 2, 3, 5]
    assert counted(copy) == {1: 0, 2: 0, 3: 1, 5: 1}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_the_banned_tokens_are_those_of_transformers(token_ids: list[int], size: int) -> None:
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([token_ids]), torch.zeros(1, 4))
    banned = torch.isinf(scores[0]).nonzero()[:, 0].tolist()
    assert banned_of(token_ids, size) == set(banned)


def test_nothing_is_banned_without_a_size_or_tokens() -> None:
    assert banned_of([1, 1, 1], 0) == set()
    assert banned_of([], 2) == set()
    assert banned_of([1, 2, 3, 1, 2], 3) == {3}


def test_beams_that_change_places_keep_each_its_own_tokens(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = SteppedEngine(tiny_gpt2, EngineConfig(), monkeypatch)
    beams = {"beam": BeamParams(8), "no_repeat_ngram_size": 2, "repetition_penalty": 1.1}
    stepped.add(make_request("it", range(20, 30), 24, **beams))
    num_checked = 0
    while stepped.terminal("it") is None:
        stepped.step()
        for row in stepped.rows:
            if row.history is not None:
                tokens = row.history.tokens.tolist()
                assert tokens == row.token_ids[: len(tokens)]
                num_checked += len(tokens) > 10
    assert num_checked > 100
    found = [*range(20, 30), *stepped.tokens("it")]
    pairs = list(zip(found, found[1:], strict=False))
    assert len(set(pairs)) == len(pairs)


def banned_of(token_ids: list[int], size: int) -> set[int]:
    return set(banned_by_ngrams(np.array(token_ids, np.int64), size).tolist())
