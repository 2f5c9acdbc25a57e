"""Keys of tenants in the catalog: digests, scopes and times; a key itself is shown once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.paging import Page, check_limit, make_cursor, read_cursor
from app.db.schema import api_keys, tenants
from app.errors import Conflict, InvalidRequest, NotFound
from app.tenancy.auth.keys import ApiKey, digest, is_kid, mint, redact_keys
from app.tenancy.auth.principal import TENANT_SCOPES, Scope
from app.tenancy.tenants import get_tenant

MAX_LIVE = 100
"""Keys of one tenant that are neither revoked nor expired."""
_MAX_DEAD = 400
"""Other keys of one tenant that stay listed; the oldest are forgotten."""
_MAX_LABEL = 128
_MAX_TIME = 2**40


@dataclass(frozen=True, kw_only=True)
class KeyInfo:
    """What is known of a key; times are in seconds since 1970, None where there is none."""

    kid: str
    tenant: str
    label: str
    scopes: frozenset[Scope]
    created_at: int
    not_before: int | None
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None

    def to_json(self) -> dict[str, Any]:
        """As replies and commands show it."""
        return {**vars(self), "scopes": sorted(self.scopes)}

    def state(self, now: float) -> str:
        """`revoked`, `expired`, `pending` or `live`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "pending" if self.not_before is not None and self.not_before > now else "live"


_SAME_NAME = {field.name for field in fields(KeyInfo)} - {"tenant", "scopes"}
"""The fields that a row has under the same name and in the same form."""


class Keyring:
    """Makes, lists and revokes keys. Synchronous and thread-safe.

    Any method may raise what the catalog raises; the writing ones have then changed nothing.
    They take the `actor` who makes the change, for the audit log.
    """

    def __init__(
        self,
        catalog: Database,
        pepper: bytes | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a pepper no key can be made. `clock` gives seconds since 1970."""
        self._catalog, self._pepper, self._clock = catalog, pepper, clock

    def create(
        self,
        tenant: str,
        *,
        scopes: Collection[Scope] = TENANT_SCOPES,
        label: str = "",
        not_before: int | None = None,
        expires_at: int | None = None,
        actor: Actor | None = None,
    ) -> tuple[KeyInfo, ApiKey]:
        """A new key and what is kept of it.

        NotFound if there is no such tenant; Conflict if it has `MAX_LIVE` keys or there is no
        pepper; InvalidRequest for a key that could never be used.
        """
        if self._pepper is None:
            raise Conflict(
                "keys cannot be made: POLYPREFIX_KEY_PEPPER is not set. Set it to a random secret "
                "of 32 characters or more, the same for every replica and command"
            )
        now = int(self._clock())
        _check(scopes, label, not_before, expires_at, now)
        key = mint()
        row = {
            "kid": key.kid,
            "tenant_id": tenant,
            "digest": digest(self._pepper, key.text),
            "scopes": sorted(scopes),
            "label": label,
            "created_at": now,
            "not_before": not_before,
            "expires_at": expires_at,
        }
        with self._catalog.write(actor) as (connection, epoch):
            get_tenant(connection, tenant)
            note(connection, epoch, ChangeKind.KEY, tenant, key.kid)
            self._make_room(connection, tenant, now)
            connection.execute(insert(api_keys).values(row))
            return _get(connection, tenant, key.kid), key

    def list(self, tenant: str, cursor: str | None = None, limit: int = 20) -> Page[KeyInfo]:
        """A tenant's keys in the order of their kids; NotFound, InvalidRequest."""
        query = select(api_keys).where(api_keys.c.tenant_id == tenant)
        if cursor is not None:
            query = query.where(api_keys.c.kid > read_cursor(cursor))
        query = query.order_by(api_keys.c.kid).limit(check_limit(limit) + 1)
        with self._catalog.read() as connection:
            get_tenant(connection, tenant)
            rows = connection.execute(query).all()
        more = make_cursor(rows[limit - 1].kid) if len(rows) > limit else None
        return Page(tuple(_to_info(row) for row in rows[:limit]), more)

    def get(self, tenant: str, kid: str) -> KeyInfo:
        """One key of a tenant; NotFound."""
        with self._catalog.read() as connection:
            return _get(connection, tenant, kid)

    def revoke(self, tenant: str, kid: str, *, actor: Actor | None = None) -> KeyInfo:
        """Ends a key for good, on every replica within a second; again, nothing. NotFound."""
        with self._catalog.write(actor) as (connection, epoch):
            _get(connection, tenant, kid)
            note(connection, epoch, ChangeKind.KEY, tenant, kid)
            live = (api_keys.c.kid == kid) & api_keys.c.revoked_at.is_(None)
            connection.execute(update(api_keys).where(live).values(revoked_at=int(self._clock())))
            return _get(connection, tenant, kid)

    def has_live(self) -> bool:
        """Whether any key of any tenant would be accepted now or later."""
        now = int(self._clock())
        query = (
            select(api_keys.c.kid)
            .join(tenants, tenants.c.id == api_keys.c.tenant_id)
            .where(_is_live(now), tenants.c.disabled_at.is_(None))
            .limit(1)
        )
        with self._catalog.read() as connection:
            return connection.execute(query).first() is not None

    def _make_room(self, connection: Connection, tenant: str, now: int) -> None:
        """Conflict if the tenant has as many live keys as it may; forgets the oldest dead ones."""
        mine = api_keys.c.tenant_id == tenant
        live = connection.execute(
            select(func.count()).select_from(api_keys).where(mine, _is_live(now))
        ).scalar_one()
        if live >= MAX_LIVE:
            raise Conflict(f"tenant '{tenant}' has {live} live keys; revoke one first")
        dead = (
            select(api_keys.c.kid)
            .where(mine, ~_is_live(now))
            .order_by(api_keys.c.created_at.desc(), api_keys.c.kid)
            .offset(_MAX_DEAD)
            .limit(_MAX_DEAD)
        )
        old = list(connection.scalars(dead))
        if old:
            connection.execute(delete(api_keys).where(api_keys.c.kid.in_(old)))


def _is_live(now: int) -> ColumnElement[bool]:
    unexpired = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    return api_keys.c.revoked_at.is_(None) & unexpired


def _check(
    scopes: Collection[Scope], label: str, not_before: int | None, expires_at: int | None, now: int
) -> None:
    if not scopes:
        raise InvalidRequest("a key needs at least one scope", param="scopes")
    if len(label) > _MAX_LABEL or not label.isprintable():
        raise InvalidRequest(f"a label is at most {_MAX_LABEL} printable characters", param="label")
    if redact_keys(label) != label:
        raise InvalidRequest("a label is for everybody to see and holds no key", param="label")
    times: Mapping[str, int | None] = {"not_before": not_before, "expires_at": expires_at}
    for name, value in times.items():
        if value is not None and not 0 <= value <= _MAX_TIME:
            raise InvalidRequest(f"{name} is in seconds since 1970", param=name)
    if expires_at is not None and expires_at <= max(now, not_before or 0):
        raise InvalidRequest(
            "expires_at must be in the future, and after not_before", param="expires_at"
        )


def _get(connection: Connection, tenant: str, kid: str) -> KeyInfo:
    get_tenant(connection, tenant)
    query = select(api_keys).where(api_keys.c.tenant_id == tenant, api_keys.c.kid == kid)
    row = connection.execute(query).one_or_none() if is_kid(kid) else None
    if row is None:
        raise NotFound(f"tenant '{tenant}' has no key {ascii(kid[:40])}")
    return _to_info(row)


def _to_info(row: Row[Any]) -> KeyInfo:
    values = {name: getattr(row, name) for name in _SAME_NAME}
    return KeyInfo(**values, tenant=row.tenant_id, scopes=read_scopes(row.scopes))


def read_scopes(names: Collection[str]) -> frozenset[Scope]:
    """The scopes of a list of names; those that this program does not know allow nothing."""
    return frozenset(scope for scope in Scope if scope.value in names)
