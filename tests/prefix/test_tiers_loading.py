"""Loading into the tiers: one load for all who wait, whatever becomes of them; closing."""

from __future__ import annotations

import asyncio
import threading

from app.errors import Overloaded, PolyprefixError
from app.runtime.prefix_cache import Lease, PrefixCache, PrefixKey
from tests.prefix.scenes import A, B, C, Store, play, start, use


class TestOneLoadForAll:
    def test_many_waiters_share_one_load(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.gate.clear()
            waiters = await start(tiers, A, 500)
            await store.has_begun()
            store.gate.set()
            leases = await asyncio.gather(*waiters)
            assert store.loads == {A: 1}
            assert len({id(lease.prefix) for lease in leases}) == 1
            assert {lease.tier for lease in leases} == {"store"}
            stats = tiers.stats()
            assert (stats["device"].misses, stats["host"].misses) == (1, 1)

        play(scene)

    def test_a_waiter_that_is_cancelled_does_not_end_the_load_of_the_others(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.gate.clear()
            waiters = await start(tiers, A, 3)
            await store.has_begun()
            waiters[0].cancel()
            await asyncio.wait(waiters[:1])
            store.gate.set()
            leases = await asyncio.gather(*waiters[1:])
            assert waiters[0].cancelled()
            assert [lease.tier for lease in leases] == ["store", "store"]
            assert store.loads == {A: 1}

        play(scene)

    def test_a_load_that_nobody_waits_for_any_more_is_kept_and_can_be_evicted(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.gate.clear()
            [waiter] = await start(tiers, A)
            await store.has_begun()
            waiter.cancel()
            await asyncio.wait([waiter])
            [other] = await start(tiers, A)
            store.gate.set()
            (await other).release()
            assert store.loads == {A: 1}
            assert await use(tiers, B) == ["store"]
            assert tiers.contains(A) == "host"

        play(scene, device_units=1)

    def test_a_load_whose_every_waiter_is_cancelled_leaves_no_lease_behind(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.gate.clear()
            waiters = await start(tiers, A, 3)
            await store.has_begun()
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)
            store.gate.set()
            await tiers.close()
            assert tiers.contains(A) == "device"
            assert tiers.debug_state()["leases"] == 0

        play(scene, device_units=1)

    def test_a_waiter_cancelled_as_the_load_ends_leaves_no_lease_behind(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            [waiter] = await start(tiers, A)
            [load] = tiers.debug_state()["loads"]
            load.add_done_callback(lambda _: waiter.cancel())
            await asyncio.wait([waiter])
            assert waiter.cancelled()
            assert await use(tiers, B) == ["store"]

        play(scene, device_units=1)

    def test_a_failing_load_is_told_to_every_waiter_and_not_remembered(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.failing.add(A)
            store.gate.clear()
            waiters = await start(tiers, A, 20)
            await store.has_begun()
            store.gate.set()
            results = await asyncio.gather(*waiters, return_exceptions=True)
            assert {str(result) for result in results} == {"the store has lost a"}
            assert store.loads[A] == 1
            assert tiers.contains(A) is None
            assert [stats.entries for stats in tiers.stats().values()] == [0, 0]
            store.failing.clear()
            assert await use(tiers, A) == ["store"]

        play(scene)

    def test_a_failing_load_harms_no_other(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.failing.add(A)
            failed, fine = await asyncio.gather(
                use(tiers, A), use(tiers, B), return_exceptions=True
            )
            assert isinstance(failed, PolyprefixError)
            assert fine == ["store"]

        play(scene)

    def test_a_failing_load_that_nobody_waits_for_is_silent(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            complaints: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _loop, context: complaints.append(context)
            )
            store.failing.add(A)
            store.gate.clear()
            [waiter] = await start(tiers, A)
            await store.has_begun()
            waiter.cancel()
            await asyncio.wait([waiter])
            store.gate.set()
            await tiers.close()
            assert complaints == []

        play(scene)

    def test_loads_that_end_together_do_not_evict_each_other_before_they_are_leased(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            keys = [PrefixKey("owner", f"{index:064x}") for index in range(8)]
            results = await asyncio.gather(*map(tiers.acquire, keys), return_exceptions=True)
            leased = [
                key for key, result in zip(keys, results, strict=True) if isinstance(result, Lease)
            ]
            assert len(leased) == 1
            assert sum(isinstance(result, Overloaded) for result in results) == 7
            assert tiers.contains(leased[0]) == "device"

        play(scene, device_units=1)

    def test_a_slow_load_does_not_hold_up_another(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            await use(tiers, B)
            store.begun.clear()
            store.gate.clear()
            [slow] = await start(tiers, A)
            await store.has_begun()
            assert await use(tiers, B) == ["device"]
            assert not slow.done()
            store.gate.set()
            (await slow).release()

        play(scene, loaders=1)


def test_what_is_in_memory_comes_to_the_device_while_the_store_does_not_answer() -> None:
    async def scene(tiers: PrefixCache, store: Store) -> None:
        assert await use(tiers, A, B) == ["store", "store"]
        assert tiers.contains(A) == "host"
        store.begun.clear()
        store.gate.clear()
        [waiting] = await start(tiers, C)
        await store.has_begun()
        assert await asyncio.wait_for(use(tiers, A), 10) == ["host"]
        store.gate.set()
        (await waiting).release()

    play(scene, device_units=1, loaders=1)


class TestClosing:
    def test_loads_under_way_are_waited_for(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.gate.clear()
            [waiter] = await start(tiers, A)
            await store.has_begun()
            closing = asyncio.create_task(tiers.close())
            await asyncio.sleep(0)
            assert not closing.done()
            store.gate.set()
            await closing
            assert (await waiter).tier == "store"

        play(scene)

    def test_the_threads_end(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            others = _loaders()  # of servers that other tests left running
            await use(tiers, A)
            mine = _loaders() - others
            assert mine
            await tiers.close()
            assert not any(thread.is_alive() for thread in mine)

        play(scene)


def _loaders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("prefix-loader")}
