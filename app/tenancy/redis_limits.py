"""Limits that several replicas share through Redis, and what to do while it fails.

Redis is asked for as long as it answers in time. After the first fault nobody waits for it any
more: `take` says at once that it does not know, and Redis is tried in the background until it
answers well. Then the rows that run are counted there again, and what ended meanwhile is given
back. A replica that dies stops renewing its leases, and its rows come free.

Knows nothing about what holds while Redis does not answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from app.errors import InvalidRequest
from app.tenancy.breaker import Breaker
from app.tenancy.courier import Courier, CourierFault
from app.tenancy.limits import TenantLimits
from app.tenancy.script import LUA, Call, read_reply
from app.tenancy.standing import Cost, Standing

_log = logging.getLogger(__name__)

_MAX_OWED = 10_000
_START_PATIENCE = 1.0
_END_PATIENCE = 0.25


@dataclass(slots=True)
class _Held:
    """Rows that run here; whether Redis has been told of them, and has counted their tokens."""

    call: Call
    is_charged: bool
    is_told: bool


class RedisLimits:
    """A tenant's limits over all replicas that use the Redis at `url`. Seconds.

    A caller waits at most `timeout` for Redis; a lease whose replica is gone ends after
    `lease_seconds`; Redis is looked at every `probe_seconds`, whether it fails or not. Raises
    InvalidRequest for a wrong URL.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.015,
        probe_seconds: float = 0.25,
        lease_seconds: float = 30.0,
        namespace: str = "polyprefix",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._courier = Courier(url, LUA, timeout=timeout, connect_timeout=probe_seconds)
        except ValueError as error:
            raise InvalidRequest(f"the URL of Redis is not one: {error}") from error
        self._timeout, self._probe_seconds = timeout, probe_seconds
        self._lease_seconds, self._namespace, self._clock = lease_seconds, namespace, clock
        self._breaker = Breaker("Redis", meanwhile="each replica applies the limits by itself")
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._live: dict[str, _Held] = {}
        self._owed: dict[str, Call] = {}
        self._kept_at = clock()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether Redis is asked at all."""
        return not self._breaker.is_open

    @property
    def faults(self) -> int:
        """Calls and attempts that failed so far."""
        return self._breaker.faults

    async def start(self) -> None:
        """Connect, or go on without if that takes long; then keep looking."""
        deadline = self._clock() + _START_PATIENCE
        while not await self._try() and self._clock() < deadline:
            await asyncio.sleep(self._probe_seconds / 5)
        self._watcher = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Give back what can be given back at once, and end the connection."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        deadline = self._clock() + _END_PATIENCE
        while self._owed and self.is_up and self._clock() < deadline:
            await asyncio.sleep(0.005)
        await self._courier.close()

    async def take(
        self, tenant: str, limits: TenantLimits, cost: Cost
    ) -> tuple[str, Standing | None]:
        """Count a request if every limit has room; None if Redis is down and nobody knows.

        What was granted, or is not known, holds its rows under the lease that is returned until
        `give` ends it.
        """
        if not self.is_up:
            return self._hold(tenant, limits, cost), None
        lease = self._new_lease()
        call = Call(tenant, "take", lease, cost.rows, self._lease_seconds, limits, 1, cost.tokens)
        try:
            standing = await self._read(*self._post(call))
        except CourierFault as fault:
            self._breaker.trip(str(fault))
            # it may have been counted without telling us: given back when Redis works again
            self._owe(replace(call, mode="give"))
            return self._hold(tenant, limits, cost), None
        except asyncio.CancelledError:
            self._return(replace(call, mode="give"))
            raise
        if standing.granted:
            self._live[lease] = _Held(call, is_charged=True, is_told=True)
        return lease, standing

    def give(self, lease: str, *, requests: int, tokens: int) -> None:
        """End `lease` and give back what was taken for it; negative `tokens` are a charge.

        Sent as soon as possible; Redis counts it once.
        """
        held = self._live.pop(lease, None)
        if held is not None and held.is_told:
            back = (requests, tokens) if held.is_charged else (0, 0)
            self._return(replace(held.call, mode="give", requests=back[0], tokens=back[1]))

    def _new_lease(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _hold(self, tenant: str, limits: TenantLimits, cost: Cost) -> str:
        """Rows that Redis learns of when it works again, if they run then."""
        lease = self._new_lease()
        call = Call(tenant, "keep", lease, cost.rows, self._lease_seconds, limits)
        self._live[lease] = _Held(call, is_charged=False, is_told=False)
        return lease

    def _return(self, call: Call) -> None:
        self._owe(call)
        if self.is_up:
            self._send(call)

    def _owe(self, call: Call) -> None:
        """Remember what is to be given back; of too many, the oldest expire by themselves."""
        self._owed[call.lease] = call
        while len(self._owed) > _MAX_OWED:
            del self._owed[next(iter(self._owed))]

    def _post(self, call: Call) -> tuple[str, asyncio.Future[str]]:
        return self._courier.post(call.keys(self._namespace), call.arguments)

    async def _read(self, nonce: str, reply: asyncio.Future[str]) -> Standing:
        try:
            return read_reply(await reply, nonce)
        except ValueError as error:
            await self._courier.drop(str(error))
            raise CourierFault(str(error)) from error

    def _send(self, call: Call) -> None:
        """Send what nobody waits for."""
        try:
            _, reply = self._post(call)
        except CourierFault as fault:
            self._breaker.trip(str(fault))
        else:
            reply.add_done_callback(partial(self._sent, call))

    def _sent(self, call: Call, reply: asyncio.Future[str]) -> None:
        if reply.cancelled():
            return
        fault = reply.exception()
        if fault is not None:
            # of all that was under way together, one tells it
            if self.is_up:
                self._breaker.trip(str(fault))
        elif self._owed.get(call.lease) is call:
            del self._owed[call.lease]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                await self._try()
            except Exception:
                _log.exception("looking at Redis failed; it is tried again")
            if self.is_up and self._clock() - self._kept_at >= self._lease_seconds / 3:
                self._keep()

    async def _try(self) -> bool:
        """Whether Redis works, seen by a call that writes; the breaker learns it.

        A Redis that failed has to answer twice, and with time to spare, before callers wait for it.
        """
        try:
            await self._courier.connect()
            await self._probe()
            if self._breaker.is_open:
                await self._probe()
        except CourierFault as fault:
            self._breaker.trip(str(fault))
            return False
        if self._breaker.is_open:
            self._breaker.mend()
            for call in list(self._owed.values()):
                self._send(call)
            self._keep()
        return True

    async def _probe(self) -> None:
        began, name = self._clock(), f"probe-{self._name}"
        call = Call(name, "take", name, 1, self._lease_seconds, TenantLimits())
        await self._read(*self._post(call))
        took = self._clock() - began
        if self._breaker.is_open and took > self._timeout / 2:
            raise CourierFault(f"it answers after {took * 1000:.0f} ms")

    def _keep(self) -> None:
        """Renew what runs here, or restore it where Redis has lost it."""
        self._kept_at = self._clock()
        for held in list(self._live.values()):
            held.is_told = True
            self._send(replace(held.call, mode="keep"))
