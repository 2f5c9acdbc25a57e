"""How clients name prefixes: `e2e`, `e2e@stable`, `e2e@3f9a0c`, `acme/e2e`, `e2e+alice`.

Only grammar: whether a name stands for anything is the registry's to say. Names are ASCII and
never become paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.errors import InvalidRequest

MAX_PARTS = 8
"""Prefixes in one composition."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HEXADECIMAL = re.compile(r"[0-9a-f]{6,64}")
_KEY = re.compile(r"pfx_\w+")
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class PrefixReference:
    """One part of a reference. `tenant` None is the caller; `selector` None is alias `latest`."""

    name: str
    selector: str | None = None
    tenant: str | None = None

    @property
    def selects_digest(self) -> bool:
        """Whether the selector is (the start of) a digest rather than an alias."""
        return self.selector is not None and looks_hexadecimal(self.selector)

    def __str__(self) -> str:
        owner = f"{self.tenant}/" if self.tenant else ""
        return f"{owner}{self.name}" + (f"@{self.selector}" if self.selector else "")


def parse_model_field(text: str) -> tuple[PrefixReference, ...]:
    """The parts of a reference, in order; InvalidRequest names the part that breaks the grammar."""
    parts = text.split("+", MAX_PARTS + 1)
    if len(parts) > MAX_PARTS:
        raise InvalidRequest(f"at most {MAX_PARTS} prefixes can be composed", param="model")
    return tuple(_parse_part(part) for part in parts)


def check_name(name: str, what: str = "a prefix's name") -> str:
    """`name` itself if it is well formed; InvalidRequest otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{what} is 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit; "
            f"not {_shown(name)}",
            param="name",
        )
    return name


def check_alias(alias: str) -> str:
    """`alias` itself if it is well formed and cannot be taken for a digest."""
    check_name(alias, "an alias")
    if looks_hexadecimal(alias):
        raise InvalidRequest(
            f"an alias cannot look like a digest (6 or more of 0-9, a-f): {_shown(alias)}",
            param="alias",
        )
    return alias


def looks_hexadecimal(text: str) -> bool:
    """Whether `text` is (the start of) a digest: 6 to 64 lower-case hexadecimal digits."""
    return _HEXADECIMAL.fullmatch(text) is not None


def _parse_part(part: str) -> PrefixReference:
    tenant, slash, rest = part.rpartition("/")
    name, at, selector = rest.partition("@")
    if slash:
        check_name(tenant, "a tenant's name")
    check_name(name)
    if at:
        check_name(selector, "an alias or digest")
    return PrefixReference(name, selector or None, tenant or None)


def _shown(text: str) -> str:
    """A client's text as part of a message: printable, short, and no key that got there."""
    text = _KEY.sub("pfx_…", text)
    return ascii(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
