"""Beam search: what transformers finds, token for token; and each rule by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pytest
from transformers import PreTrainedModel

from app.engine.decoding.beam_search import BeamAdvance, BeamParams, BeamSearch
from tests.engine.beams import Case, by_hand, by_transformers, make_bart, make_gpt2, random_cases

END = 0
NEVER = -1e9
CASES = 8
EARLY_STOPPING = [False, True, "never"]
LENGTH_PENALTIES = [-1.0, 0.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return make_gpt2()


@pytest.fixture(scope="module")
def bart() -> PreTrainedModel:
    return make_bart()


def assert_same_as_transformers(model: PreTrainedModel, case: Case) -> None:
    expected = by_transformers(model, case)
    found = by_hand(model, case)
    scores = [item.score for item in found]
    assert scores == pytest.approx([item.score for item in expected], rel=1e-5, abs=1e-5), case
    for ours, theirs in zip(found, expected, strict=True):
        # transformers keeps copies of a beam at -1e9, where fp32 has no room for a log-probability:
        # what becomes of them are ties, which torch orders as it likes
        if theirs.score > NEVER / 1000:
            assert ours.token_ids == theirs.token_ids, case
        assert ours.finished_by_eos == (ours.token_ids[-1:] in [(end,) for end in case.eos])
        assert len(ours.logprobs) == len(ours.token_ids)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_a_decoder_finds_what_transformers_finds(
    gpt2: PreTrainedModel, length_penalty: float, early_stopping: bool | Literal["never"]
) -> None:
    for case in random_cases(CASES, length_penalty, early_stopping, forced=False):
        assert_same_as_transformers(gpt2, case)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_an_encoder_decoder_finds_what_transformers_finds(
    bart: PreTrainedModel, length_penalty: float, early_stopping: bool | Literal["never"]
) -> None:
    for case in random_cases(CASES, length_penalty, early_stopping, forced=True):
        assert_same_as_transformers(bart, case)


def test_the_cases_end_in_every_way(gpt2: PreTrainedModel) -> None:
    ways: Counter[str] = Counter()
    for early_stopping in EARLY_STOPPING:
        for case in random_cases(20, 1.0, early_stopping, forced=False):
            results = by_hand(gpt2, case)
            ended = [result.finished_by_eos for result in results]
            longest = max(len(result.token_ids) for result in results)
            ways["all at end-of-text"] += all(ended)
            ways["some at end-of-text"] += any(ended) and not all(ended)
            ways["all at the limit"] += not any(ended)
            ways["before the limit"] += longest < case.max_tokens
    assert len(ways) == 4
    assert min(ways.values()) >= 5, ways


# --- each rule by itself -----------------------------------------------------------------------


def make_search(
    num_beams: int = 2,
    *,
    max_tokens: int = 10,
    eos: Sequence[int] = (END,),
    num_results: int | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> BeamSearch:
    params = BeamParams(num_beams, length_penalty, early_stopping)
    return BeamSearch(params, max_tokens, eos, num_beams if num_results is None else num_results)


def test_the_first_step_branches_from_the_prompt_alone() -> None:
    search = make_search(3)
    assert search.running == ((),)
    advance = search.advance([[(4, -1.0), (5, -2.0), (6, -3.0), (7, -4.0)]])
    assert advance == BeamAdvance((0, 0, 0), (4, 5, 6))
    assert search.running == ((4,), (5,), (6,))


def test_beams_go_on_from_the_best_sums() -> None:
    search = make_search(2)
    search.advance([[(4, -1.0), (5, -1.5), (6, -9.0), (7, -9.5)]])
    advance = search.advance([[(4, -2.0), (5, -2.5)], [(6, -0.5), (7, -1.0)]])
    assert advance == BeamAdvance((1, 1), (6, 7))
    assert search.running == ((5, 6), (5, 7))


def test_every_row_must_have_its_candidates() -> None:
    search = make_search(2)
    with pytest.raises(ValueError, match="unpack"):
        search.advance([[(4, -1.0)], [(4, -1.0)]])
    search.advance([[(4, -1.0), (5, -1.5)]])
    with pytest.raises(ValueError, match="zip"):
        search.advance([[(4, -1.0)]])


def test_a_beam_that_ends_is_replaced_by_a_spare_one() -> None:
    search = make_search(2, num_results=1)
    advance = search.advance([[(END, -0.1), (5, -1.0), (6, -2.0), (7, -3.0)]])
    assert advance == BeamAdvance((0, 0), (5, 6))
    assert search.results()[0].token_ids == (END,)


def test_an_end_below_the_best_is_no_result() -> None:
    search = make_search(2)
    search.advance([[(4, -1.0), (5, -1.1), (END, -1.2), (6, -1.3)]])
    assert all(result.token_ids == () for result in search.results())
    assert search.running == ((4,), (5,))


def test_any_of_several_ends_will_do_and_more_spares_are_asked_for() -> None:
    search = make_search(2, eos=(0, 1))
    assert search.candidates_per_beam == 6
    assert make_search(2, eos=()).candidates_per_beam == 4
    advance = search.advance([[(1, -1.0), (0, -1.1), (6, -5.0), (7, -6.0)]])
    assert advance is None
    assert [result.token_ids for result in search.results()] == [(1,), (0,)]
    assert all(result.finished_by_eos for result in search.results())


def test_the_length_penalty_counts_the_end_and_not_the_prompt() -> None:
    search = make_search(1, length_penalty=2.0, early_stopping=True)
    search.advance([[(4, -1.0), (5, -2.0)]])
    assert search.advance([[(END, -3.0), (5, -4.0)]]) is None
    [result] = search.results()
    assert result.token_ids == (4, END)
    assert result.score == -4.0 / 2**2
    assert result.cumulative_logprob == -4.0
    assert result.logprobs == (-1.0, -3.0)


@pytest.mark.parametrize(("penalty", "best"), [(0.0, (END,)), (2.0, (5, 6, END))])
def test_the_length_penalty_chooses_between_short_and_long(
    penalty: float, best: tuple[int, ...]
) -> None:
    search = make_search(2, length_penalty=penalty, early_stopping="never", max_tokens=3)
    search.advance([[(END, -2.0), (5, -1.0), (6, -8.0), (7, -9.0)]])
    search.advance([[(6, -1.0), (7, -8.0)], [(6, -8.0), (7, -9.0)]])
    if not search.done:
        search.advance([[(END, -1.0), (7, -8.0)], [(6, -8.0), (7, -9.0)]])
    assert search.results()[0].token_ids == best


def full_search(early_stopping: bool | Literal["never"], running: float) -> BeamSearch:
    """One beam with one result of score -1 and a running beam of `running` after one token."""
    search = make_search(1, early_stopping=early_stopping, max_tokens=4)
    search.advance([[(END, -1.0), (5, running)]])
    return search


def test_early_stopping_ends_the_search_when_there_are_enough_results() -> None:
    assert full_search(True, -1.5).done
    assert full_search(True, -9.0).done


def test_without_it_the_search_ends_when_no_beam_is_better_now() -> None:
    assert full_search(False, -1.5).done
    assert not full_search(False, -0.9).done


def test_never_waits_until_no_beam_could_be_better_at_the_limit() -> None:
    assert not full_search("never", -3.9).done
    assert full_search("never", -4.1).done


def test_never_takes_beams_as_they_are_where_length_only_costs() -> None:
    search = make_search(2, early_stopping="never", length_penalty=-1.0, max_tokens=4)
    search.advance([[(4, -0.9), (END, -1.0), (5, -9.0), (6, -9.0)]])
    search.advance([[(7, -0.1), (END, -0.5), (6, -9.0)], [(6, -9.0), (7, -9.0)]])
    assert [result.score for result in search.results()] == pytest.approx([-1.0, -2.8])
    assert not search.done


def test_a_better_result_takes_the_place_of_the_worst() -> None:
    search = make_search(2)
    search.advance([[(END, -0.9), (4, -1.0), (5, -2.0), (6, -9.0)]])
    search.advance([[(END, -0.1), (7, -9.0)], [(END, -0.2), (7, -9.0)]])
    assert search.done
    assert [result.token_ids for result in search.results()] == [(4, END), (END,)]


def test_every_beam_is_a_result_at_the_limit() -> None:
    search = make_search(2, max_tokens=1)
    assert search.advance([[(4, -1.0), (END, -2.0), (6, -3.0)]]) is None
    assert search.done
    first, second = search.results()
    assert (first.token_ids, first.finished_by_eos) == ((4,), False)
    assert (second.token_ids, second.finished_by_eos) == ((END,), True)


def test_fewer_results_may_be_asked_for() -> None:
    search = make_search(3, num_results=1, max_tokens=1)
    search.advance([[(4, -1.0), (5, -2.0), (6, -3.0)]])
    assert [result.token_ids for result in search.results()] == [(4,)]


def test_after_a_forced_token_one_of_its_copies_branches() -> None:
    search = make_search(3)
    assert search.advance([[(7, 0.0), (4, -math.inf)]]) == BeamAdvance((0, 0, 0), (7, 7, 7))
    row = [(4, -1.0), (5, -2.0), (6, -3.0), (8, -4.0), (9, -5.0), (10, -6.0)]
    assert search.advance([row] * 3) == BeamAdvance((0, 0, 0), (4, 5, 6))


def test_an_impossible_token_fills_a_beam_and_is_never_a_result() -> None:
    search = make_search(2, max_tokens=2)
    search.advance([[(4, -1.0), (5, -2.0)]])
    search.advance([[(5, -1.0), (6, -math.inf)], [(5, -math.inf), (6, -math.inf)]])
    assert search.running == ((4, 5), (4, 6))
    first, second = search.results()
    assert (first.token_ids, first.score) == ((4, 5), -1.0)
    assert (second.token_ids, second.score, second.cumulative_logprob) == ((), NEVER, 0.0)


def test_a_beam_without_candidates_gives_its_place_to_an_impossible_copy() -> None:
    search = make_search(2, max_tokens=3)
    search.advance([[(4, -1.0), (5, -2.0)]])
    assert search.advance([[(5, -1.0)], []]) == BeamAdvance((0, 0), (5, 5))
    assert search.advance([[(6, -1.0)], [(6, -1.0)]]) is None
    assert [result.token_ids for result in search.results()] == [(4, 5, 6), ()]


def test_with_no_way_on_the_search_is_done() -> None:
    search = make_search(2)
    search.advance([[(4, -1.0), (5, -2.0)]])
    assert search.advance([[(4, -math.inf)], [(5, -math.inf)]]) is None
    empty = make_search(2)
    assert empty.advance([[]]) is None
    assert empty.done
    assert [result.token_ids for result in empty.results()] == [(), ()]


def test_equal_scores_keep_the_order_of_beams_and_candidates() -> None:
    search = make_search(2)
    assert search.advance([[(9, -1.0), (4, -1.0), (6, -1.0)]]) == BeamAdvance((0, 0), (9, 4))
    assert search.advance([[(5, -1.0)], [(3, -1.0)]]) == BeamAdvance((0, 1), (5, 3))
