"""What is done at one replica holds at the other: at once if it was never asked for, else within a
second; and never half."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import pytest

from tests.api.helpers import slowed, until
from tests.replicas.cluster import FOLLOWS_S, Caller, Sample, calling, make_tenant, within
from tests.replicas.conftest import Pair, Tenant

pytestmark = pytest.mark.alone

REPLACING_S = 5.0


def pushed(caller: Caller, name: str, sample: Sample, **headers: str) -> None:
    reply = caller.push(name, sample.prefix, **headers)
    assert reply.status_code in (200, 201), reply.text


@dataclass
class Load:
    """Somebody who never stops asking the second replica."""

    caller: Caller
    model: str
    replies: list[tuple[float, float, httpx.Response]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._running.result(60)
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            reply = self.caller.complete(self.model)
            self.replies.append((began, time.monotonic(), reply))


class TestUploads:
    def test_what_nobody_asked_for_before_is_served_at_once(
        self, acme: Tenant, samples: list[Sample]
    ) -> None:
        for number, sample in enumerate(samples):
            pushed(acme.one, f"p{number}", sample)
            assert sample.is_in(acme.two.complete(f"p{number}"))

    def test_a_name_that_was_unknown_is_followed_within_a_second(
        self, acme: Tenant, samples: list[Sample]
    ) -> None:
        assert acme.two.complete("late").status_code == 404
        pushed(acme.one, "late", samples[0])
        within(FOLLOWS_S, lambda: acme.two.version_of("late") == samples[0].digest)
        assert samples[0].is_in(acme.two.complete("late"))

    def test_a_new_replica_needs_nothing_but_its_settings(
        self, pair: Pair, acme: Tenant, samples: list[Sample]
    ) -> None:
        pushed(acme.one, "old", samples[1], **{"x-alias": "stable"})
        with pair.cluster.replica("three") as three, calling(three.url, acme.key) as caller:
            assert samples[1].is_in(caller.complete("old@stable"))
            pushed(caller, "new", samples[2])
            assert samples[2].is_in(acme.two.complete("new"))


class TestAliases:
    def test_a_move_and_a_rollback_are_followed_under_load_and_not_unlearned(
        self, acme: Tenant, samples: list[Sample]
    ) -> None:
        before, after = samples[:2]
        for sample in (after, before):
            pushed(acme.one, "tone", sample, **{"x-alias": "stable"})
        with Load(acme.two, "tone@stable") as load:
            until(lambda: len(load.replies) > 0)
            moves = []
            for move in (
                lambda: acme.one.point("tone", "stable", version=after.digest),
                lambda: acme.one.client.post("/v1/prefixes/tone/aliases/stable/rollback"),
            ):
                assert move().status_code == 200
                moves.append(time.monotonic())
                time.sleep(FOLLOWS_S + 0.5)
        moved, rolled_back = moves
        by_text = {sample.text: sample for sample in (before, after)}
        for began, _, reply in load.replies:
            assert reply.status_code == 200, reply.text
            sample = by_text[reply.json()["choices"][0]["text"]]
            assert sample.is_in(reply)
            if moved + FOLLOWS_S <= began < rolled_back - 1:
                assert sample is after
            if began >= rolled_back + FOLLOWS_S:
                assert sample is before

    def test_a_split_is_followed_and_gives_a_user_the_same_version_everywhere(
        self, acme: Tenant, samples: list[Sample]
    ) -> None:
        both = {samples[0].digest, samples[1].digest}
        for sample in samples[:2]:
            pushed(acme.one, "mix", sample, **{"x-alias": "stable"})
        assert acme.two.version_of("mix@stable") == samples[1].digest
        split = acme.one.point("mix", "stable", split=dict.fromkeys(both, 1))
        assert split.status_code == 200, split.text

        def versions(caller: Caller) -> list[str | None]:
            return [caller.version_of("mix@stable", user=f"user-{n}") for n in range(8)]

        time.sleep(FOLLOWS_S)
        assert set(versions(acme.two)) == both
        assert versions(acme.one) == versions(acme.two)


class TestRights:
    def test_a_revoked_key_is_refused_within_a_second(
        self, pair: Pair, acme: Tenant, samples: list[Sample]
    ) -> None:
        pushed(acme.one, "tone", samples[0])
        assert acme.two.version_of("tone") == samples[0].digest
        gone = pair.admin_one.client.delete(f"/admin/tenants/{acme.id}/keys/{acme.kid}")
        assert gone.status_code == 200
        assert acme.one.complete("tone").status_code == 401
        within(FOLLOWS_S, lambda: acme.two.complete("tone").status_code == 401)

    def test_a_disabled_tenant_is_refused_and_an_enabled_one_let_in_within_a_second(
        self, pair: Pair, acme: Tenant, samples: list[Sample]
    ) -> None:
        pushed(acme.one, "tone", samples[0])
        assert acme.two.version_of("tone") == samples[0].digest

        def disable(disabled: bool) -> None:
            url = f"/admin/tenants/{acme.id}"
            done = pair.admin_one.client.patch(url, json={"disabled": disabled})
            assert done.status_code == 200

        disable(True)
        within(FOLLOWS_S, lambda: acme.two.complete("tone").status_code == 401)
        disable(False)
        within(FOLLOWS_S, lambda: acme.two.complete("tone").status_code == 200)

    def test_a_publication_is_seen_and_its_end_too(
        self, pair: Pair, acme: Tenant, samples: list[Sample]
    ) -> None:
        pushed(acme.one, "tone", samples[0])
        _, _, key = make_tenant(pair.admin_one)
        url, name = "/v1/prefixes/tone/publication", f"{acme.id}/tone"
        with calling(pair.two.url, key) as guest:
            assert guest.complete(name).status_code == 404
            assert acme.one.client.put(url, json={"everyone": True}).status_code == 200
            within(FOLLOWS_S, lambda: guest.version_of(name) == samples[0].digest)
            assert acme.one.client.delete(url).status_code == 200
            within(FOLLOWS_S, lambda: guest.version_of(name) is None)


def test_a_prefix_that_is_replaced_by_others_of_other_lengths_is_never_mixed_up(
    acme: Tenant, samples: list[Sample]
) -> None:
    pushed(acme.one, "tone", samples[0])
    acme.one.point("tone", "stable", version=samples[0].digest)
    # when each version was asked for, by when the next one was confirmed, and which it is
    steps = [(0.0, samples[0])]
    confirmed = []
    for sample in samples[1:]:
        pushed(acme.one, "tone", sample)
    loads = [Load(acme.two, "tone@stable"), Load(acme.one, "tone@stable")]
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        end = time.monotonic() + REPLACING_S
        while time.monotonic() < end or len(steps) < 3 * len(samples):
            sample = samples[len(steps) % len(samples)]
            steps.append((time.monotonic(), sample))
            assert acme.one.point("tone", "stable", version=sample.digest).status_code == 200
            confirmed.append(time.monotonic())
            time.sleep(0.15)
    confirmed.append(float("inf"))
    seen = set()
    for load, lag in zip(loads, (FOLLOWS_S, 0.0), strict=True):
        for began, ended, reply in load.replies:
            current = [
                sample
                for (asked, sample), replaced in zip(steps, confirmed, strict=True)
                if asked <= ended and began <= replaced + lag
            ]
            [found] = [sample for sample in current if sample.is_in(reply)]
            seen.add(found.digest)
    assert len(seen) > len(samples) / 2


@pytest.mark.parametrize("whole", [True, False], ids=["the prefix", "a version"])
def test_rows_finish_with_what_was_deleted_under_them(
    pair: Pair, acme: Tenant, samples: list[Sample], whole: bool
) -> None:
    doomed, other = samples[4], samples[5]
    for sample in (doomed, other):
        pushed(acme.one, "tone", sample)
    model = f"tone@{doomed.digest[:12]}"
    assert doomed.is_in(acme.two.complete(model))
    with slowed(pair.two.services, 0.05), ThreadPoolExecutor(1) as pool:
        steps = pair.two.services.engine.progress().steps
        running = pool.submit(acme.two.complete, model)
        until(lambda: pair.two.services.engine.progress().steps > steps + 2)
        url = "/v1/prefixes/tone" if whole else f"/v1/prefixes/tone/versions/{doomed.digest}"
        assert acme.one.client.delete(url).status_code == 200
        assert not running.done()
        assert doomed.is_in(running.result())
    within(FOLLOWS_S, lambda: acme.two.version_of(model) is None)
    assert doomed.digest in pair.cluster.contents()
