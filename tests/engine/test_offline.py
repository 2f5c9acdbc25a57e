"""Offline: many requests at once from plain code, answered in their order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.engine.offline import complete
from app.engine.request import FinishReason, GenerationRequest
from app.errors import ContextLengthExceeded, DeadlineExceeded
from app.model.frozen import FrozenModel
from tests.engine.harness import make_request
from tests.engine.threaded import CONFIG, ask, started, tokens_of
from tests.tiny import random_prefix


def test_answers_come_in_the_order_of_the_requests(tiny_gpt2: FrozenModel) -> None:
    requests = [
        make_request(
            str(index),
            range(20, 22 + 3 * index),
            1 + (5 * index) % 7,
            [random_prefix(tiny_gpt2, 1 + index, seed=index)],
        )
        for index in range(9)
    ]
    with started(tiny_gpt2) as engine:
        together = complete(engine, requests)
        alone = [tokens_of(asyncio.run(ask(engine, request))) for request in requests]
    assert [completion.token_ids for completion in together] == [[tokens] for tokens in alone]
    for completion in together:
        assert completion.texts == [tiny_gpt2.text.decode(completion.token_ids[0])]
        assert completion.finish_reasons == [FinishReason.LENGTH]


def test_rows_and_scores_have_their_places(tiny_gpt2: FrozenModel) -> None:
    request = make_request("it", range(20, 26), 4, n=2, echo=True, logprobs=2, temperature=1.5)
    with started(tiny_gpt2) as engine:
        [completion] = complete(engine, [request])
    assert [len(ids) for ids in completion.token_ids] == [4, 4]
    assert completion.token_ids[0] != completion.token_ids[1]
    for ids, scores in zip(completion.token_ids, completion.scores, strict=True):
        assert [score.token_id for score in scores] == ids
        assert all(score.logprob is not None and len(score.top) == 2 for score in scores)
    assert [score.token_id for score in completion.prompt_scores] == list(range(20, 26))


@pytest.mark.parametrize(
    "limits",
    [{"max_waiting": 1, "max_rows": 2}, {"max_waiting": 0, "max_rows": 1}],
    ids=["few", "none"],
)
def test_more_requests_than_the_queue_takes_are_all_answered(
    tiny_gpt2: FrozenModel, limits: dict[str, int]
) -> None:
    requests = [make_request(str(index), range(20, 30), 2) for index in range(12)]
    with started(tiny_gpt2, replace(CONFIG, **limits)) as engine:
        assert len(complete(engine, requests)) == 12


def test_more_prompt_tokens_than_the_queue_takes_are_all_answered(tiny_gpt2: FrozenModel) -> None:
    requests = [make_request(str(index), range(20, 70), 2) for index in range(6)]
    with started(tiny_gpt2, replace(CONFIG, max_waiting_tokens=110)) as engine:
        assert len(complete(engine, requests)) == 6


def test_no_requests_give_no_answers(tiny_gpt2: FrozenModel) -> None:
    with started(tiny_gpt2) as engine:
        assert complete(engine, []) == []


def test_the_error_of_a_request_is_raised_and_the_others_are_cancelled(
    tiny_gpt2: FrozenModel,
) -> None:
    def pair(name: str, max_tokens: int, deadline: float | None) -> list[GenerationRequest]:
        bad = make_request(f"bad {name}", range(20, 30), max_tokens, deadline=deadline)
        return [make_request(f"long {name}", range(20, 30), 110), bad]

    with started(tiny_gpt2) as engine:
        with pytest.raises(ContextLengthExceeded):
            complete(engine, pair("impossible", 5000, None))
        with pytest.raises(DeadlineExceeded):
            complete(engine, pair("late", 5, 0.0))
        assert asyncio.run(engine.drain(30))
        assert engine.table.reserved_columns == 0
        assert engine.counters.finished == 0
