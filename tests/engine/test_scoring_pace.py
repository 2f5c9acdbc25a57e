"""Prompts that are scored beside rows that decode: what a step of theirs may become."""

from __future__ import annotations

from app.engine.request import GenerationRequest, SamplingParams
from tests.engine.timed import ON_CPU, SMALL_MODEL, Costs, TimedScheduler, requests_of


def scored_requests(count: int, prompt: int) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=0, logprobs=5)
    return [
        GenerationRequest(f"scored{at}", "scoring", (5,) * prompt, sampling, echo=True)
        for at in range(count)
    ]


def longest_step(costs: Costs, num_decode: int) -> float:
    """Seconds of the longest of many steps beside scored prompts, over one without them."""
    timed = TimedScheduler(costs)
    timed.submit(requests_of("quiet", num_decode, new=600))
    for _ in range(60):
        timed.advance()
    before = timed.now
    timed.advance()
    alone = timed.now - before
    timed.submit(scored_requests(60 - num_decode, 500))
    ends, num_scored = [timed.now], 0
    for _ in range(80):
        plan = timed.advance()
        assert plan is not None
        num_scored += sum(chunk.count for chunk in plan.chunks if chunk.scores)
        ends.append(timed.now)
    assert num_scored >= 80 * 16
    return max(after - before for before, after in zip(ends, ends[1:], strict=False)) / alone


def test_scored_prompts_lengthen_the_step_of_rows_that_decode_within_the_prefill_share() -> None:
    assert longest_step(ON_CPU, 4) < 2.0
    assert longest_step(SMALL_MODEL, 8) < 2.0


def test_scored_prompts_have_the_whole_chunk_while_no_row_decodes() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(scored_requests(3, 500))
    plan = timed.advance()
    assert plan is not None
    assert plan.num_prefill_tokens == timed.config.score_chunk


def test_scored_prompts_do_not_take_the_turn_of_prompts_that_wait_for_a_first_token() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(requests_of("quiet", 4, new=600))
    for _ in range(60):
        timed.advance()
    timed.submit([*scored_requests(8, 500), *requests_of("new", 8, prompt=64)])
    plan = timed.advance()
    assert plan is not None
    counts = {True: 0, False: 0}
    for chunk in plan.chunks[plan.num_decode :]:
        counts[chunk.scores] += chunk.count
    assert counts[False] > counts[True]


def test_a_tenant_whose_prompts_are_scored_gets_half_as_many() -> None:
    timed = TimedScheduler(ON_CPU, max_rows=1)
    timed.submit([*scored_requests(12, 500), *requests_of("plain", 12, prompt=500, new=1)])
    while len(timed.events) < 12:
        timed.advance()
    num_scored = sum(name.startswith("scored") for name in timed.events)
    assert 3 <= num_scored <= 5
