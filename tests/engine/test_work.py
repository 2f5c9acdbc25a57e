"""What a request has cost: counted from the steps, told with its last event, however it ends."""

from __future__ import annotations

import asyncio

import pytest

from app.engine.decoding.beam_search import BeamParams
from app.engine.engine import Engine
from app.engine.request import GenerationRequest, RequestFailed, RequestFinished, Work
from app.errors import RequestCancelled
from app.model.frozen import FrozenModel
from tests.engine.harness import make_request
from tests.engine.threaded import Gate, ask, started
from tests.tiny import random_prefix

PROMPT = tuple(range(40, 60))


def work_of(model: FrozenModel, request: GenerationRequest) -> Work:
    with started(model) as engine:
        *_, end = asyncio.run(ask(engine, request))
        assert not engine.debug_state()["active"]
    assert isinstance(end, RequestFinished)
    return end.work


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_costs_once_and_every_row_its_tokens(tiny_gpt2: FrozenModel, n: int) -> None:
    assert work_of(tiny_gpt2, make_request("it", PROMPT, 7, n=n)) == Work(20, 7 * n)


def test_a_prefix_costs_nothing(tiny_gpt2: FrozenModel) -> None:
    request = make_request("it", PROMPT, 7, prefixes=[random_prefix(tiny_gpt2, 9)])
    assert work_of(tiny_gpt2, request) == Work(20, 7)


def test_every_beam_costs_a_token_a_step(tiny_gpt2: FrozenModel) -> None:
    request = make_request("it", PROMPT, 6, beam=BeamParams(4))
    assert work_of(tiny_gpt2, request) == Work(20, 24)


def test_a_prompt_that_is_only_scored_costs_no_new_token(tiny_gpt2: FrozenModel) -> None:
    request = make_request("it", PROMPT, 0, echo=True, logprobs=0)
    assert work_of(tiny_gpt2, request) == Work(20, 0)


def test_what_an_encoder_reads_is_the_prompt(tiny_bart: FrozenModel) -> None:
    assert work_of(tiny_bart, make_request("it", PROMPT, 5, n=2)) == Work(20, 10)


def test_a_request_that_never_ran_costs_nothing(tiny_gpt2: FrozenModel) -> None:
    ends: list[object] = []

    async def main(engine: Engine) -> None:
        gate = Gate(engine)
        first = engine.submit(make_request("first", PROMPT, 2))
        assert await asyncio.to_thread(gate.reached.wait, 30)
        second = engine.submit(make_request("second", PROMPT, 2))
        for name, stream in (("first", first), ("second", second)):
            stream.when_ended(lambda end, name=name: ends.append((name, end.work)))
        second.cancel()
        gate.open()
        assert await engine.drain(30)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
    assert ("second", Work(0, 0)) in ends
    assert ("first", Work(20, 2)) in ends


def test_a_request_that_is_given_up_costs_what_was_computed(tiny_gpt2: FrozenModel) -> None:
    ends: list[RequestFinished | RequestFailed] = []

    async def main(engine: Engine) -> None:
        stream = engine.submit(make_request("it", PROMPT, 60, n=2))
        stream.when_ended(ends.append)
        while not await stream.next_events():
            pass
        stream.cancel()
        assert await engine.drain(30)
        await asyncio.sleep(0.01)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
        sampled = engine.counters.generated_tokens
    [end] = ends
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestCancelled)
    assert end.work == Work(20, sampled)
    assert 2 <= sampled < 120


def test_what_is_cut_off_when_the_engine_stops_has_its_cost(tiny_gpt2: FrozenModel) -> None:
    ends: list[RequestFinished | RequestFailed] = []

    async def main(engine: Engine) -> None:
        stream = engine.submit(make_request("it", PROMPT, 100))
        stream.when_ended(ends.append)
        await stream.next_events()
        await asyncio.to_thread(engine.stop)
        await asyncio.sleep(0)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
        sampled = engine.counters.generated_tokens
    assert [end.work for end in ends] == [Work(20, sampled)]
