"""What is computed beside the engine: one piece at a time, turns that are always given back."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine

import pytest

from app.api import aside
from app.api.aside import Aside
from app.errors import DeadlineExceeded, Overloaded


def later() -> float:
    return time.monotonic() + 30


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """The test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@in_a_loop
async def test_pieces_follow_one_another() -> None:
    turns, running = Aside(), []

    def piece(number: int) -> int:
        running.append(number)
        assert len(running) == 1
        time.sleep(0.01)
        running.remove(number)
        return number

    done = await asyncio.gather(*(turns.run(later(), piece, number) for number in range(5)))
    assert done == [0, 1, 2, 3, 4]


@in_a_loop
async def test_what_fails_gives_its_turn_back() -> None:
    turns = Aside()

    def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await turns.run(later(), fail)


@in_a_loop
async def test_who_is_cancelled_leaves_at_once_and_the_piece_ends_alone() -> None:
    turns, go = Aside(), threading.Event()
    task = asyncio.ensure_future(turns.run(later(), go.wait, 30))
    await asyncio.sleep(0.05)
    next_one = asyncio.ensure_future(turns.run(later(), lambda: "next"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert not next_one.done()
    go.set()
    assert await next_one == "next"


@in_a_loop
async def test_a_turn_that_comes_too_late_is_not_taken() -> None:
    turns, go = Aside(), threading.Event()
    task = asyncio.ensure_future(turns.run(later(), go.wait, 30))
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded):
        await turns.run(time.monotonic() + 0.05, lambda: None)
    go.set()
    await task
    assert await turns.run(later(), lambda: "free") == "free"


@in_a_loop
async def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "_MAX_WAITING", 1)
    turns, go = Aside(), threading.Event()
    tasks = [asyncio.ensure_future(turns.run(later(), go.wait, 30))]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.ensure_future(turns.run(later(), lambda: True)))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await turns.run(later(), lambda: None)
    go.set()
    assert all(await asyncio.gather(*tasks))
