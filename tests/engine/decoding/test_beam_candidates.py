"""Candidates of beams: the best next tokens, after bans, biases and penalties on probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.decoding.beam_candidates import find_candidates
from app.engine.decoding.beam_search import BeamParams
from app.engine.decoding.sampler import top
from app.engine.sequence import TokenSequence
from tests.engine.rows import make_row

VOCABULARY = 320
EOS = (0,)


def logits_of(rows: int, *, seed: int = 0, columns: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def beam_row(
    num_beams: int = 4, generated: tuple[int, ...] = (), **sampling: object
) -> TokenSequence:
    return make_row(generated=generated, beam=BeamParams(num_beams), **sampling)


def only(logits: torch.Tensor, row: TokenSequence) -> list[tuple[int, float]]:
    [found] = find_candidates(logits, [row], EOS)
    assert found is not None
    return list(found)


@settings(max_examples=150)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 3000),
    count=st.integers(1, 60),
    seed=st.integers(0, 1000),
    ties=st.booleans(),
)
def test_the_top_is_that_of_torch_for_any_shape(
    rows: int, columns: int, count: int, seed: int, ties: bool
) -> None:
    values = logits_of(rows, seed=seed, columns=columns)
    if ties:
        values = values.mul(2).round()
    count = min(count, columns)
    best, places = top(values, count)
    expected = values.topk(count, dim=-1)
    assert torch.equal(best, expected.values)
    assert torch.equal(values.gather(1, places), best)
    assert all(len(set(row)) == count for row in places.tolist())
    if not ties:
        assert torch.equal(places, expected.indices)


@pytest.mark.parametrize("place", [0, 127, 128, 2047, 2048, 2099])
def test_best_finds_the_largest_at_every_place(place: int) -> None:
    """2,100 columns are 16 whole blocks and a rest."""
    values = logits_of(2, columns=2100)
    values[1, place] = 99.0
    _, places = top(values, 3)
    assert int(places[1, 0]) == place


def test_columns_that_are_barred_come_last() -> None:
    values = torch.full((1, 1000), -math.inf)
    values[0, [5, 700, 999]] = torch.tensor([1.0, 3.0, 2.0])
    best, places = top(values, 5)
    assert places[0, :3].tolist() == [700, 999, 5]
    assert best[0, 3:].tolist() == [-math.inf] * 2


def test_candidates_are_log_probabilities_best_first_and_two_for_every_beam() -> None:
    logits = logits_of(2)
    expected = torch.log_softmax(logits, dim=-1).topk(8)
    found = find_candidates(logits, [beam_row(4), beam_row(2)], EOS)
    for index, count in enumerate((8, 4)):
        candidates = found[index]
        assert candidates is not None
        assert [token for token, _ in candidates] == expected.indices[index, :count].tolist()
        values = [value for _, value in candidates]
        assert values == pytest.approx(expected.values[index, :count].tolist(), abs=1e-6)


def test_several_end_tokens_ask_for_more_candidates() -> None:
    [found] = find_candidates(logits_of(1), [beam_row(3)], (0, 1, 2))
    assert found is not None
    assert len(found) == 4 * 3


def test_a_small_vocabulary_gives_what_it_has() -> None:
    assert len(only(logits_of(1, columns=5), beam_row(4))) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 7, VOCABULARY - 1])
def test_a_row_that_is_not_finite_has_none_and_leaves_the_others(bad: float, place: int) -> None:
    logits = logits_of(3)
    rows = [beam_row(4), beam_row(4, min_tokens=3), beam_row(4)]
    expected = find_candidates(logits, rows, EOS)
    logits[1, place] = bad
    found = find_candidates(logits, rows, EOS)
    assert found[1] is None
    assert [found[0], found[2]] == [expected[0], expected[2]]


def test_the_logits_stay_as_they_are() -> None:
    logits = logits_of(1)
    before = logits.clone()
    find_candidates(logits, [beam_row(logit_bias={4: 3.0}, min_tokens=2)], EOS)
    assert torch.equal(logits, before)


def test_the_end_token_is_barred_before_min_tokens() -> None:
    logits = logits_of(1)
    logits[0, 0] = 9.0
    free, barred = only(logits, beam_row()), only(logits, beam_row(min_tokens=1))
    assert free[0][0] == 0
    assert barred[:7] == free[1:]
    assert only(logits, beam_row(generated=(9,), min_tokens=1)) == free


def test_no_ngram_comes_twice() -> None:
    logits = logits_of(1)
    row = beam_row(generated=(7, 8, 7), no_repeat_ngram_size=2)
    logits[0, 8] = 20.0
    assert only(logits, beam_row(generated=(7, 8, 7)))[0][0] == 8
    assert 8 not in [token for token, _ in only(logits, row)]


def test_biases_and_penalties_act_on_log_probabilities() -> None:
    logits = logits_of(1)
    logprobs = torch.log_softmax(logits[0], dim=-1)
    biased = dict(only(logits, beam_row(logit_bias={5: 20.0})))
    assert biased[5] == pytest.approx(float(logprobs[5]) + 20.0, abs=1e-5)
    best = int(logprobs.argmax())
    penalised = dict(only(logits, beam_row(8, (best,), repetition_penalty=1.1)))
    assert penalised[best] == pytest.approx(1.1 * float(logprobs[best]), abs=1e-5)
    frequent = dict(only(logits, beam_row(8, (best, best), frequency_penalty=0.25)))
    assert frequent[best] == pytest.approx(float(logprobs[best]) - 0.5, abs=1e-5)


def test_a_forced_token_is_the_only_candidate() -> None:
    row = beam_row(max_tokens=3)
    row.forced_first, row.forced_last = 11, 12
    assert only(logits_of(1), row) == [(11, 0.0)]
    row.token_ids.append(11)
    assert len(only(logits_of(1), row)) == 8
    row.token_ids.append(5)
    assert only(logits_of(1), row) == [(12, 0.0)]


def test_a_forced_token_does_not_hide_that_the_logits_are_not_finite() -> None:
    row = beam_row()
    row.forced_first = 11
    assert find_candidates(torch.full((1, VOCABULARY), math.nan), [row], EOS) == [None]
