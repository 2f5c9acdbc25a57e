"""Pools of threads that tenants share: bounds, turns, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable

import pytest

from app.errors import Overloaded, TenantQueueFull
from app.runtime import workers
from app.runtime.workers import WorkerPool


class Desk:
    """Work that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()

    def work(self, name: str) -> str:
        self.begun.append(name)
        assert self.gate.wait(30)
        return name


Scene = Callable[[WorkerPool, Desk], Awaitable[None]]


def play(scene: Scene, *, threads: int = 4, per_tenant: int = 2, patience_s: float = 30) -> None:
    async def run() -> None:
        desk = Desk()
        pool = WorkerPool("catalog", threads, per_tenant=per_tenant, patience_s=patience_s)
        try:
            await scene(pool, desk)
        finally:
            desk.gate.set()
            await pool.close()

    asyncio.run(run())


def start(pool: WorkerPool, desk: Desk, tenant: str, count: int) -> list[asyncio.Task[str]]:
    return [
        asyncio.create_task(pool.run(tenant, desk.work, f"{tenant}{number}"))
        for number in range(count)
    ]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def test_one_tenant_cannot_take_all_threads() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        greedy = start(pool, desk, "a", 10)
        await until(lambda: len(desk.begun) == 2)
        assert await asyncio.wait_for(pool.run("b", lambda: "answered"), 10) == "answered"
        assert desk.begun == ["a0", "a1"]
        desk.gate.set()
        assert await asyncio.gather(*greedy) == [f"a{number}" for number in range(10)]

    play(scene)


def test_tenants_that_wait_take_turns() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        first = start(pool, desk, "x", 1)
        await until(lambda: desk.begun == ["x0"])
        others = [*start(pool, desk, "a", 3), *start(pool, desk, "b", 2)]
        await asyncio.sleep(0.01)
        desk.gate.set()
        await asyncio.gather(*first, *others)
        assert desk.begun == ["x0", "a0", "b0", "a1", "b1", "a2"]

    play(scene, threads=1, per_tenant=1)


def test_who_is_cancelled_while_waiting_leaves_and_its_work_is_never_done() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        tasks = start(pool, desk, "a", 4)
        await until(lambda: len(desk.begun) == 2)
        for task in tasks[2:]:
            task.cancel()
        await asyncio.wait(tasks[2:])
        desk.gate.set()
        await asyncio.gather(*tasks[:2])
        assert desk.begun == ["a0", "a1"]
        assert await pool.run("a", lambda: 7) == 7

    play(scene)


def test_a_thread_that_is_handed_to_somebody_cancelled_goes_to_the_next() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        [first] = start(pool, desk, "a", 1)
        await until(lambda: desk.begun == ["a0"])
        waiting = start(pool, desk, "a", 3)
        await asyncio.sleep(0.01)
        desk.gate.set()
        await first
        for task in waiting[:2]:  # the first of them has been handed the thread just now
            task.cancel()
        assert await asyncio.wait_for(waiting[2], 10) == "a2"
        assert pool.debug_state() == {"running": {}, "waiting": {}}

    play(scene, threads=1, per_tenant=1)


def test_work_that_runs_keeps_its_thread_when_its_caller_leaves() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        [task] = start(pool, desk, "a", 1)
        await until(lambda: desk.begun == ["a0"])
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        [late] = start(pool, desk, "b", 1)
        await asyncio.sleep(0.01)
        assert desk.begun == ["a0"]
        desk.gate.set()
        assert await late == "b0"

    play(scene, threads=1, per_tenant=1)


@pytest.mark.parametrize("fails", [False, True])
def test_what_must_finish_tells_how_it_ended_though_its_caller_was_cancelled(fails: bool) -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        def work() -> str:
            desk.work("a")
            if fails:
                raise KeyError("a")
            return "written"

        task = asyncio.create_task(pool.finish("a", work))
        await until(lambda: desk.begun == ["a"])
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.005)
        assert not task.done()
        desk.gate.set()
        if fails:
            with pytest.raises(KeyError):
                await task
        else:
            assert await task == "written"

    play(scene)


def test_what_must_finish_and_waits_can_still_be_cancelled() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        [first] = start(pool, desk, "a", 1)
        await until(lambda: desk.begun == ["a0"])
        task = asyncio.create_task(pool.finish("a", desk.work, "never"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        desk.gate.set()
        await first
        assert desk.begun == ["a0"]

    play(scene, threads=1, per_tenant=1)


def test_nobody_waits_for_ever() -> None:
    async def scene(pool: WorkerPool, desk: Desk) -> None:
        start(pool, desk, "a", 1)
        await until(lambda: desk.begun == ["a0"])
        with pytest.raises(Overloaded, match="all 'catalog' threads are busy"):
            await pool.run("b", desk.work, "b")
        assert pool.debug_state()["waiting"] == {}

    play(scene, threads=1, per_tenant=1, patience_s=0.05)


def test_queues_are_bounded_for_each_tenant_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MAX_WAITING", 3)
    monkeypatch.setattr(workers, "_MAX_WAITING_OF_TENANT", 2)

    async def scene(pool: WorkerPool, desk: Desk) -> None:
        tasks = start(pool, desk, "a", 3)
        await until(lambda: desk.begun == ["a0"])
        with pytest.raises(TenantQueueFull):
            await pool.run("a", desk.work, "more")
        tasks += start(pool, desk, "b", 1)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.run("c", desk.work, "more")
        desk.gate.set()
        await asyncio.gather(*tasks)

    play(scene, threads=1, per_tenant=1)


def test_context_variables_go_with_the_work() -> None:
    name = contextvars.ContextVar("name", default="nobody")

    async def scene(pool: WorkerPool, _: Desk) -> None:
        name.set("somebody")
        assert await pool.run("a", name.get) == "somebody"

    play(scene)
