"""The router: one wake-up per step, one end per request, and nobody is left without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from app.engine.request import Event, RequestFailed, RequestFinished, TextDelta
from app.engine.router import EventRouter, RequestStream
from app.errors import Draining, EngineStopped

FINISHED = RequestFinished(0.0, None, 1.0)


def text(value: str) -> TextDelta:
    return TextDelta(0, value, ())


def nothing(_: str) -> None:
    """A cancel that nobody asks about."""


async def read(stream: RequestStream) -> list[Event]:
    """All events until the terminal one."""
    return [event async for event in stream]


def count_wake_ups(patch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop) -> list[object]:
    """Every callback that is handed to `loop` from now on."""
    calls: list[object] = []
    hand_over: Callable[..., object] = loop.call_soon_threadsafe

    def counted(callback: Callable[..., object], *arguments: object) -> object:
        calls.append(callback)
        return hand_over(callback, *arguments)

    patch.setattr(loop, "call_soon_threadsafe", counted)
    return calls


def test_events_reach_their_own_stream_in_order() -> None:
    async def main() -> None:
        router = EventRouter()
        a, b = router.open("a", nothing), router.open("b", nothing)
        router.deliver([("a", text("1")), ("b", text("2")), ("nobody", text("3"))])
        router.deliver([("a", text("4")), ("a", FINISHED), ("b", FINISHED)])
        assert await read(a) == [text("1"), text("4"), FINISHED]
        assert await read(b) == [text("2"), FINISHED]

    asyncio.run(main())


def test_a_step_is_one_wake_up_however_many_events_it_has() -> None:
    async def main() -> None:
        router, loop = EventRouter(), asyncio.get_running_loop()
        streams = [router.open(str(index), nothing) for index in range(20)]
        with pytest.MonkeyPatch.context() as patch:
            calls = count_wake_ups(patch, loop)
            router.deliver([(str(index), text("x")) for index in range(20) for _ in range(3)])
            assert len(calls) == 1
            router.deliver([])
            assert len(calls) == 1
        for stream in streams:
            assert await stream.next_events() == [text("x")] * 3

    asyncio.run(main())


def test_unread_events_are_read_together() -> None:
    async def main() -> None:
        router = EventRouter()
        stream = router.open("a", nothing)
        for value in "xyz":
            router.deliver([("a", text(value))])
        await asyncio.sleep(0)
        assert await stream.next_events() == [text(value) for value in "xyz"]

    asyncio.run(main())


def test_after_its_end_a_request_gets_nothing_more() -> None:
    async def main() -> None:
        router = EventRouter()
        stream = router.open("a", nothing)
        router.deliver([("a", FINISHED), ("a", text("late"))])
        router.deliver([("a", FINISHED)])
        router.fail_all(Draining("closing"))
        await asyncio.sleep(0)
        assert await stream.next_events() == [FINISHED]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.next_events(), 0.01)

    asyncio.run(main())


def test_failing_all_ends_the_open_ones_once_and_refuses_new_ones() -> None:
    async def main() -> None:
        router, error = EventRouter(), EngineStopped("it broke")
        ended, open_one = router.open("ended", nothing), router.open("open", nothing)
        router.deliver([("ended", FINISHED), ("open", text("x"))])
        router.fail_all(error)
        router.fail_all(error)
        assert await read(ended) == [FINISHED]
        assert await read(open_one) == [text("x"), RequestFailed(error)]
        with pytest.raises(EngineStopped, match="it broke"):
            router.open("new", nothing)

    asyncio.run(main())


def test_cancelling_asks_once_and_never_after_the_end() -> None:
    async def main() -> None:
        router, asked = EventRouter(), []
        running, ended = router.open("running", asked.append), router.open("ended", asked.append)
        router.deliver([("ended", FINISHED)])
        await asyncio.sleep(0)
        for stream in (running, running, ended):
            stream.cancel()
        assert asked == ["running"]

    asyncio.run(main())


def test_readers_on_two_event_loops_each_get_their_own() -> None:
    router = EventRouter()
    other = asyncio.new_event_loop()

    async def open_on_other() -> RequestStream:
        return router.open("there", nothing)

    there = other.run_until_complete(open_on_other())

    async def main() -> None:
        here = router.open("here", nothing)
        router.deliver([("there", text("t")), ("here", text("h"))])
        router.deliver([("there", FINISHED), ("here", FINISHED)])
        assert await read(here) == [text("h"), FINISHED]

    asyncio.run(main())
    assert other.run_until_complete(read(there)) == [text("t"), FINISHED]
    other.close()


def test_a_closed_event_loop_does_not_disturb_other_readers() -> None:
    router = EventRouter()

    async def open_and_leave() -> None:
        router.open("gone", nothing)

    asyncio.run(open_and_leave())

    async def main() -> None:
        stream = router.open("here", nothing)
        router.deliver([("gone", text("x")), ("here", text("y"))])
        router.fail_all(Draining("closing"))
        events = await read(stream)
        assert events[0] == text("y")
        assert isinstance(events[1], RequestFailed)

    asyncio.run(main())
