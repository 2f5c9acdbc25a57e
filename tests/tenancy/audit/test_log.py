"""The audit log: a record exactly where there is a change, in chains that show what was done to
them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select, text, update

from app.db.database import Actor, Database
from app.db.schema import audit_log, tenants
from app.errors import Conflict, InvalidRequest, PolyprefixError, Unavailable
from app.tenancy.audit import chain
from app.tenancy.audit.chain import GENESIS, Link, link_hash, list_records, verify
from app.tenancy.audit.log import AuditedCall, AuditLog, printable
from app.tenancy.audit.refusals import Refusals
from tests.tenancy.house import Clock

CALL = {"tenant": "acme", "kid": "k1", "peer": "192.0.2.7"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(any_catalog: Database, clock: Clock) -> AuditLog:
    return AuditLog(any_catalog, "one", clock=clock)


def call_of(log: AuditLog, action: str = "tenant create", **caller: str) -> AuditedCall:
    return AuditedCall(log, {"action": action}, **(caller or CALL))


def make_tenant(catalog: Database, name: str, actor: Actor | None = None) -> None:
    with catalog.write(actor) as (connection, _):
        connection.execute(insert(tenants).values(id=name, owner=name, created_at=0))


def records(catalog: Database) -> list[Any]:
    return list(list_records(catalog).items)


def faults(catalog: Database, **heads: Link) -> dict[str, str | None]:
    return {report.replica: report.fault for report in verify(catalog, heads)}


# --- one record where there is a change ---------------------------------------------------


def test_a_change_and_its_record_are_one(any_catalog: Database, log: AuditLog) -> None:
    make_tenant(any_catalog, "new", call_of(log))
    [record] = records(any_catalog)
    assert record["outcome"] == {"status": "done"}
    assert (record["action"], record["tenant"], record["sequence"]) == ("tenant create", "acme", 1)
    assert faults(any_catalog) == {"one": None}


@pytest.mark.usefixtures("log")
def test_changes_without_an_actor_leave_no_record(any_catalog: Database) -> None:
    make_tenant(any_catalog, "new")
    assert records(any_catalog) == []


def test_several_changes_of_a_call_leave_one_record(any_catalog: Database, log: AuditLog) -> None:
    call = call_of(log)
    for name in "abc":
        make_tenant(any_catalog, name, call)
    log.granted(call)
    assert len(records(any_catalog)) == 1


def test_a_change_that_is_undone_takes_its_record_with_it(
    any_catalog: Database, log: AuditLog
) -> None:
    call = call_of(log)
    make_tenant(any_catalog, "there")
    with pytest.raises(Conflict):
        make_tenant(any_catalog, "there", call)
    assert records(any_catalog) == []
    make_tenant(any_catalog, "second-try", call)
    log.granted(call)
    [record] = records(any_catalog)
    assert (record["sequence"], record["outcome"]) == (1, {"status": "done"})


class FailingAfterItsRecord:
    """An actor whose transaction fails once its record is written, before the commit."""

    def __init__(self, call: AuditedCall) -> None:
        self.call = call

    def record(self, connection: Connection) -> None:
        self.call.record(connection)
        raise Unavailable("the disk is gone")


@pytest.mark.parametrize("committed", [False, True])
def test_a_record_says_done_if_and_only_if_it_was_committed(
    any_catalog: Database, log: AuditLog, committed: bool
) -> None:
    call = call_of(log)
    if committed:  # and its answer is lost
        make_tenant(any_catalog, "new", call)
    else:
        with pytest.raises(Unavailable):
            make_tenant(any_catalog, "new", FailingAfterItsRecord(call))
    assert call.link is not None
    log.refused(call, 503, "unavailable")
    with any_catalog.read() as connection:
        exists = connection.execute(select(tenants)).first() is not None
    assert exists is committed
    [record] = records(any_catalog)
    expected = {"status": "done"} if committed else {"status": 503, "code": "unavailable"}
    assert record["outcome"] == expected
    assert faults(any_catalog) == {"one": None}


def test_a_change_whose_record_cannot_be_written_does_not_happen(
    any_catalog: Database, log: AuditLog
) -> None:
    with any_catalog.append() as connection:
        connection.execute(text("DROP TABLE audit_log"))
    with pytest.raises(Exception, match="audit_log"):
        make_tenant(any_catalog, "new", call_of(log))
    with any_catalog.read() as connection:
        assert connection.execute(select(tenants)).all() == []
    assert any_catalog.epoch() == 0


def test_a_granted_call_that_changed_nothing_is_on_record(
    any_catalog: Database, log: AuditLog
) -> None:
    log.granted(call_of(log))
    assert records(any_catalog)[0]["outcome"] == {"status": "unchanged"}


def test_refusals_are_on_record_until_a_key_has_too_many(
    any_catalog: Database, clock: Clock
) -> None:
    log = AuditLog(any_catalog, "one", refusals=Refusals(singly=3), clock=clock)
    for _ in range(10):
        log.refused(call_of(log, "delete_prefix"), 404, "prefix_not_found")
    log.refused(call_of(log, "delete_prefix", tenant="zeta", kid="z"), 404, "prefix_not_found")
    assert len(records(any_catalog)) == 4
    log.flush()
    assert len(records(any_catalog)) == 4
    clock.now += 60
    log.flush()
    log.flush()
    *_, counted = records(any_catalog)
    assert len(records(any_catalog)) == 5
    assert (counted["action"], counted["count"], counted["kid"]) == ("refusals", 7, "k1")
    assert counted["outcome"] == {"status": "refused", "code": "prefix_not_found"}
    assert faults(any_catalog) == {"one": None}


def test_refusals_that_cannot_be_written_are_counted_and_written_later(
    any_catalog: Database, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> None:
        raise Unavailable("the catalog is busy")

    with monkeypatch.context() as patch:
        patch.setattr(any_catalog, "append", down)
        log.refused(call_of(log, "delete_prefix"), 404, "prefix_not_found")
        for _ in range(2):
            with pytest.raises(Unavailable):
                log.flush(everything=True)
        with pytest.raises(Unavailable):
            log.granted(call_of(log, "delete_prefix"))
    log.flush(everything=True)
    assert [record["count"] for record in records(any_catalog)] == [1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("support-tone", "support-tone"),
        ("3f9a0c" * 10, "3f9a0c" * 10),
        ("pfx_hLgGlFxdxg9a_IfyMBGOWX6t6RB0fqzGYaZJ4YXaoAyE7_1pkWDP", "pfx_hLgGlFxdxg9a"),
        ("key:pfx_hLgGlFxdxg9a_IfyMBGOWX6t6RB0fqzGYaZJ4YXaoAyE7_1pkWDP", "?"),
        ("a secret sentence", "?"),
        ("x" * 129, "?"),
        ("name\n", "?"),
        ("é", "?"),
    ],
)
def test_only_names_are_repeated(value: str, expected: str) -> None:
    assert printable(value) == expected


# --- chains -------------------------------------------------------------------------------


def fill(catalog: Database, replica: str, count: int) -> list[Link]:
    links = []
    for number in range(count):
        with catalog.append() as connection:
            link = chain.append(connection, replica, 100 + number, "acme", {"n": number})
            links.append(link)
    return links


def test_every_record_follows_the_one_before(any_catalog: Database) -> None:
    fill(any_catalog, "one", 3)
    with any_catalog.read() as connection:
        rows = connection.execute(select(audit_log).order_by(audit_log.c.sequence)).all()
    previous = GENESIS
    for number, row in enumerate(rows, start=1):
        assert (row.sequence, row.previous) == (number, previous)
        assert row.hash == link_hash(previous, row.record)
        previous = row.hash


def test_two_processes_of_one_name_make_one_chain(catalog_url: str) -> None:
    catalogs = [Database(catalog_url) for _ in range(3)]
    errors: list[Exception] = []

    def writing(catalog: Database, number: int) -> None:
        try:
            log = AuditLog(catalog, "same")
            for index in range(15):
                make_tenant(catalog, f"t{number}-{index}", call_of(log))
                fill(catalog, "same", 1)
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=writing, args=(catalog, number))
        for number, catalog in enumerate(catalogs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    [report] = verify(catalogs[0])
    assert (report.records, report.fault) == (90, None)
    for catalog in catalogs:
        catalog.close()


def test_a_number_that_is_always_taken_is_unavailable(
    any_catalog: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(any_catalog, "one", 1)
    monkeypatch.setattr(chain, "_head", lambda *_: (0, GENESIS))
    with pytest.raises(Unavailable, match="too many"):
        fill(any_catalog, "one", 1)


def test_lists_are_by_time_in_pages_and_may_be_of_one_tenant(any_catalog: Database) -> None:
    fill(any_catalog, "one", 5)
    fill(any_catalog, "two", 4)
    with any_catalog.append() as connection:
        chain.append(connection, "one", 102, "zeta", {})
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = list_records(any_catalog, tenant="acme", start=101, cursor=cursor, limit=2)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    places = [(record["at"], record["replica"], record["sequence"]) for record in found]
    assert places == sorted(places)
    assert len(places) == 7
    assert len(list_records(any_catalog, start=101, end=103).items) == 5
    with pytest.raises(InvalidRequest, match="cursor"):
        list_records(any_catalog, cursor="W10")


def test_a_sound_chain_longer_than_a_page_is_sound(
    any_catalog: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_PAGE", 3)
    links = fill(any_catalog, "one", 10)
    assert faults(any_catalog, one=links[4]) == {"one": None}
    [report] = verify(any_catalog)
    assert (report.records, report.head) == (10, links[-1])


def test_a_removed_record_is_found(any_catalog: Database) -> None:
    links = fill(any_catalog, "one", 5)
    fill(any_catalog, "two", 5)
    with any_catalog.append() as connection:
        gone = (audit_log.c.replica == "one") & (audit_log.c.sequence == 3)
        connection.execute(delete(audit_log).where(gone))
    one, two = verify(any_catalog)
    assert (one.fault, one.head) == ("record 3 is missing; the next one is 4", links[1])
    assert two.fault is None


def test_a_chain_without_its_beginning_is_found(any_catalog: Database) -> None:
    fill(any_catalog, "one", 5)
    with any_catalog.append() as connection:
        connection.execute(delete(audit_log).where(audit_log.c.sequence <= 2))
    [report] = verify(any_catalog)
    assert (report.fault, report.head) == ("record 1 is missing; the next one is 3", None)


def test_a_cut_or_missing_end_is_found_by_a_kept_head_alone(any_catalog: Database) -> None:
    links = fill(any_catalog, "one", 5)
    lost = fill(any_catalog, "two", 2)[-1]
    with any_catalog.append() as connection:
        late = (audit_log.c.sequence > 3) | (audit_log.c.replica == "two")
        connection.execute(delete(audit_log).where(late))
    assert faults(any_catalog) == {"one": None}
    found = faults(any_catalog, one=links[-1], two=lost)
    assert found == {
        "one": "record 5 with the hash that was kept is not in it",
        "two": "is gone: record 2 was its head",
    }


def test_a_chain_that_was_written_anew_is_found_by_a_kept_head(any_catalog: Database) -> None:
    kept = fill(any_catalog, "one", 4)[-1]
    with any_catalog.append() as connection:
        connection.execute(delete(audit_log))
        for number in range(6):
            chain.append(connection, "one", 100 + number, "acme", {"forged": number})
    assert faults(any_catalog) == {"one": None}
    assert faults(any_catalog, one=kept)["one"] is not None


def test_swapped_records_are_found(any_catalog: Database) -> None:
    fill(any_catalog, "one", 4)
    with any_catalog.append() as connection:
        for before, after in ((2, 99), (3, 2), (99, 3)):
            where = audit_log.c.sequence == before
            connection.execute(update(audit_log).where(where).values(sequence=after))
    assert "does not follow" in str(faults(any_catalog)["one"])


@pytest.fixture(scope="module")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A catalog with one chain; whoever changes it puts it back."""
    catalog = Database(f"sqlite:///{tmp_path_factory.mktemp('audit')}/catalog.sqlite")
    log = AuditLog(catalog, "one")
    for name in "abcde":
        make_tenant(catalog, name, call_of(log))
        log.refused(call_of(log, "delete_prefix"), 404, "prefix_not_found")
    assert faults(catalog) == {"one": None}
    yield catalog
    catalog.close()


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)
COLUMNS = {
    "replica": TEXTS,
    "sequence": st.integers(-(2**62), 2**62),
    "at": st.integers(0, 2**62),
    "tenant_id": TEXTS,
    "record": TEXTS,
    "previous": TEXTS,
    "hash": TEXTS,
}


def is_found(catalog: Database, sequence: int, values: dict[str, object]) -> bool:
    """Whether a change of a record is noticed; it is taken back."""
    where = audit_log.c.sequence == sequence
    with catalog.read() as connection:
        before = dict(connection.execute(select(audit_log).where(where)).mappings().one())
    try:
        with catalog.append() as connection:
            connection.execute(update(audit_log).where(where).values(values))
    except PolyprefixError:
        return True  # the number is another record's
    found = any(fault is not None for fault in faults(catalog).values())
    with catalog.append() as connection:
        moved = (audit_log.c.replica == values.get("replica", before["replica"])) & (
            audit_log.c.sequence == values.get("sequence", before["sequence"])
        )
        connection.execute(update(audit_log).where(moved).values(before))
    assert faults(catalog) == {"one": None}
    return found


@pytest.mark.parametrize("number", [0, -1])
def test_a_last_record_with_a_number_below_the_first_is_found(
    tampered: Database, number: int
) -> None:
    assert is_found(tampered, 10, {"sequence": number})


@given(sequence=st.integers(1, 10), data=st.data())
def test_a_change_of_any_column_is_found(
    tampered: Database, sequence: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    with tampered.read() as connection:
        where = audit_log.c.sequence == sequence
        present = connection.scalar(select(audit_log.c[name]).where(where))
    value = data.draw(COLUMNS[name].filter(lambda drawn: drawn != present))
    assert is_found(tampered, sequence, {name: value})


@given(sequence=st.integers(1, 10), data=st.data())
def test_a_change_of_any_fact_is_found(
    tampered: Database, sequence: int, data: st.DataObject
) -> None:
    with tampered.read() as connection:
        where = audit_log.c.sequence == sequence
        record = connection.scalar(select(audit_log.c.record).where(where))
    facts = json.loads(record)
    name = data.draw(st.sampled_from(sorted(facts)))
    facts[name] = data.draw((TEXTS | st.integers() | st.none()).filter(lambda x: x != facts[name]))
    changed = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert is_found(tampered, sequence, {"record": changed})


def test_a_last_record_that_was_changed_with_its_hash_contradicts_its_columns(
    tampered: Database,
) -> None:
    with tampered.read() as connection:
        row = connection.execute(select(audit_log).where(audit_log.c.sequence == 10)).one()
    facts = {**json.loads(row.record), "tenant": "zeta"}
    forged = json.dumps(facts)
    values = {"record": forged, "hash": link_hash(row.previous, forged)}
    assert is_found(tampered, 10, values)
