"""A row's own arithmetic: what is computed, what is pending, when it may end."""

from __future__ import annotations

import torch

from app.engine.request import GenerationRequest, SamplingParams
from app.engine.sequence import TokenSequence
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.engine.rows import make_row


def test_a_new_row_has_its_prompt_to_compute() -> None:
    row = make_row([5, 6, 7])
    assert (row.num_prompt, row.num_generated, row.num_pending, row.num_cached) == (3, 0, 3, 0)
    assert row.in_prefill


def test_a_chunk_leaves_the_rest_of_the_prompt_pending() -> None:
    row = make_row([5, 6, 7])
    row.num_computed = 2
    assert (row.num_pending, row.num_cached, row.in_prefill) == (1, 2, True)


def test_after_the_prompt_each_sampled_token_is_pending_until_it_is_computed() -> None:
    row = make_row([5, 6, 7])
    row.num_computed = 3
    assert (row.num_pending, row.in_prefill) == (0, False)
    row.token_ids.append(9)
    assert (row.num_generated, row.num_pending, row.in_prefill) == (1, 1, False)


def test_prefixes_take_columns_but_are_no_tokens() -> None:
    size = (1, 1, 4, 2)
    prefix = Prefix({"decoder": KeyValues(torch.zeros(size), torch.zeros(size))}, PrefixMetadata(3))
    request = GenerationRequest("it", "demo", (5, 6), SamplingParams(1), (prefix, prefix))
    row = TokenSequence(request, 0, [5, 6], 11, 0, make_row().output, num_computed=1)
    assert (row.num_prefix, request.position_offset) == (8, 6)
    assert (row.num_cached, row.num_pending) == (9, 1)


def test_a_row_may_not_end_before_min_tokens() -> None:
    row = make_row([5], [9], min_tokens=2)
    assert row.must_not_end
    row.token_ids.append(9)
    assert not row.must_not_end
    assert not make_row([5]).must_not_end


def test_rows_are_equal_only_to_themselves() -> None:
    assert make_row() != make_row()
    assert len({make_row(), make_row()}) == 2
