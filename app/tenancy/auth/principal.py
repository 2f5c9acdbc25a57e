"""Who is asking and what they may do: a plain value that authentication makes of a key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.errors import InsufficientScope
from app.tenancy.limits.limits import TenantLimits


class Scope(StrEnum):
    """What a key allows. None contains another: an `admin` key generates only if it says so."""

    GENERATE = "generate"
    PREFIXES_READ = "prefixes:read"
    PREFIXES_WRITE = "prefixes:write"
    TRAIN = "train"
    ADMIN = "admin"


TENANT_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""What a key of a tenant allows unless it is made for less."""


@dataclass(frozen=True)
class Principal:
    """The caller of one request. `kid` is the public part of the key, None without keys."""

    tenant: str
    kid: str | None
    scopes: frozenset[Scope]
    limits: TenantLimits = TenantLimits()


def insufficient_scope(wanted: Iterable[Scope]) -> InsufficientScope:
    """The error for a key that allows none of what is wanted."""
    named = " or ".join(f"'{scope}'" for scope in wanted)
    return InsufficientScope(f"this key lacks the scope {named}")
