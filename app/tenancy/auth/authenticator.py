"""From what a request presents to the principal who sends it.

A key that this process has seen lately costs microseconds and no I/O; any other one a look at the
catalog. Whatever is wrong with a key, the answer is the same, and so is the work: a wrong key of a
kid that is in use is looked up once, as a kid that nobody has. Synchronous and thread-safe.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, Protocol

from sqlalchemy import BindParameter, Connection, bindparam, or_, select, update

from app.db.change_log import Change, ChangeKind
from app.db.database import Database
from app.db.epoch_cache import ANY_TENANT, EpochCache
from app.db.schema import api_keys, tenants
from app.errors import InvalidKey, PolyprefixError
from app.tenancy.auth.failed_attempts import FailedAttempts
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
        """The bearer of what was presented, without any I/O; None if that needs `authenticate`."""

    def authenticate(self, presented: str | None, peer: str) -> Principal:
        """The bearer of what was presented; may ask the catalog."""


@dataclass(slots=True)
class _KnownKey:
    """A key that may be accepted: its digest, when it is valid, who its bearer is.

    Times are in seconds since 1970. `noted_at` is when its use was last noted down.
    """

    digest: str
    not_before: int | None
    expires_at: int | None
    principal: Principal
    noted_at: float

    def is_valid(self, now: float) -> bool:
        """Whether it may be used now."""
        begun = self.not_before is None or self.not_before <= now
        return begun and (self.expires_at is None or now < self.expires_at)


def _depends_on(kid: str, known: _KnownKey | None) -> tuple[Change, Change]:
    """A kid without a key may be one that was refused with its tenant, whoever that is."""
    key = Change(ChangeKind.KEY, "", kid)
    if known is None:
        return key, ANY_TENANT
    return key, Change(ChangeKind.TENANT, known.principal.tenant, "")


class KeyAuthenticator:
    """Accepts keys of the catalog that are valid now, of tenants that are not disabled."""

    def __init__(
        self,
        catalog: Database,
        pepper: bytes,
        failures: FailedAttempts,
        *,
        known: int = 65_536,
        unknown: int = 4096,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970; `known` and `unknown` bound the kids that are kept."""
        self._catalog = catalog
        self._pepper = pepper
        self._failures = failures
        self._cache = EpochCache(catalog, _depends_on, known=known, unknown=unknown)
        self._clock = clock
        self._pending: dict[str, int] = {}
        self._lock = threading.Lock()

    def authenticate_cached(self, presented: str | None, peer: str) -> Principal | None:
        """As in `Authentication`.

        An address that fails too often is told to wait, and its keys that are not known here are
        not looked for; known ones are let in as ever.
        """
        kid = self._kid(presented, peer)
        if not self._catalog.feed.fresh():
            return None
        _, entry = self._cache.get(kid)
        if not self._fits(presented, entry):
            if self._cache.is_unknown(kid):
                self._refuse(kid, peer)
            self._failures.check(peer)
            return None
        return self._bearer(kid, entry)

    def authenticate(self, presented: str | None, peer: str) -> Principal:
        """As in `Authentication`."""
        kid = self._kid(presented, peer)
        self._catalog.feed.refresh()
        _, entry = self._cache.get(kid)
        if not self._fits(presented, entry):
            self._failures.check(peer)
            if not self._cache.is_unknown(kid):
                entry = self._cache.read(kid, partial(_find_key, kid))
            if not self._fits(presented, entry):
                self._refuse(kid, peer)
        return self._bearer(kid, entry)

    def note_uses(self) -> None:
        """Writes down when keys were used; to be called now and then, off every request's path.

        What cannot be written is kept for the next time.
        """
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

    def debug_state(self) -> dict[str, int]:
        """For tests: the uses of keys that wait to be written down."""
        return {"pending": len(self._pending)}

    def _kid(self, presented: str | None, peer: str) -> str:
        """The kid of a well-formed key; the same refusal as for any other for one that is not."""
        if presented is None:
            raise refusal()
        kid = read_kid(presented)
        if kid is None:
            self._fits(presented, None)
            self._refuse("", peer)
        return kid

    def _fits(self, presented: str | None, entry: _KnownKey | None) -> bool:
        """Whether the whole key matches and is valid now; as much work if there is none."""
        expected = _NO_DIGEST if entry is None else entry.digest
        matches = hmac.compare_digest(expected, digest(self._pepper, presented or ""))
        return matches and entry is not None and entry.is_valid(self._clock())

    def _refuse(self, kid: str, peer: str) -> NoReturn:
        """From here on a wrong key of this kid is as known as a kid that nobody has."""
        self._cache.note_unknown(kid)
        self._failures.count(peer)
        raise refusal()

    def _bearer(self, kid: str, entry: _KnownKey | None) -> Principal:
        if entry is None:
            raise refusal()
        now = self._clock()
        if now - entry.noted_at >= NOTE_USE_S:
            self._note(kid, entry, now)
        return entry.principal

    def _note(self, kid: str, entry: _KnownKey, now: float) -> None:
        with self._lock:
            if len(self._pending) < _MAX_PENDING:
                entry.noted_at = now
                self._pending[kid] = int(now)


class Anonymous:
    """Everybody is one tenant and may do everything: for a server without keys."""

    def __init__(self, catalog: Database, principal: Principal) -> None:
        """`principal` is who everybody is; its tenant's limits are those of the catalog."""
        self._feed = catalog.feed
        self._everybody = principal
        tenant = Change(ChangeKind.TENANT, principal.tenant, "")
        self._cache = EpochCache[str, Principal](catalog, lambda *_: (tenant,), known=1, unknown=1)

    def authenticate_cached(self, presented: str | None, peer: str) -> Principal | None:  # noqa: ARG002
        """As in `Authentication`; what is presented is not looked at."""
        found, principal = self._cache.get_fresh("")
        if found and principal is None:
            raise refusal()
        return principal

    def authenticate(self, presented: str | None, peer: str) -> Principal:  # noqa: ARG002
        """As in `Authentication`."""
        self._feed.refresh()
        found, principal = self._cache.get("")
        if not found:
            principal = self._cache.read("", self._find)
        if principal is None:
            raise refusal()
        return principal

    def _find(self, connection: Connection) -> Principal | None:
        query = select(tenants.c.limits, tenants.c.disabled_at)
        row = connection.execute(query.where(tenants.c.id == self._everybody.tenant)).one_or_none()
        if row is None or row.disabled_at is not None:
            return None
        return replace(self._everybody, limits=TenantLimits.from_json(row.limits))


def _find_key(kid: str, connection: Connection) -> _KnownKey | None:
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
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    limits = TenantLimits.from_json(row.limits)
    principal = Principal(row.tenant_id, row.kid, read_scopes(row.scopes), limits)
    noted_at = float(row.last_used_at or 0)
    return _KnownKey(row.digest, row.not_before, row.expires_at, principal, noted_at)


def refusal() -> PolyprefixError:
    """The one answer to every request without a key that is valid now."""
    return InvalidKey(
        "this needs a valid API key: send one as 'Authorization: Bearer pfx_…', and nowhere else"
    )
