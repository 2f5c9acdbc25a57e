"""Where a tenant stands against its limits, in numbers, in headers and in refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import InvalidRequest, RateLimited
from app.tenancy.limits.limits import TenantLimits

MINUTE = 60.0
"""Seconds in which an empty allowance fills."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request asks for: prompt and new tokens at most, and rows; it counts as one."""

    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class LimitDecision:
    """What of each limit is used after a decision, and whether the request was granted.

    A limit that is not set has nothing used.
    """

    granted: bool
    requests: float = 0.0
    tokens: float = 0.0
    rows: int = 0


def check_possible(limits: TenantLimits, cost: Cost) -> None:
    """Raises InvalidRequest for a request that no waiting would make fit."""
    tokens, rows = limits.tokens_per_minute, limits.max_rows
    if tokens is not None and cost.tokens > tokens:
        raise InvalidRequest(
            f"the request may take {cost.tokens} tokens (prompts and max_tokens of all rows), but "
            f"the tenant's limit is {tokens} tokens per minute: shorten it or lower max_tokens",
            param="max_tokens",
        )
    if rows is not None and cost.rows > rows:
        raise InvalidRequest(
            f"the request takes {cost.rows} rows, prompts × max(n, best_of, num_beams), but the "
            f"tenant's limit is {rows} rows at a time",
            param="n",
        )


def refusal(
    limits: TenantLimits, standing: LimitDecision, cost: Cost, *, rows_wait: float = 1.0
) -> RateLimited:
    """The error for a request that was not granted; `retry_after` is when it could be, in s.

    `rows_wait` is when there may be as many rows.
    """
    waits = {
        f"{limits.requests_per_minute} requests per minute": _wait(
            limits.requests_per_minute, standing.requests + 1
        ),
        f"{limits.tokens_per_minute} tokens per minute": _wait(
            limits.tokens_per_minute, standing.tokens + cost.tokens
        ),
        f"{limits.max_rows} rows at a time": (
            0.0
            if limits.max_rows is None or standing.rows + cost.rows <= limits.max_rows
            else max(1.0, rows_wait)
        ),
    }
    limit, wait = max(waits.items(), key=lambda item: item[1])
    retry_after = float(max(1, math.ceil(wait)))
    return RateLimited(
        f"the tenant's limit of {limit} is reached; try again in {retry_after:.0f} s",
        retry_after=retry_after,
        headers=rate_headers(limits, standing),
    )


def rate_headers(limits: TenantLimits, standing: LimitDecision) -> dict[str, str]:
    """OpenAI's `x-ratelimit-…` headers for the rates that are limited.

    `reset` is the time until the whole allowance is there again, as in `6m0s`.
    """
    return {
        **_headers("requests", limits.requests_per_minute, standing.requests),
        **_headers("tokens", limits.tokens_per_minute, standing.tokens),
    }


def _headers(name: str, limit: int | None, used: float) -> Mapping[str, str]:
    if limit is None:
        return {}
    return {
        f"x-ratelimit-limit-{name}": str(limit),
        f"x-ratelimit-remaining-{name}": str(max(0, math.floor(limit - used + 1e-6))),
        f"x-ratelimit-reset-{name}": duration(used * MINUTE / limit),
    }


def _wait(limit: int | None, wanted: float) -> float:
    """Seconds until `wanted` fits."""
    return 0.0 if limit is None else max(0.0, wanted - limit) * MINUTE / limit


def duration(seconds: float) -> str:
    """As OpenAI writes it: `0s`, `120ms`, `8.64s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text
