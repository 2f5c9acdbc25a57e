"""The call that this task works for, as far as the audit log wants to know it.

A context variable carries it into the threads that work for the call. Knows nothing about HTTP or
the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from app.tenancy.audit.chain import Link
from app.tenancy.auth.keys import redact_keys

_MAX_VALUE = 128
_PLAIN = re.compile(r"[A-Za-z0-9._@:+-]*", re.ASCII)
_KEY = re.compile(r"(pfx_[A-Za-z0-9]{1,16})_.*", re.ASCII | re.DOTALL)


class AuditCall(Protocol):
    """One call: who makes it, and what it does to what."""

    link: Link | None
    """The record that was written with its first change, if that was committed."""

    @property
    def mutates(self) -> bool:
        """Whether it has to leave a record even if it is granted."""

    @property
    def tenant(self) -> str:
        """Who makes it; empty if nobody knows."""

    @property
    def kid(self) -> str | None:
        """The public part of the key, if there is one."""

    @property
    def peer(self) -> str | None:
        """The address that it comes from."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a record says of it, besides its time and tenant."""


@dataclass(eq=False)
class LocalCall:
    """A command on the machine itself, by its name."""

    action: str
    mutates: bool = True
    tenant: str = ""
    kid: str | None = None
    peer: str | None = None
    link: Link | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """As in `Call`."""
        return {"action": self.action, "by": "command line"}


_current: ContextVar[AuditCall | None] = ContextVar("audited_call", default=None)


def printable(value: str) -> str:
    """A caller's word as records have it: names and digests are whole, all else is not repeated.

    Of what looks like an API key its public part alone is left.
    """
    key = _KEY.fullmatch(value)
    if key is not None:
        return key[1]
    if redact_keys(value) != value:
        return "?"
    return value if len(value) <= _MAX_VALUE and _PLAIN.fullmatch(value) else "?"


def current_call() -> AuditCall | None:
    """The call that this task works for, None if it works for nobody."""
    return _current.get()


@contextmanager
def audit_context(call: AuditCall) -> Iterator[None]:
    """Within the block this task, and what it starts, works for `call`."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
