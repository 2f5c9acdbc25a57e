"""Sums of what was used, and what they are kept by: plain values.

Knows nothing about where they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

HOUR = 3600
"""Seconds of the time that sums are kept by."""


class UsageKey(NamedTuple):
    """What sums are kept by. `hour` is its beginning in seconds since 1970; see `usage_hours`."""

    tenant: str
    hour: int
    prefix: str
    version: str


@dataclass(slots=True)
class UsageTotals:
    """Requests, those of them that ended with an error, tokens, and milliseconds to the first
    token and to the end of those that did not."""

    requests: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    first_token_ms: int = 0
    total_ms: int = 0

    def add(self, other: UsageTotals) -> None:
        """Take in others."""
        self.requests += other.requests
        self.failed += other.failed
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.first_token_ms += other.first_token_ms
        self.total_ms += other.total_ms

    def copy(self) -> UsageTotals:
        """Others with the same values."""
        copied = UsageTotals()
        copied.add(self)
        return copied


Batch = Mapping[UsageKey, UsageTotals]
