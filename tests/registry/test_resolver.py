"""What a reference stands for: right, the same for all that is not the caller's, and cheap."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from app.errors import InsufficientStorage, InvalidRequest, PrefixNotFound
from app.prefix.reference import PrefixReference
from app.registry.registry import Registry
from app.registry.resolver import Resolver
from app.registry.types import Version
from tests.registry.conftest import Clock, Upload, resolved, statements

Ref = Callable[[str], PrefixReference]


class TestMeaning:
    def test_a_bare_name_is_its_latest(self, registry: Registry, upload: Upload, ref: Ref) -> None:
        for data in (b"one", b"two"):
            version, _ = upload("e2e", data)
            assert registry.resolve("demo", ref("e2e")) == resolved(version)
            assert registry.resolve("demo", ref("e2e@latest")) == resolved(version)

    def test_an_alias_and_a_digest_and_its_start(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        one, _ = upload("e2e", b"one", alias="stable")
        upload("e2e", b"two")
        for selector in ("stable", one.digest, one.digest[:6], one.digest[:40]):
            assert registry.resolve("demo", ref(f"e2e@{selector}")) == resolved(one)

    def test_the_callers_own_tenant_may_be_named(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        version, _ = upload("e2e", b"one")
        assert registry.resolve("demo", ref("demo/e2e")) == resolved(version)

    def test_not_there_and_not_yours_are_the_same(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        registry.ensure_tenant("acme")
        version, _ = upload("e2e", b"one", tenant="acme", alias="stable")
        upload("mine", b"one")
        for _ in range(2):  # from the catalog, then from the cache
            for text in (
                "e2e",
                "e2e@stable",
                f"e2e@{version.digest}",
                "mine@stable",
                f"mine@{'0' * 64}",
                "acme/e2e",
                "acme/other",
                "nobody/e2e",
            ):
                reference = ref(text)
                with pytest.raises(PrefixNotFound) as refused:
                    registry.resolve("demo", reference)
                assert refused.value.message == f"prefix '{reference}' does not exist"
                assert refused.value.param == "model"

    def test_an_ambiguous_start_is_the_callers_to_lengthen(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        for last in "01":
            upload("e2e", last.encode(), digest="abcdef" + "0" * 57 + last)
        with pytest.raises(InvalidRequest, match="ambiguous"):
            registry.resolve("demo", ref("e2e@abcdef"))


class TestCache:
    def test_a_warm_resolve_asks_no_database(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        upload("e2e", b"one")
        frozen.catalog.feed.poll()
        frozen.resolve("demo", ref("e2e"))
        with pytest.raises(PrefixNotFound):
            frozen.resolve("demo", ref("unknown"))
        with statements(frozen) as seen:
            assert frozen.resolve("demo", ref("e2e")) is frozen.resolve("demo", ref("e2e"))
            with pytest.raises(PrefixNotFound):
                frozen.resolve("demo", ref("unknown"))
        assert seen == []

    def test_resolve_cached_never_asks(self, frozen: Registry, upload: Upload, ref: Ref) -> None:
        version, _ = upload("e2e", b"one")
        with statements(frozen) as seen:
            assert frozen.resolve_cached("demo", ref("e2e")) is None
        assert seen == []
        frozen.resolve("demo", ref("e2e"))
        assert frozen.resolve_cached("demo", ref("e2e")) == resolved(version)
        with pytest.raises(PrefixNotFound):
            frozen.resolve("demo", ref("unknown"))
        with pytest.raises(PrefixNotFound):
            frozen.resolve_cached("demo", ref("unknown"))

    def test_resolve_cached_wants_a_look_when_time_has_passed(
        self, frozen: Registry, upload: Upload, ref: Ref, clock: Clock
    ) -> None:
        version, _ = upload("e2e", b"one")
        frozen.resolve("demo", ref("e2e"))
        clock.now += 1.0
        assert frozen.resolve_cached("demo", ref("e2e")) is None
        frozen.resolve("demo", ref("e2e"))
        assert frozen.resolve_cached("demo", ref("e2e")) == resolved(version)

    def test_every_write_of_this_process_is_seen_at_once(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        with pytest.raises(PrefixNotFound):
            registry.resolve("demo", ref("e2e"))
        one, _ = upload("e2e", b"one")
        assert registry.resolve("demo", ref("e2e")) == resolved(one)
        two, _ = upload("e2e", b"two", alias="stable")
        assert registry.resolve("demo", ref("e2e")) == resolved(two)
        registry.aliases.set("demo", "e2e", "stable", one.digest)
        assert registry.resolve("demo", ref("e2e@stable")) == resolved(one)
        registry.aliases.rollback("demo", "e2e", "stable")
        assert registry.resolve("demo", ref("e2e@stable")) == resolved(two)
        assert registry.pin("demo", "e2e", two.digest).pinned
        registry.delete_version("demo", "e2e", one.digest)
        with pytest.raises(PrefixNotFound):
            registry.resolve("demo", ref(f"e2e@{one.digest}"))
        registry.delete_prefix("demo", "e2e")
        with pytest.raises(PrefixNotFound):
            registry.resolve("demo", ref("e2e"))

    def test_writes_of_other_processes_are_seen_within_a_second(
        self, frozen: Registry, upload: Upload, ref: Ref, clock: Clock
    ) -> None:
        one, _ = upload("e2e", b"one")
        assert frozen.resolve("demo", ref("e2e")) == resolved(one)
        two, _ = upload("e2e", b"two")  # through another registry on the same catalog
        assert frozen.resolve("demo", ref("e2e")) == resolved(one)
        clock.now += 1.0
        with statements(frozen) as seen:
            assert frozen.resolve("demo", ref("e2e")) == resolved(two)
        assert len(seen) > 0
        clock.now += 1.0
        with statements(frozen) as seen:
            frozen.resolve("demo", ref("e2e"))
        assert len([sql for sql in seen if sql.startswith("SELECT")]) == 1  # the epoch alone

    def test_after_a_write_in_doubt_the_catalog_is_asked(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        one, _ = upload("e2e", b"one")
        assert frozen.resolve("demo", ref("e2e")) == resolved(one)
        two, _ = upload("e2e", b"two")

        class Failing:
            def record(self, _: Connection) -> None:
                raise InsufficientStorage("who knows whether this was committed")

        with pytest.raises(InsufficientStorage), frozen.catalog.write(Failing()):
            pass
        assert frozen.resolve("demo", ref("e2e")) == resolved(two)

    def test_writes_that_are_refused_keep_nobody_from_the_cache(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        one, _ = upload("e2e", b"one")
        assert frozen.resolve("demo", ref("e2e")) == resolved(one)
        with pytest.raises(PrefixNotFound):
            frozen.aliases.set("demo", "nothing", "stable", one.digest)
        with statements(frozen) as seen:
            assert frozen.resolve("demo", ref("e2e")) == resolved(one)
        assert seen == []

    def test_a_flood_of_unknown_names_is_bounded_and_displaces_nothing(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        resolver = Resolver(frozen.catalog, known=4, unknown=8)
        bounded = Registry(frozen.catalog, frozen.objects, resolver=resolver)
        upload("e2e", b"one")
        bounded.catalog.feed.poll()
        bounded.resolve("demo", ref("e2e"))
        for number in range(50):
            with pytest.raises(PrefixNotFound):
                bounded.resolve("demo", ref(f"unknown-{number}"))
        state = resolver.cache.debug_state()
        assert (len(state["known"]), len(state["unknown"])) == (1, 8)
        with statements(bounded) as seen:
            bounded.resolve("demo", ref("e2e"))
        assert seen == []

    def test_the_longest_unused_goes_first(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        resolver = Resolver(frozen.catalog, known=2)
        bounded = Registry(frozen.catalog, frozen.objects, resolver=resolver)
        for name in ("a", "b", "c"):
            upload(name, name.encode())
        bounded.catalog.feed.poll()
        for name in ("a", "b", "a", "c"):
            bounded.resolve("demo", ref(name))
        with statements(bounded) as seen:
            bounded.resolve("demo", ref("a"))
            assert seen == []
            bounded.resolve("demo", ref("b"))
            assert seen != []

    def test_tenants_have_entries_of_their_own(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        registry.ensure_tenant("acme")
        upload("e2e", b"one")
        registry.resolve("demo", ref("e2e"))
        with pytest.raises(PrefixNotFound):
            registry.resolve("acme", ref("e2e"))


class TestRaces:
    def test_a_change_drops_what_it_concerns_and_nothing_else(
        self, frozen: Registry, upload: Upload, ref: Ref
    ) -> None:
        for name in ("a", "b"):
            upload(name, name.encode())
            frozen.resolve("demo", ref(name))
            frozen.resolve("demo", ref(f"demo/{name}"))
        two, _ = upload("a", b"two")
        frozen.catalog.feed.poll()
        assert frozen.resolve_cached("demo", ref("a")) is None
        assert frozen.resolve_cached("demo", ref("demo/a")) is None
        assert frozen.resolve_cached("demo", ref("b")) is not None
        assert frozen.resolve_cached("demo", ref("demo/b")) is not None
        assert frozen.resolve("demo", ref("a")) == resolved(two)

    def test_readers_never_see_what_was_before_a_finished_write(
        self, registry: Registry, upload: Upload, ref: Ref
    ) -> None:
        reference = ref("e2e")
        order: dict[str, int] = {}
        finished = [upload("e2e", b"first")[0]]
        order[finished[0].digest] = 0
        wrong: list[tuple[int, Version]] = []
        done = threading.Event()

        def reading() -> None:
            while not done.is_set():
                known = len(finished) - 1
                version = registry.resolve("demo", reference)
                if order.get(version.digest, known) < known:
                    wrong.append((known, version))

        readers = [threading.Thread(target=reading) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(1, 20):
            version, _ = upload("e2e", f"{number}".encode())
            order[version.digest] = number
            finished.append(version)
        done.set()
        for reader in readers:
            reader.join()
        assert wrong == []
