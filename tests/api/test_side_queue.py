"""Pieces run one at a time beside the engine, and every turn is given back."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine

import pytest

from app.api import side_work as module
from app.api.side_work import SideQueue
from app.errors import DeadlineExceeded, Overloaded, TenantQueueFull


def later() -> float:
    return time.monotonic() + 30


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """The test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@in_a_loop
async def test_only_one_piece_runs_at_a_time() -> None:
    turns, running = SideQueue(), []

    def piece(number: int) -> int:
        running.append(number)
        assert len(running) == 1
        time.sleep(0.01)
        running.remove(number)
        return number

    done = await asyncio.gather(*(turns.run("acme", later(), piece, number) for number in range(5)))
    assert done == [0, 1, 2, 3, 4]


@in_a_loop
async def test_a_piece_that_fails_gives_its_turn_back() -> None:
    turns = SideQueue()

    def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await turns.run("acme", later(), fail)


@in_a_loop
async def test_a_cancelled_caller_leaves_at_once_and_its_piece_keeps_the_turn() -> None:
    turns, go = SideQueue(), threading.Event()
    task = asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))
    await asyncio.sleep(0.05)
    next_one = asyncio.ensure_future(turns.run("acme", later(), lambda: "next"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert not next_one.done()
    go.set()
    assert await next_one == "next"


@in_a_loop
async def test_a_caller_leaves_the_queue_at_its_deadline() -> None:
    turns, go = SideQueue(), threading.Event()
    task = asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded):
        await turns.run("acme", time.monotonic() + 0.05, lambda: None)
    go.set()
    await task
    assert await turns.run("acme", later(), lambda: "free") == "free"


@in_a_loop
async def test_the_number_of_waiting_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    turns, go = SideQueue(), threading.Event()
    tasks = [asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.ensure_future(turns.run("acme", later(), lambda: True)))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await turns.run("acme", later(), lambda: None)
    go.set()
    assert all(await asyncio.gather(*tasks))


@in_a_loop
async def test_tenants_take_turns_however_many_pieces_one_has() -> None:
    turns, go, order = SideQueue(), threading.Event(), list[str]()
    tasks = [asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))]
    await asyncio.sleep(0.05)
    for tenant in ("acme", "acme", "acme", "rival", "rival", "third"):
        tasks.append(asyncio.ensure_future(turns.run(tenant, later(), order.append, tenant)))
    await asyncio.sleep(0.05)
    go.set()
    await asyncio.gather(*tasks)
    assert order == ["acme", "rival", "third", "acme", "rival", "acme"]


@in_a_loop
async def test_one_tenant_cannot_take_all_places() -> None:
    turns, go = SideQueue(), threading.Event()
    tasks = [asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))]
    await asyncio.sleep(0.05)
    full = module.MAX_WAITING_OF_TENANT
    tasks += [asyncio.ensure_future(turns.run("acme", later(), bool, 1)) for _ in range(full)]
    await asyncio.sleep(0.05)
    with pytest.raises(TenantQueueFull):
        await turns.run("acme", later(), bool, 1)
    other = asyncio.ensure_future(turns.run("rival", later(), lambda: "mine"))
    go.set()
    assert await other == "mine"
    assert all(await asyncio.gather(*tasks))


@in_a_loop
async def test_a_caller_that_leaves_with_or_without_the_turn_blocks_nobody() -> None:
    turns, go = SideQueue(), threading.Event()
    first = asyncio.ensure_future(turns.run("acme", later(), go.wait, 30))
    await asyncio.sleep(0.05)
    waits, handed, last = (
        asyncio.ensure_future(turns.run("acme", later(), lambda: "last")) for _ in range(3)
    )
    await asyncio.sleep(0.05)
    waits.cancel()
    go.set()
    while turns.num_waiting > 1:  # then `handed` has the turn and has not run yet
        await asyncio.sleep(0)
    handed.cancel()
    results = await asyncio.gather(waits, handed, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert await last == "last"
    assert await first
    assert await turns.run("acme", later(), lambda: "free") == "free"
    assert turns.num_waiting == 0
