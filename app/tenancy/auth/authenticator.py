"""From what a request presents to the principal who sends it.

A key that this process has seen lately costs microseconds and no I/O; any other one a look at the
catalog. Whatever is wrong with a key, the answer is the same, and so is the work: a wrong key of a
kid that is in use is looked up once, as a kid that nobody has. Synchronous and
thread-safe. Knows nothing about HTTP.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

from sqlalchemy import BindParameter, bindparam, or_, select, update

from app.db.change_feed import ChangeFeed
from app.db.database import Database
from app.db.schema import api_keys, tenants
from app.errors import InvalidKey, PolyprefixError
from app.tenancy.auth.failed_attempts import FailedAttempts
from app.tenancy.auth.key_cache import Entry, KeyCache
from app.tenancy.auth.keyring import read_scopes
from app.tenancy.auth.keys import digest, read_kid
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limits import TenantLimits

NOTE_USE_S = 600
"""How exactly `last_used_at` is kept."""
_MAX_PENDING = 4096
_NO_DIGEST = "0" * 64


class Authentication(Protocol):
    """Tells who sends a request. Raises InvalidKey, RateLimited, or what the catalog raises."""

    def authenticate_cached(self, presented: str | None, peer: str) -> Principal | None:
        """The bearer of what was presented, without any I/O; None if that needs `look_up`."""

    def authenticate(self, presented: str | None, peer: str) -> Principal:
        """The bearer of what was presented; may ask the catalog."""

    def note_uses(self) -> None:
        """Writes down when keys were used; to be called now and then, off every request's path."""


class KeyAuthenticator:
    """Accepts keys of the catalog that are valid now, of tenants that are not disabled."""

    def __init__(
        self,
        catalog: Database,
        feed: ChangeFeed,
        pepper: bytes,
        failures: FailedAttempts,
        *,
        cache: KeyCache | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970; `feed` tells what others have written."""
        self._catalog = catalog
        self._feed = feed
        self._pepper = pepper
        self._failures = failures
        self._cache = cache or KeyCache()
        self._clock = clock
        self._pending: dict[str, int] = {}
        self._lock = threading.Lock()
        feed.subscribe(self._cache.forget)

    def authenticate_cached(self, presented: str | None, peer: str) -> Principal | None:
        """As in `Authentication`.

        An address that fails too often is told to wait, and its keys that are not known here are
        not looked for; known ones are let in as ever.
        """
        kid = self._kid(presented, peer)
        if not self._feed.fresh():
            return None
        _, entry = self._cache.get(kid)
        if not self._fits(presented, entry):
            if self._cache.is_refused(kid):
                self._refuse(kid, peer)
            self._failures.check(peer)
            return None
        return self._bearer(kid, entry)

    def authenticate(self, presented: str | None, peer: str) -> Principal:
        """As in `Authentication`."""
        kid = self._kid(presented, peer)
        self._feed.refresh()
        _, entry = self._cache.get(kid)
        if not self._fits(presented, entry):
            self._failures.check(peer)
            if not self._cache.is_refused(kid):
                entry = self._read(kid)
            if not self._fits(presented, entry):
                self._refuse(kid, peer)
        return self._bearer(kid, entry)

    def note_uses(self) -> None:
        """As in `Authentication`; what cannot be written is kept for the next time."""
        with self._lock:
            pending, self._pending = self._pending, {}
        if not pending:
            return
        used_at: BindParameter[int] = bindparam("used_at")
        later = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < used_at)
        statement = (
            update(api_keys)
            .where(api_keys.c.kid == bindparam("used"), later)
            .values(last_used_at=used_at)
        )
        rows = [{"used": kid, "used_at": at} for kid, at in sorted(pending.items())]
        try:
            with self._catalog.append() as connection:
                connection.execute(statement, rows)
        except BaseException:
            with self._lock:
                self._pending = {**pending, **self._pending}
            raise

    def _kid(self, presented: str | None, peer: str) -> str:
        """The kid of a well-formed key; the same refusal as for any other for one that is not."""
        if presented is None:
            raise refusal()
        kid = read_kid(presented)
        if kid is None:
            self._fits(presented, None)
            self._refuse("", peer)
        return kid

    def _read(self, kid: str) -> Entry | None:
        """The key as the catalog has it; None if it is not there, revoked, or of no use."""
        query = (
            select(api_keys, tenants.c.limits)
            .join(tenants, tenants.c.id == api_keys.c.tenant_id)
            .where(
                api_keys.c.kid == kid,
                api_keys.c.revoked_at.is_(None),
                tenants.c.disabled_at.is_(None),
            )
        )
        with self._catalog.read() as connection:
            epoch = self._feed.observe(connection)
            row = connection.execute(query).one_or_none()
        entry = None
        if row is not None:
            limits = TenantLimits.from_json(row.limits)
            principal = Principal(row.tenant_id, row.kid, read_scopes(row.scopes), limits)
            noted_at = float(row.last_used_at or 0)
            entry = Entry(row.digest, row.not_before, row.expires_at, principal, noted_at)
        self._cache.put(kid, entry, epoch)
        return entry

    def _fits(self, presented: str | None, entry: Entry | None) -> bool:
        """Whether the whole key matches and is valid now; as much work if there is none."""
        expected = _NO_DIGEST if entry is None else entry.digest
        matches = hmac.compare_digest(expected, digest(self._pepper, presented or ""))
        return matches and entry is not None and entry.is_valid(self._clock())

    def _refuse(self, kid: str, peer: str) -> NoReturn:
        """From here on a wrong key of this kid is as known as a kid that nobody has."""
        self._cache.refuse(kid)
        self._failures.count(peer)
        raise refusal()

    def _bearer(self, kid: str, entry: Entry | None) -> Principal:
        if entry is None:
            raise refusal()
        now = self._clock()
        if now - entry.noted_at >= NOTE_USE_S:
            self._note(kid, entry, now)
        return entry.principal

    def _note(self, kid: str, entry: Entry, now: float) -> None:
        with self._lock:
            if len(self._pending) < _MAX_PENDING:
                entry.noted_at = now
                self._pending[kid] = int(now)


class Anonymous:
    """Everybody is one tenant and may do everything: for a server without keys."""

    def __init__(self, catalog: Database, feed: ChangeFeed, principal: Principal) -> None:
        """`principal` is who everybody is; its tenant's limits are those of the catalog."""
        self._catalog = catalog
        self._feed = feed
        self._everybody = principal
        self._cache = KeyCache(known=1, unknown=1)
        feed.subscribe(self._cache.forget)

    def authenticate_cached(self, presented: str | None, peer: str) -> Principal | None:  # noqa: ARG002
        """As in `Authentication`; what is presented is not looked at."""
        if not self._feed.fresh():
            return None
        found, entry = self._cache.get("")
        return self._admit(entry) if found else None

    def authenticate(self, presented: str | None, peer: str) -> Principal:  # noqa: ARG002
        """As in `Authentication`."""
        self._feed.refresh()
        found, entry = self._cache.get("")
        return self._admit(entry if found else self._read())

    def note_uses(self) -> None:
        """There are no keys."""

    def _read(self) -> Entry | None:
        query = select(tenants.c.limits, tenants.c.disabled_at)
        with self._catalog.read() as connection:
            epoch = self._feed.observe(connection)
            row = connection.execute(
                query.where(tenants.c.id == self._everybody.tenant)
            ).one_or_none()
        entry = None
        if row is not None and row.disabled_at is None:
            limits = TenantLimits.from_json(row.limits)
            known = Principal(self._everybody.tenant, None, self._everybody.scopes, limits)
            entry = Entry("", None, None, known, 0.0)
        self._cache.put("", entry, epoch)
        return entry

    def _admit(self, entry: Entry | None) -> Principal:
        if entry is None:
            raise refusal()
        return entry.principal


def refusal() -> PolyprefixError:
    """The one answer to every request without a key that is valid now."""
    return InvalidKey(
        "this needs a valid API key: send one as 'Authorization: Bearer pfx_…', and nowhere else"
    )
