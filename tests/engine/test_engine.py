"""The engine's thread: one answer per request whatever happens, and an orderly end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.engine.engine import Engine
from app.engine.fairness.forecast import SchedulerFigures
from app.engine.request import Event, FinishReason, RequestFailed, RequestFinished, RowFinished
from app.engine.router import RequestStream
from app.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    EngineStopped,
    InvalidRequest,
    Overloaded,
    PrefixErased,
    RequestCancelled,
)
from app.model.frozen import FrozenModel
from tests.engine.harness import make_request
from tests.engine.threaded import CONFIG, Gate, ask, error_of, read, started, tokens_of
from tests.tiny import random_prefix

PROMPT = tuple(range(40, 60))


def failing(*_: object) -> None:
    raise ZeroDivisionError("a bug in the loop")


async def submit_held(
    engine: Engine, count: int, **facts: object
) -> tuple[Gate, list[RequestStream]]:
    """Submit `count` long requests; returns once the device holds the first step."""
    gate = Gate(engine)
    streams = [engine.submit(make_request(str(i), PROMPT, 50, **facts)) for i in range(count)]
    assert await asyncio.to_thread(gate.reached.wait, 30)
    return gate, streams


# --- answers -----------------------------------------------------------------------------


def test_a_request_is_answered_with_its_tokens_and_one_end(tiny_gpt2: FrozenModel) -> None:
    with started(tiny_gpt2) as engine:
        events = asyncio.run(ask(engine, make_request("it", PROMPT, 7, n=2)))
    assert error_of(events) is None
    assert [len(tokens_of(events, row)) for row in (0, 1)] == [7, 7]
    ends = [event for event in events if isinstance(event, RowFinished)]
    assert {(end.index, end.reason) for end in ends} == {
        (0, FinishReason.LENGTH),
        (1, FinishReason.LENGTH),
    }
    assert isinstance(events[-1], RequestFinished)
    assert 0 <= events[-1].queue_time <= (events[-1].time_to_first_token or 0)
    assert (events[-1].time_to_first_token or 0) <= events[-1].total_time


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_end_token_waits_for_min_tokens(tiny_gpt2: FrozenModel, temperature: float) -> None:
    request = make_request(
        "it",
        PROMPT,
        9,
        min_tokens=4,
        ignore_eos=False,
        logit_bias={0: 100.0},
        temperature=temperature,
    )
    with started(tiny_gpt2) as engine:
        events = asyncio.run(ask(engine, request))
    tokens = tokens_of(events)
    assert len(tokens) == 5
    assert 0 not in tokens[:4]
    [end] = [event for event in events if isinstance(event, RowFinished)]
    assert (end.reason, end.num_tokens) == (FinishReason.STOP, 5)


def test_a_seed_repeats_its_tokens_and_no_seed_does_not(tiny_gpt2: FrozenModel) -> None:
    async def tokens(engine: Engine, name: str, seed: int | None) -> list[int]:
        request = make_request(name, PROMPT, 40, temperature=2.0, seed=seed)
        return tokens_of(await ask(engine, request))

    with started(tiny_gpt2) as engine:
        a, b = (asyncio.run(tokens(engine, name, 5)) for name in "ab")
        c, d = (asyncio.run(tokens(engine, name, None)) for name in "cd")
    assert a == b
    assert len({tuple(a), tuple(c), tuple(d)}) == 3


def test_what_can_never_run_is_refused_and_leaves_nothing_open(tiny_gpt2: FrozenModel) -> None:
    async def main(engine: Engine) -> None:
        with pytest.raises(ContextLengthExceeded):
            engine.submit(make_request("a", PROMPT, 10_000))
        with pytest.raises(InvalidRequest):
            engine.submit(make_request("b", (), 1))
        assert await engine.drain(0)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))


def test_a_submission_outside_an_event_loop_leaves_nothing_open(tiny_gpt2: FrozenModel) -> None:
    with started(tiny_gpt2) as engine:
        with pytest.raises(RuntimeError, match="no running event loop"):
            engine.submit(make_request("it", PROMPT))
        assert asyncio.run(engine.drain(0))


def test_an_id_cannot_be_open_twice_and_the_first_is_not_disturbed(tiny_gpt2: FrozenModel) -> None:
    async def main(engine: Engine) -> None:
        gate, [stream] = await submit_held(engine, 1)
        with pytest.raises(InvalidRequest, match="open already"):
            engine.submit(make_request("0", PROMPT))
        gate.open()
        assert error_of(await read(stream)) is None

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))


# --- the queue's bound -------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room(
    tiny_gpt2: FrozenModel,
) -> None:
    async def main(engine: Engine) -> None:
        gate, streams = await submit_held(engine, 5)
        with pytest.raises(Overloaded):
            engine.submit(make_request("late", PROMPT))
        gate.open()
        for stream in streams:
            assert error_of(await read(stream)) is None
        assert error_of(await ask(engine, make_request("late", PROMPT))) is None

    with started(tiny_gpt2, replace(CONFIG, max_rows=2, max_waiting=3)) as engine:
        asyncio.run(main(engine))


# --- cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_a_cancelled_request_ends_as_cancelled_and_the_others_go_on(
    tiny_gpt2: FrozenModel, state: str
) -> None:
    async def main(engine: Engine) -> None:
        gate, (running, waiting) = await submit_held(engine, 2)
        cancelled, kept = (waiting, running) if state == "waiting" else (running, waiting)
        for _ in range(3):
            cancelled.cancel()
        gate.open()
        assert error_of(await read(cancelled)) is RequestCancelled
        assert error_of(await read(kept)) is None
        cancelled.cancel()
        assert engine.counters.failed == 1
        assert engine.counters.finished == 1
        assert await engine.drain(0)

    with started(tiny_gpt2, replace(CONFIG, max_rows=1)) as engine:
        asyncio.run(main(engine))
        assert engine.table.reserved_columns == 0


def test_cancelling_what_is_unknown_or_has_ended_counts_nothing(tiny_gpt2: FrozenModel) -> None:
    async def main(engine: Engine) -> None:
        await ask(engine, make_request("ended", PROMPT, 2))
        engine.cancel("ended")
        engine.cancel("nobody")
        await ask(engine, make_request("next", PROMPT, 2))

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
    assert (engine.counters.finished, engine.counters.failed) == (2, 0)


def test_a_deadline_that_has_passed_ends_a_request(tiny_gpt2: FrozenModel) -> None:
    with started(tiny_gpt2) as engine:
        events = asyncio.run(ask(engine, make_request("it", PROMPT, deadline=0.0)))
    assert error_of(events) is DeadlineExceeded


def test_many_tasks_that_come_and_go_at_random_each_get_one_true_answer(
    tiny_gpt2: FrozenModel,
) -> None:
    """Those that are not cancelled give the tokens that they give alone."""
    prefixes = [random_prefix(tiny_gpt2, length, seed=length) for length in (3, 7, 12)]
    dice = random.Random(1)

    def request_of(index: int) -> tuple[tuple[int, ...], int, list[object]]:
        prompt = tuple(range(20 + index % 13, 34 + index % 29))
        return prompt, 1 + index % 11, [prefixes[index % 3]] if index % 4 else []

    async def one(engine: Engine, index: int, leaves: bool) -> list[Event]:
        prompt, max_tokens, chosen = request_of(index)
        stream = engine.submit(make_request(str(index), prompt, max_tokens, chosen))
        if leaves:
            for _ in range(index % 5):
                await asyncio.sleep(0)
            stream.cancel()
        return await read(stream)

    async def alone(engine: Engine, index: int) -> list[int]:
        prompt, max_tokens, chosen = request_of(index)
        return tokens_of(
            await ask(engine, make_request(f"alone {index}", prompt, max_tokens, chosen))
        )

    async def main(engine: Engine) -> None:
        leaves = [dice.random() < 0.4 for _ in range(120)]
        answers = await asyncio.gather(*(one(engine, i, leaves[i]) for i in range(120)))
        ends = [error_of(events) for events in answers]
        assert set(ends) == {None, RequestCancelled}
        assert all(leaves[i] for i in range(120) if ends[i] is RequestCancelled)
        for index, events in enumerate(answers):
            if ends[index] is None:
                assert tokens_of(events) == await alone(engine, index)
        assert await engine.drain(0)
        assert engine.counters.failed == ends.count(RequestCancelled)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
        assert engine.table.reserved_columns == 0


# --- when the loop dies ------------------------------------------------------------------


@pytest.mark.parametrize("part", ["expire", "schedule", "commit"])
def test_when_the_loop_dies_every_request_is_told_once_and_new_ones_are_refused(
    tiny_gpt2: FrozenModel, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(engine: Engine) -> None:
        gate, streams = await submit_held(engine, 4)
        monkeypatch.setattr(engine.scheduler, part, failing)
        gate.open()
        for stream in streams:
            assert error_of(await read(stream)) is EngineStopped
        engine.join(30)
        assert not engine.progress().alive
        with pytest.raises(EngineStopped):
            engine.submit(make_request("late", PROMPT))
        assert await engine.drain(60)

    with started(tiny_gpt2, replace(CONFIG, max_rows=2)) as engine:
        asyncio.run(main(engine))


def test_a_request_that_comes_while_the_loop_dies_is_refused_too(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the loop's farewell and the thread's end the router says no."""
    refused: list[Exception] = []

    async def main(engine: Engine) -> None:
        loop, fail_all = asyncio.get_running_loop(), engine.router.fail_all

        async def come_late() -> None:
            try:
                engine.submit(make_request("late", PROMPT))
            except Exception as error:
                refused.append(error)

        def fail_all_and_wait(error: EngineStopped) -> None:
            fail_all(error)
            asyncio.run_coroutine_threadsafe(come_late(), loop).result(30)

        gate, [stream] = await submit_held(engine, 1)
        monkeypatch.setattr(engine.router, "fail_all", fail_all_and_wait)
        monkeypatch.setattr(engine.scheduler, "commit", failing)
        gate.open()
        assert error_of(await read(stream)) is EngineStopped
        await asyncio.to_thread(engine.join, 30)

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
        assert engine.admission.num_open == 1  # the one that was told by the farewell
    assert [type(error) for error in refused] == [EngineStopped]


# --- draining and stopping ---------------------------------------------------------------


def test_before_the_start_and_after_the_end_nothing_is_taken(tiny_gpt2: FrozenModel) -> None:
    async def submit(engine: Engine) -> None:
        engine.submit(make_request("it", PROMPT))

    engine = Engine(tiny_gpt2, CONFIG)
    with pytest.raises(EngineStopped):
        asyncio.run(submit(engine))
    engine.start()
    engine.stop()
    engine.stop()
    with pytest.raises(Draining):
        asyncio.run(submit(engine))


def test_draining_refuses_what_is_new_and_finishes_what_runs_and_waits(
    tiny_gpt2: FrozenModel,
) -> None:
    async def main(engine: Engine) -> None:
        gate, streams = await submit_held(engine, 4)
        draining = asyncio.create_task(engine.drain(60))
        await asyncio.sleep(0)
        assert engine.progress().draining
        with pytest.raises(Draining):
            engine.submit(make_request("late", PROMPT))
        assert not draining.done()
        gate.open()
        assert await draining
        for stream in streams:
            events = await read(stream)
            assert error_of(events) is None
            assert len(tokens_of(events)) == 50

    with started(tiny_gpt2, replace(CONFIG, max_rows=2)) as engine:
        asyncio.run(main(engine))


def test_what_draining_does_not_finish_in_time_is_told_when_the_engine_stops(
    tiny_gpt2: FrozenModel,
) -> None:
    async def main(engine: Engine) -> None:
        gate, streams = await submit_held(engine, 3)
        assert not await engine.drain(0)
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
        while not engine.inbox.closed:
            await asyncio.sleep(0)
        gate.open()
        await stopping
        assert [error_of(await read(stream)) for stream in streams] == [Draining] * 3

    with started(tiny_gpt2, replace(CONFIG, max_rows=2)) as engine:
        asyncio.run(main(engine))


# --- what is shown -----------------------------------------------------------------------


def test_counters_add_up(tiny_gpt2: FrozenModel) -> None:
    async def main(engine: Engine) -> None:
        requests = [
            make_request("a", range(10, 30), 6),
            make_request("b", range(10, 17), 4, n=3),
            make_request("c", range(10, 15), 5, deadline=0.0),
        ]
        await asyncio.gather(*(ask(engine, request) for request in requests))

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
    counters = engine.counters
    assert (counters.prompt_tokens, counters.generated_tokens) == (27, 6 + 3 * 4)
    assert (counters.finished, counters.failed) == (2, 1)
    assert 6 <= counters.steps <= 12
    assert counters.step_seconds > 0


def test_progress_shows_what_runs_and_waits_and_how_old_the_step_is(
    tiny_gpt2: FrozenModel,
) -> None:
    async def main(engine: Engine) -> None:
        assert engine.progress().last_step_age == 0
        gate, streams = await submit_held(engine, 4, n=2)
        assert engine.progress().alive
        assert engine.progress().last_step_age > 0
        shown: list[tuple[int, int]] = []
        note: Callable[[SchedulerFigures], None] = engine.admission.note_step

        def noting(figures: SchedulerFigures) -> None:
            note(figures)
            shown.append((engine.progress().running, engine.progress().waiting))

        engine.admission.note_step = noting  # type: ignore[method-assign]
        gate.open()
        for stream in streams:
            await read(stream)
        assert await engine.drain(10)
        assert shown[1] == (3, 2)

    with started(tiny_gpt2, replace(CONFIG, max_rows=3)) as engine:
        asyncio.run(main(engine))
    after = engine.progress()
    assert (after.alive, after.running, after.waiting, after.last_step_age) == (False, 0, 0, 0.0)
    assert after.steps == engine.counters.steps


def test_a_reader_that_went_away_with_its_event_loop_does_not_stop_the_engine(
    tiny_gpt2: FrozenModel,
) -> None:
    async def leave(engine: Engine) -> None:
        engine.submit(make_request("gone", PROMPT, 50))

    with started(tiny_gpt2) as engine:
        asyncio.run(leave(engine))
        events = asyncio.run(ask(engine, make_request("it", PROMPT, 60)))
        assert error_of(events) is None
        assert asyncio.run(engine.drain(30))
        assert engine.counters.finished == 2


def test_failures_of_rows_are_no_failures_of_the_engine(tiny_gpt2: FrozenModel) -> None:
    bad = random_prefix(tiny_gpt2, 3)
    bad.decoder.values[0, 0, 0, 0] = float("nan")

    async def main(engine: Engine) -> None:
        bad_events, good_events = await asyncio.gather(
            ask(engine, make_request("bad", PROMPT, 5, [bad])),
            ask(engine, make_request("good", PROMPT, 5)),
        )
        assert isinstance(bad_events[-1], RequestFailed)
        assert error_of(good_events) is None
        assert engine.progress().alive

    with started(tiny_gpt2) as engine:
        asyncio.run(main(engine))
    assert (engine.counters.finished, engine.counters.failed) == (1, 1)


# --- erasure ------------------------------------------------------------------------------


def test_requests_with_a_revoked_prefix_end_and_later_ones_never_begin(
    tiny_gpt2: FrozenModel,
) -> None:
    erased, other = (random_prefix(tiny_gpt2, 3, seed=seed) for seed in (1, 2))

    async def scene() -> None:
        gate, streams = await submit_held(engine, 1, prefixes=(other, erased))
        plain = engine.submit(make_request("plain", PROMPT, 5, prefixes=(other,)))
        engine.revoke([erased])
        late = engine.submit(make_request("late", PROMPT, 5, prefixes=(erased,)))
        gate.open()
        for stream in (*streams, late):
            assert error_of(await read(stream)) is PrefixErased
        assert len(tokens_of(await read(plain))) == 5

    with started(tiny_gpt2) as engine:
        asyncio.run(scene())
