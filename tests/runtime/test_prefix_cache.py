"""The tiers: LRU by bytes, and nothing is evicted from under a lease."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Overloaded, PrefixErased
from app.runtime.prefix_cache import Lease, PrefixCache, PrefixKey
from tests.prefix.scenes import UNIT, A, B, C, D, Store, make_prefix, play, use


class TestWhereAPrefixIsFound:
    def test_first_in_the_store_then_on_the_device(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            assert tiers.try_acquire(A) is None
            assert tiers.contains(A) is None
            assert await use(tiers, A, A, A) == ["store", "device", "device"]
            assert tiers.contains(A) == "device"
            assert store.loads[A] == 1

        play(scene)

    def test_in_the_host_tier_after_the_device_has_dropped_it(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            assert await use(tiers, A, B) == ["store", "store"]
            assert tiers.contains(A) == "host"
            assert await use(tiers, A) == ["host"]
            assert store.loads == {A: 1, B: 1}

        play(scene, device_units=1)

    def test_a_warm_lease_needs_no_waiting(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            await use(tiers, A)
            lease = tiers.try_acquire(A)
            assert lease is not None
            assert lease.tier == "device"

        play(scene)

    def test_the_same_content_of_two_owners_is_loaded_for_each(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            other = PrefixKey("other", A.digest)
            assert await use(tiers, A, other) == ["store", "store"]
            assert store.loads == {A: 1, other: 1}

        play(scene)

    def test_loads_run_in_the_loaders_threads(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            await asyncio.gather(*(use(tiers, key) for key in (A, B, C, D)))
            assert store.threads
            assert all(name.startswith("prefix-loader") for name in store.threads)
            assert len(store.threads) <= 2

        play(scene)

    def test_the_device_has_the_serving_dtype_and_the_host_the_files(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            lease = await tiers.acquire(A)
            assert lease.prefix.decoder.keys.dtype == torch.float32
            assert lease.prefix.digest == make_prefix(dtype=torch.float16).digest
            stats = tiers.stats()
            assert stats["device"].nbytes == 2 * stats["host"].nbytes == UNIT

        play(scene, stored=torch.float16)


class TestEviction:
    def test_the_least_recently_used_goes_first(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            await use(tiers, A, B, C, A, D)
            held = [tiers.contains(key) for key in (A, B, C, D)]
            assert held == ["device", "host", "device", "device"]
            assert tiers.stats()["device"].evictions == 1

        play(scene, device_units=3)

    def test_looking_does_not_count_as_use(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            await use(tiers, A, B)
            assert tiers.contains(A) == "device"
            await use(tiers, C)
            assert tiers.contains(A) == "host"

        play(scene, device_units=2)

    def test_a_long_prefix_takes_the_room_of_several(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.lengths[D] = 2
            await use(tiers, A, B, C, D)
            held = [tiers.contains(key) for key in (A, B, C, D)]
            assert held == ["host", "host", "device", "device"]
            assert tiers.stats()["device"].nbytes == 3 * UNIT

        play(scene, device_units=3)

    def test_the_host_tier_evicts_by_its_own_bytes(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            await use(tiers, A, B, C)
            assert [tiers.contains(key) for key in (A, B, C)] == [None, "host", "device"]
            assert await use(tiers, A) == ["store"]
            assert store.loads[A] == 2

        play(scene, device_units=1, host_units=2)

    def test_what_is_larger_than_the_host_tier_is_served_all_the_same(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.lengths[B] = 3
            await use(tiers, A, B)
            assert tiers.stats()["host"].entries == 1
            assert [tiers.contains(key) for key in (A, B)] == ["device", "device"]

        play(scene, host_units=2)

    def test_what_is_larger_than_the_device_tier_is_refused_and_evicts_nothing(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.lengths[B] = 3
            await use(tiers, A)
            with pytest.raises(Overloaded):
                await tiers.acquire(B)
            assert tiers.contains(A) == "device"

        play(scene, device_units=2)

    def test_nothing_is_evicted_when_that_would_not_make_room_enough(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            store.lengths[C] = 2
            await use(tiers, A)
            lease = await tiers.acquire(B)
            with pytest.raises(Overloaded):
                await tiers.acquire(C)
            assert tiers.contains(A) == "device"
            assert tiers.stats()["device"].evictions == 0
            lease.release()
            assert await use(tiers, C) == ["host"]

        play(scene, device_units=2)

    def test_a_prefix_can_be_forgotten(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            lease = await tiers.acquire(A)
            tiers.evict(A)
            tiers.evict(B)
            assert tiers.contains(A) is None
            assert [stats.nbytes for stats in tiers.stats().values()] == [0, 0]
            assert bool(torch.isfinite(lease.prefix.decoder.keys).all())
            lease.release()
            assert await use(tiers, A) == ["store"]
            assert store.loads[A] == 2

        play(scene)


class TestLeases:
    def test_a_leased_prefix_is_not_evicted(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            lease = await tiers.acquire(A)
            await use(tiers, B, C, D)
            assert tiers.contains(A) == "device"
            lease.release()
            await use(tiers, B, C)
            assert tiers.contains(A) == "host"

        play(scene, device_units=2)

    def test_leases_that_fill_the_device_make_others_wait_their_turn(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            leases = [await tiers.acquire(key) for key in (A, B)]
            with pytest.raises(Overloaded, match=f"{2 * UNIT} bytes"):
                await tiers.acquire(C)
            assert tiers.try_acquire(A) is not None
            leases[1].release()
            assert await use(tiers, C) == ["host"]

        play(scene, device_units=2)

    def test_every_lease_counts(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            first, second = await tiers.acquire(A), await tiers.acquire(A)
            first.release()
            with pytest.raises(Overloaded):
                await tiers.acquire(B)
            second.release()
            assert await use(tiers, B) == ["host"]

        play(scene, device_units=1)

    def test_releasing_twice_counts_once(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            first, second = await tiers.acquire(A), await tiers.acquire(A)
            first.release()
            first.release()
            with pytest.raises(Overloaded):
                await tiers.acquire(B)
            second.release()

        play(scene, device_units=1)


class TestPins:
    def test_a_pinned_prefix_stays_in_both_tiers(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            tiers.keep_pins([A])
            await use(tiers, A, B, C, D)
            assert await use(tiers, A) == ["device"]
            assert tiers.stats()["host"].entries == 2
            assert store.loads[A] == 1

        play(scene, device_units=2, host_units=2)

    def test_it_can_be_unpinned(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            tiers.keep_pins([A])
            await use(tiers, A, B)
            tiers.keep_pins([])
            await use(tiers, C, D)
            assert tiers.contains(A) is None

        play(scene, device_units=2, host_units=2)

    def test_pins_of_one_owner_do_not_shut_others_out(self) -> None:
        async def scene(tiers: PrefixCache, store: Store) -> None:
            tiers.keep_pins([A, B, C, D])
            await use(tiers, A, B, C, D)
            others = [PrefixKey("other", digit * 64) for digit in "ab"]
            assert await use(tiers, *others) == ["store", "store"]
            # half of the tier goes to the pins that were used last
            assert [tiers.contains(key) for key in (A, B, C, D)] == [None, None, "device", "device"]
            assert tiers.stats()["device"].nbytes <= 4 * UNIT
            assert store.loads[others[0]] == 1

        play(scene, device_units=4, host_units=4)

    def test_an_evicted_prefix_is_gone_and_stays_pinned_for_others_that_use_its_content(
        self,
    ) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            tiers.keep_pins([A])
            await use(tiers, A)
            tiers.evict(A)
            assert tiers.contains(A) is None
            await use(tiers, A, B, C)
            assert tiers.contains(A) == "device"

        play(scene, device_units=2, host_units=2)

    def test_pins_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.runtime.prefix_cache.MAX_PINNED", 1)

        async def scene(tiers: PrefixCache, _store: Store) -> None:
            tiers.keep_pins([A, B])
            await use(tiers, A, B, C, D)
            assert (tiers.contains(A), tiers.contains(B)) == (None, "device")

        play(scene, device_units=2, host_units=2)


_KEYS = [PrefixKey("owner", f"{index:064x}") for index in range(6)]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "use", "release", "keep_pins", "evict"]),
        st.sampled_from(_KEYS),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(_STEPS)
def test_bytes_add_up_and_leases_hold_whatever_is_done(steps: list[tuple[str, PrefixKey]]) -> None:
    async def scene(tiers: PrefixCache, store: Store) -> None:
        store.lengths.update({key: 1 + index % 3 for index, key in enumerate(_KEYS)})
        leases: dict[PrefixKey, list[Lease]] = {key: [] for key in _KEYS}
        for action, key in steps:
            await _act(tiers, leases, action, key)
            tiers.check_integrity()
            assert all(tiers.contains(key) == "device" for key in _KEYS if leases[key])

    play(scene, device_units=5, host_units=4)


async def _act(
    tiers: PrefixCache, leases: dict[PrefixKey, list[Lease]], action: str, key: PrefixKey
) -> None:
    if action == "keep_pins":
        tiers.keep_pins([key] if key not in tiers.debug_state()["pinned"] else [])
    elif action == "release":
        for lease in leases[key]:
            lease.release()
        leases[key].clear()
    elif action == "evict":
        if not leases[key]:
            tiers.evict(key)
    else:
        try:
            lease = await tiers.acquire(key)
        except Overloaded:
            assert tiers.contains(key) != "device"
            return
        if action == "use":
            lease.release()
        else:
            leases[key].append(lease)


class TestRevocation:
    def test_what_is_revoked_is_forgotten_and_told(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            lease = await tiers.acquire(A)
            assert tiers.held_keys() == {A}
            assert tiers.revoke(A) == [lease.prefix]
            assert tiers.held_keys() == set()
            assert tiers.revoke(A) == []
            lease.release()

        play(scene)

    def test_a_load_under_way_brings_nothing_back(self) -> None:
        async def scene(tiers: PrefixCache, _store: Store) -> None:
            waiting = asyncio.ensure_future(tiers.acquire(A))
            await asyncio.sleep(0)
            assert tiers.held_keys() == {A}
            tiers.revoke(A)
            with pytest.raises(PrefixErased):
                await waiting
            await asyncio.sleep(0)
            assert tiers.held_keys() == set()
            assert tiers.debug_state()["leases"] == 0

        play(scene)
