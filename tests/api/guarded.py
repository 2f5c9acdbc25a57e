"""A server with tenants and keys, its routes as the app has them, and twelve who knock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fastapi import FastAPI

from app.api.routing import Route
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.tenancy.auth.keyring import Keyring
from app.tenancy.auth.keys import _checksum, mint
from app.tenancy.auth.principal import Scope
from tests.server import RunningServer, serving

PEPPER = "a pepper for tests of 32 characters or more"
EVERYTHING = frozenset(Scope)

REFUSED = (
    "none",
    "malformed",
    "bad checksum",
    "unknown kid",
    "wrong secret",
    "expired",
    "not yet valid",
    "revoked",
)
"""Those who have no key that is valid now."""

ADMITTED = ("wrong scope", "other tenant", "admin of other tenant", "valid")
IDENTITIES = (*REFUSED, *ADMITTED)


@dataclass(frozen=True)
class Endpoint:
    """A method of a route; each set of `wanted` must share a scope with the key."""

    method: str
    path: str
    wanted: tuple[frozenset[Scope], ...]
    guarded: bool

    @property
    def id(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_admin(self) -> bool:
        return frozenset({Scope.ADMIN}) in self.wanted

    def url(self, values: dict[str, str]) -> str:
        return self.path.replace(":path}", "}").format_map(values)

    def admits(self, scopes: frozenset[Scope]) -> bool:
        return all(not wanted or wanted & scopes for wanted in self.wanted)

    def scopes_that_lack(self) -> frozenset[Scope]:
        """The most scopes that are not enough, or one that is if any key will do."""
        needed = next((wanted for wanted in self.wanted if wanted), None)
        return frozenset({Scope.TRAIN}) if needed is None else EVERYTHING - needed


def endpoints(app: FastAPI) -> list[Endpoint]:
    """Every route of the app."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route), route
        found.append(Endpoint(route.method, route.path, route.scopes, not route.is_open))
    return found


def key_with_checksum(body: str) -> str:
    """A well-formed key of `pfx_<kid>_<secret>`."""
    return f"{body}_{_checksum(body)}"


@dataclass
class Guarded:
    """A running server that asks for keys, with the tenants `acme` and `rival`."""

    server: RunningServer
    _keys: dict[tuple[str, frozenset[Scope]], str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    def key(self, tenant: str = "acme", scopes: frozenset[Scope] = EVERYTHING) -> str:
        """A key of the tenant with just these scopes, made once."""
        known = self._keys.get((tenant, scopes))
        if known is None:
            _, made = self.server.services.keyring.create(tenant, scopes=scopes)
            known = self._keys[tenant, scopes] = made.text
        return known

    def client(self, key: str | None = None) -> httpx.Client:
        """A client with this key, to be closed."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def headers(self, identity: str, endpoint: Endpoint | None = None) -> dict[str, str]:
        """What one of the twelve sends."""
        if identity == "none":
            return {}
        return {"authorization": f"Bearer {self._presented(identity, endpoint)}"}

    def push(self, name: str, prefix: Prefix, key: str, **headers: str) -> httpx.Response:
        """Upload a prefix with a key."""
        return self.server.push(name, encode(prefix), authorization=f"Bearer {key}", **headers)

    def _presented(self, identity: str, endpoint: Endpoint | None) -> str:
        valid = self.key()
        if identity == "wrong scope":
            lacking = endpoint.scopes_that_lack() if endpoint else frozenset({Scope.TRAIN})
            return self.key(scopes=lacking)
        keys = {
            "malformed": "hello",
            "bad checksum": valid[:-1] + ("0" if valid[-1] != "0" else "1"),
            "unknown kid": mint().text,
            "wrong secret": key_with_checksum(f"pfx_{valid[4:16]}_{'x' * 32}"),
            "other tenant": self.key("rival", EVERYTHING - {Scope.ADMIN}),
            "admin of other tenant": self.key("rival"),
            "valid": valid,
        }
        return keys[identity] if identity in keys else self._ended(identity)

    def _ended(self, identity: str) -> str:
        """A key of acme's that was, or will be, valid."""
        name = (identity, EVERYTHING)
        if name not in self._keys:
            registry, now = self.server.services.registry, int(time.time())
            past = Keyring(registry.catalog, PEPPER.encode(), lambda: now - 1000)
            times = {
                "expired": {"expires_at": now - 500},
                "not yet valid": {"not_before": now + 900},
            }
            info, key = past.create("acme", scopes=EVERYTHING, **times.get(identity, {}))
            if identity == "revoked":
                past.revoke("acme", info.kid)
            self._keys[name] = key.text
        return self._keys[name]


@contextmanager
def guarding(model: FrozenModel, root: Path, **settings: object) -> Iterator[Guarded]:
    """Serve with keys until the block ends; failures are not limited unless it is said."""
    chosen = {"auth_failures_per_minute": 10**9, **settings}
    with serving(model, root, key_pepper=PEPPER, **chosen) as server:
        for tenant in ("acme", "rival"):
            server.services.tenants.create(tenant)
        yield Guarded(server)
