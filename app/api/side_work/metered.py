"""Work of a tenant beside the engine: it counts against the tenant's limits and in its usage.

As what runs in the engine does: tokens are reserved before, and noted once they are read. Knows
nothing about what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.api.services import Services
from app.tenancy.auth.principal import Principal
from app.tenancy.usage.totals import UsageTotals

Result = TypeVar("Result")

_MAX_PIECES = 32
"""Pieces that are reserved, and counted, as one request."""


@dataclass(frozen=True)
class Piece:
    """Arguments of one computation, and how many tokens it reads."""

    arguments: tuple[Any, ...]
    tokens: int


@dataclass(frozen=True)
class Account:
    """Whose work it is, and which prefixes it is counted under; none for the base model."""

    principal: Principal
    names: Sequence[str] = ()
    digests: Sequence[str] = ()


async def beside(
    services: Services,
    account: Account,
    deadline: float,
    work: Callable[..., Result],
    pieces: Sequence[Piece],
) -> list[Result]:
    """`work` on each piece, one after another; `deadline` is on the clock of `time.monotonic`.

    Raises RateLimited or InvalidRequest by the tenant's limits, and what `Aside.run` raises.
    """
    found: list[Result] = []
    for start in range(0, len(pieces), _MAX_PIECES):
        part = pieces[start : start + _MAX_PIECES]
        found += await _run(services, account, deadline, work, part)
    return found


async def _run(
    services: Services,
    account: Account,
    deadline: float,
    work: Callable[..., Result],
    pieces: Sequence[Piece],
) -> list[Result]:
    tenant, limits = account.principal.tenant, account.principal.limits
    most = sum(piece.tokens for piece in pieces)
    reservation = await services.limiter.reserve(tenant, limits, tokens=most, rows=1)
    spent, began = UsageTotals(requests=1, failed=1), time.monotonic()
    try:
        found = []
        for piece in pieces:
            found.append(await services.aside.run(tenant, deadline, work, *piece.arguments))
            spent.tokens_in += piece.tokens
        spent.failed, spent.total_ms = 0, round(1000 * (time.monotonic() - began))
        return found
    finally:
        reservation.settle(spent.tokens_in)
        services.usage.add(tenant, account.names, account.digests, spent)
