"""Who is let in with what, at what cost, and what the others are told."""

from __future__ import annotations

import hmac
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from app.errors import InvalidKey, PolyprefixError, RateLimited, Unavailable
from app.tenancy.auth import authenticator as module
from app.tenancy.auth.authenticator import Anonymous
from app.tenancy.auth.keys import _checksum, mint
from app.tenancy.auth.principal import Principal, Scope
from app.tenancy.limits.limits import TenantLimits
from tests.tenancy.house import PEER, House, open_house

NOW = 1_800_000_000


def enter(house: House, text: str | None, peer: str = PEER) -> Principal:
    """As the gate does it."""
    found = house.authenticator.authenticate_cached(text, peer)
    return found or house.authenticator.authenticate(text, peer)


def refused(house: House, text: str | None) -> PolyprefixError:
    with pytest.raises(InvalidKey) as error:
        enter(house, text)
    return error.value


@contextmanager
def statements(house: House) -> Iterator[list[str]]:
    """What is asked of the database within the block."""
    seen: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    engine = house.catalog.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_bearer_of_a_key_is_known(house: House) -> None:
    house.accounts.change("acme", limits={"max_rows": 3})
    _, key = house.keyring.create("acme", scopes=[Scope.TRAIN])
    expected = Principal("acme", key.kid, frozenset({Scope.TRAIN}), TenantLimits(max_rows=3))
    assert enter(house, key.text) == expected


def test_a_warm_key_asks_nobody(house: House) -> None:
    _, key = house.keyring.create("acme")
    enter(house, key.text)
    with statements(house) as asked:
        assert house.authenticator.authenticate_cached(key.text, PEER)
        unknown = mint().text
        refused(house, unknown)
        before = len(asked)
        refused(house, unknown)
    assert before == len(asked) > 0
    assert len([one for one in asked if "api_keys" in one]) == 1


def test_a_cold_key_is_not_looked_up_on_the_event_loop(house: House) -> None:
    _, key = house.keyring.create("acme")
    house.feed.poll()
    with statements(house) as asked:
        assert house.authenticator.authenticate_cached(key.text, PEER) is None
        assert house.authenticator.authenticate_cached(mint().text, PEER) is None
    assert asked == []


def test_a_warm_key_costs_microseconds(house: House) -> None:
    _, key = house.keyring.create("acme")
    enter(house, key.text)
    times = []
    for _ in range(2000):
        begun = time.perf_counter()
        house.authenticator.authenticate_cached(key.text, PEER)
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 100e-6


def test_whatever_is_wrong_the_answer_is_the_same(house: House) -> None:
    def made(**options: object) -> str:
        return house.keyring.create("acme", **options)[1].text

    valid, other = made(), mint().text
    revoked, expired = made(), made(expires_at=NOW + 1)
    early = made(not_before=NOW + 100)
    house.keyring.revoke("acme", revoked[4:16])
    house.clock.now += 1
    house.accounts.create("corp")
    _, disabled = house.keyring.create("corp")
    house.accounts.change("corp", disabled=True)
    wrong_secret = next(_keys_with(valid[4:16]))
    bad = [None, "", "x", "ÿ" * 56, valid[:-1] + ("0" if valid[-1] != "0" else "1"), other]
    bad += [wrong_secret, revoked, expired, early, disabled.text, valid + "0", "é" * 600]
    errors = [refused(house, text) for text in bad for _ in range(2)]
    told = {(e.message, e.code, e.status, str(e.headers), e.param) for e in errors}
    assert len(told) == 1
    assert "Bearer" in errors[0].headers["www-authenticate"]
    assert enter(house, valid).tenant == "acme"


def _keys_with(kid: str) -> Iterator[str]:
    """Well-formed keys with this kid and other secrets."""
    while True:
        body = f"pfx_{kid}_{mint().text[17:49]}"
        yield f"{body}_{_checksum(body)}"


def test_comparing_takes_constant_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def noted(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(module.hmac, "compare_digest", noted)
    _, key = house.keyring.create("acme")
    enter(house, key.text)
    counts = []
    for text in (next(_keys_with(key.kid)), mint().text, "no key at all"):
        before = len(compared)
        refused(house, text)
        counts.append(len(compared) - before)
    assert set(compared) == {(64, 64)}
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_wrong_key_of_a_kid_in_use_costs_what_one_of_no_kid_costs(
    house: House, monkeypatch: pytest.MonkeyPatch, is_warm: bool
) -> None:
    """Statements and comparisons, of the first attempt and of the next ones."""
    compared: list[str] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(
        module.hmac, "compare_digest", lambda *pair: compared.append("") or compare(*pair)
    )
    _, key = house.keyring.create("acme")
    _, other = house.keyring.create("acme")
    enter(house, (key if is_warm else other).text)
    wrong = _keys_with(key.kid)
    nobodys = mint()
    costs = []
    for texts in ([next(wrong) for _ in range(3)], [nobodys.text] * 3):
        steps = []
        for text in texts:
            compared.clear()
            with statements(house) as asked:
                refused(house, text)
            steps.append((len(asked), len(compared)))
        costs.append(steps)
    assert costs[0] == costs[1]
    assert costs[0][0][0] > 0 == costs[0][1][0]
    assert enter(house, key.text).kid == key.kid


def test_a_wrong_key_never_locks_the_right_one_out(house: House) -> None:
    _, key = house.keyring.create("acme")
    for wrong in (next(_keys_with(key.kid)) for _ in range(3)):
        refused(house, wrong)
        assert enter(house, key.text).kid == key.kid


def test_a_key_begins_and_ends_by_the_clock_although_it_is_known(house: House) -> None:
    _, key = house.keyring.create("acme", not_before=NOW + 10, expires_at=NOW + 20)
    for after, let_in in ((0, False), (9.9, False), (10, True), (19.9, True), (20, False)):
        house.clock.now = NOW + after
        if let_in:
            assert enter(house, key.text)
        else:
            refused(house, key.text)


def test_another_replica_follows_once_it_polls(house: House, tmp_path: Path) -> None:
    _, key = house.keyring.create("acme")
    other = open_house(tmp_path)
    assert enter(other, key.text)
    house.keyring.revoke("acme", key.kid)
    other.feed.poll()
    refused(other, key.text)
    _, later = house.keyring.create("acme")
    refused_before = mint().text
    refused(other, refused_before)
    other.feed.poll()
    assert enter(other, later.text)
    house.accounts.change("acme", disabled=True)
    other.feed.poll()
    refused(other, later.text)
    house.accounts.change("acme", disabled=False, limits={"max_rows": 1})
    other.feed.poll()
    assert enter(other, later.text).limits.max_rows == 1
    house.accounts.delete("acme")
    other.feed.poll()
    refused(other, later.text)
    other.catalog.close()


def test_old_knowledge_is_not_used(house: House, tmp_path: Path) -> None:
    _, key = house.keyring.create("acme")
    other = open_house(tmp_path)
    assert enter(other, key.text)
    house.keyring.revoke("acme", key.kid)
    other.clock.now += 1
    assert other.authenticator.authenticate_cached(key.text, PEER) is None
    refused(other, key.text)
    other.catalog.close()


def test_a_key_made_with_another_pepper_is_of_no_use(house: House, tmp_path: Path) -> None:
    other = open_house(tmp_path, pepper=b"another pepper of 32 characters or more")
    _, key = other.keyring.create("acme")
    refused(house, key.text)
    assert enter(other, key.text)
    other.catalog.close()


def test_a_catalog_that_does_not_answer_lets_nobody_new_in(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, known = house.keyring.create("acme")
    _, cold = house.keyring.create("acme")
    enter(house, known.text)

    @contextmanager
    def broken() -> Iterator[None]:
        raise Unavailable("the catalog is busy")
        yield

    monkeypatch.setattr(house.catalog, "read", broken)
    with pytest.raises(Unavailable):
        enter(house, cold.text)
    assert enter(house, known.text)
    house.clock.now += 60
    with pytest.raises(Unavailable):
        enter(house, known.text)


def test_many_failures_make_an_address_wait_and_nobody_else(tmp_path: Path) -> None:
    house = open_house(tmp_path, failures_per_minute=5)
    house.accounts.create("acme")
    _, warm = house.keyring.create("acme")
    _, cold = house.keyring.create("acme")
    enter(house, warm.text)
    for text in (mint().text, "x", warm.text[:-1], mint().text, "y"):
        refused(house, text)
    with statements(house) as asked:
        for text in ("z", mint().text, cold.text):
            with pytest.raises(RateLimited) as error:
                enter(house, text)
            assert error.value.retry_after == pytest.approx(12)
    assert asked == []
    assert enter(house, warm.text), "a key that is known is let in as ever"
    assert enter(house, cold.text, "192.0.2.2")
    assert enter(house, cold.text), "it is known now"
    house.catalog.close()


def test_a_request_without_a_key_is_no_attempt(tmp_path: Path) -> None:
    house = open_house(tmp_path, failures_per_minute=1)
    for _ in range(5):
        refused(house, None)
    house.catalog.close()


def test_the_last_use_is_noted_coarsely_and_off_the_path(house: House) -> None:
    made, key = house.keyring.create("acme")
    enter(house, key.text)
    with statements(house) as asked:
        enter(house, key.text)
    assert asked == []
    assert house.keyring.get("acme", made.kid).last_used_at is None
    house.authenticator.note_uses()
    assert house.keyring.get("acme", made.kid).last_used_at == NOW
    epoch = house.catalog.epoch()
    house.clock.now += 599
    enter(house, key.text)
    with statements(house) as asked:
        house.authenticator.note_uses()
    assert asked == []
    house.clock.now += 1
    enter(house, key.text)
    house.authenticator.note_uses()
    assert house.keyring.get("acme", made.kid).last_used_at == NOW + 600
    assert house.catalog.epoch() == epoch, "no cache needs to know"


def test_a_replica_does_not_note_what_another_has(house: House, tmp_path: Path) -> None:
    made, key = house.keyring.create("acme")
    enter(house, key.text)
    house.authenticator.note_uses()
    other = open_house(tmp_path)
    other.clock.now += 100
    enter(other, key.text)
    other.authenticator.note_uses()
    assert house.keyring.get("acme", made.kid).last_used_at == NOW
    other.catalog.close()


def test_a_refused_key_was_not_used(house: House) -> None:
    made, key = house.keyring.create("acme", not_before=NOW + 10)
    refused(house, key.text)
    refused(house, next(_keys_with(made.kid)))
    house.authenticator.note_uses()
    assert house.keyring.get("acme", made.kid).last_used_at is None


def test_uses_that_could_not_be_written_are_written_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = house.keyring.create("acme")
    enter(house, key.text)

    @contextmanager
    def broken() -> Iterator[None]:
        raise Unavailable("the catalog is busy")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(house.catalog, "append", broken)
        with pytest.raises(Unavailable):
            house.authenticator.note_uses()
    house.authenticator.note_uses()
    assert house.keyring.get("acme", made.kid).last_used_at == NOW


def test_uses_waiting_to_be_written_are_bounded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_PENDING", 2)
    keys = [house.keyring.create("acme")[1] for _ in range(3)]
    for key in keys:
        enter(house, key.text)
    assert house.authenticator.debug_state() == {"pending": 2}
    house.authenticator.note_uses()
    enter(house, keys[2].text)
    house.authenticator.note_uses()
    assert house.keyring.get("acme", keys[2].kid).last_used_at == NOW


def test_an_unknown_scope_in_the_catalog_allows_nothing(house: House) -> None:
    made, key = house.keyring.create("acme", scopes=[Scope.GENERATE])
    with house.catalog.write() as (connection, _):
        connection.exec_driver_sql("""UPDATE api_keys SET scopes = '["generate", "everything"]'""")
    assert enter(house, key.text).scopes == made.scopes


def test_without_keys_everybody_is_the_one_tenant(house: House) -> None:
    everybody = Principal("acme", None, frozenset(Scope))
    open_door = Anonymous(house.catalog, everybody)
    assert open_door.authenticate_cached(None, PEER) is None
    assert open_door.authenticate(None, PEER) == everybody
    with statements(house) as asked:
        assert open_door.authenticate_cached("whatever", PEER) == everybody
    assert asked == []
    house.accounts.change("acme", limits={"max_rows": 2})
    house.feed.poll()
    assert open_door.authenticate(None, PEER).limits.max_rows == 2
    house.accounts.change("acme", disabled=True)
    house.feed.poll()
    with pytest.raises(InvalidKey):
        open_door.authenticate(None, PEER)
    with pytest.raises(InvalidKey):
        open_door.authenticate_cached(None, PEER)


def test_the_cache_of_a_process_can_be_smaller_than_its_keys(tmp_path: Path) -> None:
    house = open_house(tmp_path)
    house.accounts.create("acme")
    small = module.KeyAuthenticator(
        house.catalog,
        house.pepper,
        house.failures,
        known=2,
        unknown=2,
        clock=house.clock,
    )
    house.authenticator = small
    keys = [house.keyring.create("acme")[1] for _ in range(5)]
    for _ in range(2):
        for key in keys:
            assert enter(house, key.text).kid == key.kid
    house.catalog.close()
