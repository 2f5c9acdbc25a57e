"""Replicas on one PostgreSQL, one bucket and one Redis, and callers of theirs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.db.database import Database, migrate
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.tenancy.auth.keyring import Keyring
from app.tenancy.auth.principal import Scope
from app.tenancy.tenants import Tenants
from tests.faults.test_hot_swap import MAX_TOKENS, PROMPT, greedy_alone
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.s3_server import S3Server
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

PEPPER = "a pepper for tests of 32 characters or more"
FOLLOWS_S = 1.0
"""Within this time a replica does what was asked of another."""


@dataclass
class Cluster:
    """What replicas share; `admin` is a key that may do everything."""

    model: FrozenModel
    folder: Path
    postgres: PostgresServer
    s3: S3Server
    redis: RedisServer
    root: Path
    admin: str = ""
    database: str = field(init=False)
    store: str = field(init=False)

    def __post_init__(self) -> None:
        self.database = self.postgres.make_database()
        self.bucket = self.s3.new_bucket()
        self.store = self.s3.url(self.bucket, "tensors")
        migrate(self.database)
        catalog = Database(self.database)
        Tenants(catalog).create("operator")
        _, key = Keyring(catalog, PEPPER.encode()).create("operator", scopes=frozenset(Scope))
        catalog.close()
        self.admin = key.text

    def settings(self, name: str) -> dict[str, Any]:
        """All that a replica needs to know."""
        return {
            "database_url": self.database,
            "store": self.store,
            "redis_url": self.redis.url,
            "key_pepper": PEPPER,
            "replica": name,
            "data_dir": self.root / name,
        }

    @contextmanager
    def replica(self, name: str, **more: object) -> Iterator[RunningServer]:
        """One more server; patient with Redis, as this machine may be busy."""
        chosen = {**self.settings(name), "redis_timeout": 1, **more}
        with serving(self.model, self.root / name, **chosen) as server:
            yield server

    def contents(self) -> set[str]:
        """Digests of the tensors in the bucket."""
        listing = self.s3.request("GET", f"/{self.bucket}?list-type=2").decode()
        return {
            key.rpartition("/")[2].partition(".")[0]
            for key in (part.partition("</Key>")[0] for part in listing.split("<Key>")[1:])
            if key.endswith(".safetensors")
        }


@dataclass(frozen=True)
class Caller:
    """Somebody with a key, at one replica."""

    client: httpx.Client

    def complete(self, model: str, **fields: object) -> httpx.Response:
        """Greedy tokens for the prompt that the oracle knows."""
        body = {"model": model, "prompt": list(PROMPT), "max_tokens": MAX_TOKENS, "temperature": 0}
        return self.client.post("/v1/completions", json={**body, **fields})

    def version_of(self, model: str, **fields: object) -> str | None:
        """Which version answers now; None if none does."""
        reply = self.complete(model, max_tokens=1, **fields)
        assert reply.status_code in (200, 401, 404), reply.text
        return reply.headers.get("x-prefix-version")

    def push(self, name: str, prefix: Prefix, **headers: str) -> httpx.Response:
        """Upload a version."""
        headers = {"content-type": "application/octet-stream", **headers}
        url = f"/v1/prefixes/{name}/versions"
        return self.client.post(url, content=encode(prefix), headers=headers)

    def point(self, name: str, alias: str, **to: object) -> httpx.Response:
        """Move an alias."""
        return self.client.put(f"/v1/prefixes/{name}/aliases/{alias}", json=to)


@contextmanager
def calling(url: str, key: str) -> Iterator[Caller]:
    """A caller until the block ends."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield Caller(client)


def make_tenant(admin: Caller, **limits: float) -> tuple[str, str, str]:
    """A new tenant through a replica: its id, and the id and text of a key."""
    tenant = f"t{secrets.token_hex(5)}"
    made = admin.client.post("/admin/tenants", json={"id": tenant, "limits": limits})
    assert made.status_code == 201, made.text
    key = admin.client.post(f"/admin/tenants/{tenant}/keys", json={}).json()
    return tenant, key["kid"], key["key"]


@dataclass(frozen=True)
class Sample:
    """A prefix and what the model says with it, alone."""

    prefix: Prefix
    text: str

    @property
    def digest(self) -> str:
        """Names the version that it becomes."""
        return self.prefix.digest

    def is_in(self, reply: httpx.Response) -> bool:
        """Whether the reply is that of this version, and says so."""
        return (
            reply.status_code == 200
            and reply.headers["x-prefix-version"] == self.digest
            and reply.json()["choices"][0]["text"] == self.text
        )


def make_samples(model: FrozenModel, folder: Path, lengths: list[int]) -> list[Sample]:
    """One for each length, all with different texts."""
    found: dict[str, Sample] = {}
    for number, length in enumerate(lengths):
        for seed in range(number * 100, number * 100 + 100):
            prefix = random_prefix(model, length, seed=seed, position_offset=min(length, 5))
            text = greedy_alone(model, folder, prefix)
            if text is not None and text not in found:
                found[text] = Sample(prefix, text)
                break
    assert len(found) == len(lengths)
    return list(found.values())


def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Seconds until the condition came true, which must be no more than these."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"it did not come true within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began
