"""A catalog with tenants and keys, as one process sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.db.database import Database
from app.tenancy.auth.authenticator import KeyAuthenticator
from app.tenancy.auth.failed_attempts import FailedAttempts
from app.tenancy.auth.keyring import Keyring
from app.tenancy.tenants import Tenants

PEPPER = b"a pepper for tests of 32 characters or more"
PEER = "192.0.2.1"


@dataclass
class Clock:
    """A clock that a test sets, in seconds since 1970."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class House:
    """One process: its catalog, its feed, and what works on them. Time stands still."""

    catalog: Database
    clock: Clock
    pepper: bytes = PEPPER
    failures_per_minute: int = 1000

    def __post_init__(self) -> None:
        self.feed = self.catalog.feed
        self.accounts = Tenants(self.catalog, clock=self.clock)
        self.keyring = Keyring(self.catalog, self.pepper, clock=self.clock)
        self.failures = FailedAttempts(self.failures_per_minute, clock=self.clock)
        self.authenticator = KeyAuthenticator(
            self.catalog, self.pepper, self.failures, clock=self.clock
        )


def open_house(folder: Path, **changes: object) -> House:
    """A process on the catalog in `folder`; close its catalog."""
    clock = Clock()
    return House(Database(f"sqlite:///{folder}/catalog.sqlite", clock=clock), clock, **changes)
