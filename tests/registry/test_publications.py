"""Publishing: usable under the owner's name, invisible to everybody else, followed everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from app.db.change_log import ChangeKind, note
from app.db.schema import tenants
from app.errors import InvalidRequest, PrefixNotFound
from app.prefix.reference import PrefixReference
from app.registry.publications import MAX_GRANTEES
from app.registry.registry import Registry
from app.registry.types import Version
from tests.registry.conftest import Clock, Upload, resolved, statements

Ref = Callable[[str], PrefixReference]


@pytest.fixture
def version(registry: Registry, upload: Upload) -> Version:
    """`e2e` of tenant `acme`, with an alias; `demo` and `other` are the other tenants."""
    for tenant in ("acme", "other"):
        registry.ensure_tenant(tenant)
    return upload("e2e", b"one", tenant="acme", alias="stable")[0]


def publish(registry: Registry, *grantees: str, everyone: bool = False) -> None:
    registry.publications.set("acme", "e2e", grantees, everyone=everyone)


def sees(registry: Registry, tenant: str, text: str = "acme/e2e") -> bool:
    owner, _, rest = text.rpartition("/")
    name, _, selector = rest.partition("@")
    try:
        registry.resolve(tenant, PrefixReference(name, selector or None, owner or None))
    except PrefixNotFound:
        return False
    return True


def disable(registry: Registry, tenant: str, since: int | None) -> None:
    with registry.catalog.write() as (connection, epoch):
        note(connection, epoch, ChangeKind.TENANT, tenant)
        connection.execute(update(tenants).where(tenants.c.id == tenant).values(disabled_at=since))


class TestUsing:
    def test_the_tenants_named_use_every_form_of_the_name(
        self, registry: Registry, version: Version, upload: Upload, ref: Ref
    ) -> None:
        newer, _ = upload("e2e", b"two", tenant="acme")
        publish(registry, "demo")
        for _ in range(2):  # from the catalog, then from the cache
            assert registry.resolve("demo", ref("acme/e2e")) == resolved(newer)
            for selector in ("stable", version.digest, version.digest[:6]):
                found = registry.resolve("demo", ref(f"acme/e2e@{selector}"))
                assert found == resolved(version)
            assert registry.resolve("acme", ref("e2e")) == resolved(newer)
            assert not sees(registry, "other")
            assert not sees(registry, "demo", "e2e")

    def test_everyone_is_everyone_and_the_owner_itself(
        self, registry: Registry, version: Version
    ) -> None:
        publish(registry, everyone=True)
        for tenant in ("demo", "other", "acme", "whoever"):
            assert sees(registry, tenant, f"acme/e2e@{version.digest}")

    @pytest.mark.usefixtures("version")
    def test_other_prefixes_of_the_owner_stay_its_own(
        self, registry: Registry, upload: Upload
    ) -> None:
        upload("secret", b"two", tenant="acme")
        publish(registry, everyone=True)
        assert not sees(registry, "demo", "acme/secret")

    @pytest.mark.usefixtures("version")
    def test_a_split_is_chosen_for_the_callers_user(
        self, registry: Registry, version: Version, upload: Upload, ref: Ref
    ) -> None:
        newer, _ = upload("e2e", b"two", tenant="acme")
        split = {version.digest: 1, newer.digest: 1}
        registry.aliases.set("acme", "e2e", "stable", split)
        publish(registry, "demo")
        reference = ref("acme/e2e@stable")
        served = [registry.resolve("demo", reference, str(user)).digest for user in range(60)]
        assert set(served) == set(split)
        assert served == [
            registry.resolve("demo", reference, str(user)).digest for user in range(60)
        ]

    @pytest.mark.usefixtures("version")
    def test_what_consumers_may_not(self, registry: Registry, version: Version) -> None:
        publish(registry, "demo")
        book, digest = registry.aliases, version.digest
        calls: list[Callable[[], object]] = [
            lambda: registry.get_prefix("demo", "e2e"),
            lambda: registry.list_versions("demo", "e2e"),
            lambda: registry.get_version("demo", "e2e", digest),
            lambda: registry.open_content("demo", version),
            lambda: registry.delete_version("demo", "e2e", digest),
            lambda: registry.delete_prefix("demo", "e2e"),
            lambda: registry.pin("demo", "e2e", digest),
            lambda: book.get("demo", "e2e", "stable"),
            lambda: book.set("demo", "e2e", "stable", digest),
            lambda: book.history("demo", "e2e", "stable"),
            lambda: registry.publications.get("demo", "e2e"),
            lambda: registry.publications.set("demo", "e2e", ["other"], everyone=False),
        ]
        for call in calls:
            with pytest.raises(PrefixNotFound):
                call()


class TestWithdrawing:
    @pytest.mark.usefixtures("version")
    @pytest.mark.parametrize("everyone", [False, True])
    def test_it_is_gone_at_once_here_and_within_a_second_elsewhere(
        self,
        registry: Registry,
        frozen: Registry,
        clock: Clock,
        everyone: bool,
    ) -> None:
        publish(registry, "demo", everyone=everyone)
        assert sees(registry, "demo")
        assert sees(frozen, "demo")
        registry.publications.set("acme", "e2e", (), everyone=False)
        assert not sees(registry, "demo")
        assert sees(frozen, "demo")
        clock.now += 1.0
        assert not sees(frozen, "demo")
        publish(registry, "demo")
        assert sees(registry, "demo")
        clock.now += 1.0
        assert sees(frozen, "demo")

    @pytest.mark.usefixtures("version")
    def test_a_publication_is_replaced_by_the_next(self, registry: Registry) -> None:
        publish(registry, "demo", "other")
        publish(registry, "other")
        assert (sees(registry, "demo"), sees(registry, "other")) == (False, True)
        publish(registry, everyone=True)
        found = registry.publications.get("acme", "e2e")
        assert (found.tenants, found.everyone) == ((), True)
        assert sees(registry, "demo")

    @pytest.mark.usefixtures("version")
    def test_a_prefix_made_again_is_published_to_nobody(
        self, registry: Registry, upload: Upload
    ) -> None:
        publish(registry, everyone=True)
        registry.delete_prefix("acme", "e2e")
        assert not sees(registry, "demo")
        upload("e2e", b"one", tenant="acme")
        assert not sees(registry, "demo")

    @pytest.mark.usefixtures("version")
    def test_a_disabled_tenants_prefixes_are_gone_for_others(
        self,
        registry: Registry,
        frozen: Registry,
        clock: Clock,
    ) -> None:
        publish(registry, everyone=True)
        assert sees(frozen, "demo")
        disable(registry, "acme", 1)
        assert not sees(registry, "demo")
        assert registry.publications.offered("demo").items == ()
        clock.now += 1.0
        assert not sees(frozen, "demo")
        disable(registry, "acme", None)
        assert sees(registry, "demo")


class TestHiding:
    @pytest.mark.usefixtures("version")
    def test_not_published_is_not_there_in_words_and_in_queries(
        self, registry: Registry, version: Version
    ) -> None:
        publish(registry, "other")
        asked: list[list[str]] = []
        said: list[str] = []
        for name in ("acme/e2e", "acme/nothing", "nobody/e2e"):
            for selector in ("latest", "stable", version.digest):
                tenant, _, prefix = name.partition("/")
                with statements(registry) as seen, pytest.raises(PrefixNotFound) as refused:
                    registry.resolve("demo", PrefixReference(prefix, selector, tenant))
                asked.append(list(seen))
                said.append(refused.value.message.replace(f"{name}@{selector}", "…"))
                assert refused.value.param == "model"
        assert len(set(said)) == 1
        by_alias, by_digest = asked[0], asked[2]
        assert asked == [by_alias, by_alias, by_digest] * 3
        with statements(registry) as seen, pytest.raises(PrefixNotFound):
            registry.resolve("demo", PrefixReference("unknown", "stable"))
        assert list(seen) == by_alias

    @pytest.mark.usefixtures("version")
    def test_a_warm_name_asks_no_database(
        self,
        registry: Registry,
        frozen: Registry,
    ) -> None:
        publish(registry, "demo")
        for tenant in ("demo", "other"):
            sees(frozen, tenant)
        with statements(frozen) as seen:
            assert (sees(frozen, "demo"), sees(frozen, "other")) == (True, False)
        assert seen == []

    def test_publishing_to_unknown_tenants_tells_nothing(
        self, registry: Registry, version: Version
    ) -> None:
        assert version.tenant == "acme"
        publish(registry, "demo", "no-such-tenant")
        assert registry.publications.get("acme", "e2e").tenants == ("demo", "no-such-tenant")
        registry.ensure_tenant("no-such-tenant")
        assert sees(registry, "no-such-tenant")


class TestListing:
    def test_what_is_offered_comes_in_pages_once_each(
        self, registry: Registry, upload: Upload
    ) -> None:
        for tenant in ("acme", "other"):
            registry.ensure_tenant(tenant)
        wanted = []
        for number in range(13):
            owner = ("acme", "other", "demo")[number % 3]
            name = f"p{number}"
            upload(name, b"one", tenant=owner)
            to = {"acme": ["demo"], "other": [], "demo": ["acme"]}[owner]
            registry.publications.set(owner, name, to, everyone=number % 4 != 0)
            if owner != "demo" and (to or number % 4 != 0):
                wanted.append((owner, name))
        for limit in (1, 2, 3, 100):
            found, cursor = [], None
            while True:
                page = registry.publications.offered("demo", cursor, limit)
                assert len(page.items) <= limit
                found += [(each.tenant, each.name) for each in page.items]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert found == wanted

    @pytest.mark.parametrize(("cursor", "limit"), [("!", 5), (None, 0), (None, 101)])
    def test_a_wrong_cursor_or_limit_is_refused(
        self, registry: Registry, cursor: str | None, limit: int
    ) -> None:
        with pytest.raises(InvalidRequest):
            registry.publications.offered("demo", cursor, limit)


class TestChecks:
    @pytest.mark.usefixtures("version")
    @pytest.mark.parametrize(
        "grantees",
        [["*"], [""], ["A"], ["a/b"], ["acme"], [f"t{n}" for n in range(MAX_GRANTEES + 1)]],
        ids=lambda grantees: grantees[0],
    )
    def test_wrong_grantees_are_refused(self, registry: Registry, grantees: list[str]) -> None:
        with pytest.raises(InvalidRequest):
            registry.publications.set("acme", "e2e", grantees, everyone=False)
        assert registry.publications.get("acme", "e2e").tenants == ()

    def test_what_is_not_there_cannot_be_published(self, registry: Registry) -> None:
        for call in (
            lambda: registry.publications.get("demo", "nothing"),
            lambda: registry.publications.set("demo", "nothing", [], everyone=True),
            lambda: registry.publications.set("demo", "nothing", (), everyone=False),
        ):
            with pytest.raises(PrefixNotFound):
                call()
