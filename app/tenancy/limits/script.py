"""What `limits.lua`, which counts in Redis, is called with and what it replies.

A tenant has two keys, in the same slot of a cluster: a hash with its meters, as in `local`, and a
sorted set with a member for every row that is in use, scored by its time of expiry. The clock is
that of Redis. Modes: "take" counts a request if every limit has room for it; "give" gives back what
a lease took, once, since only the call that removes the lease does so; "keep" renews a lease, or
restores a lost one. Other values under these keys are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.tenancy.limits.decision import LimitDecision
from app.tenancy.limits.limits import TenantLimits

LUA = (Path(__file__).parent / "limits.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One call of the script, without the nonce that makes its reply known.

    `requests` and `tokens` are what "take" takes and "give" gives back; `lifetime` is in seconds.
    """

    tenant: str
    mode: str
    lease: str
    rows: int
    lifetime: float
    limits: TenantLimits
    requests: int = 0
    tokens: int = 0

    def keys(self, namespace: str) -> tuple[str, str]:
        """The tenant's two keys."""
        tenant = f"{namespace}:limits:{{{self.tenant}}}"
        return f"{tenant}:meters", f"{tenant}:leases"

    def arguments(self, nonce: str) -> tuple[str | int | float, ...]:
        """In the script's order."""
        limits = self.limits
        return (
            nonce,
            self.mode,
            self.lease,
            self.lifetime,
            self.rows,
            self.requests,
            self.tokens,
            limits.requests_per_minute or 0,
            limits.tokens_per_minute or 0,
            limits.max_rows or 0,
        )


def read_reply(reply: object, nonce: str) -> LimitDecision:
    """The standing that a reply tells; ValueError if it is not the reply to this call."""
    parts = reply.split(" ") if isinstance(reply, str) else []
    if len(parts) != 5 or parts[0] != nonce:
        raise ValueError("the reply is not the one to this call")
    _, granted, requests, tokens, rows = parts
    return LimitDecision(granted == "1", float(requests), float(tokens), int(rows))
