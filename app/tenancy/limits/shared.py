"""Limits that several replicas share through Redis, and what to do while it fails.

A caller waits a short while for Redis. A late reply counts all the same when it comes; meanwhile
this caller and the next ones go by what Redis said last. After a fault Redis is probed at once. If
the probe fails, `take` says that it does not know, nobody waits any more, and Redis is probed in
the background until it answers. Then the running rows are counted there again, and what ended
meanwhile is given back. A replica that dies stops renewing its leases, so its rows come free.
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

from app.db.circuit_breaker import CircuitBreaker
from app.errors import InvalidRequest
from app.tenancy.limits.decision import Cost, LimitDecision
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.local import LocalLimits
from app.tenancy.limits.pipeline import (
    RedisFails,
    ScriptCall,
    ScriptFault,
    ScriptPipeline,
    done_within,
)

_log = logging.getLogger(__name__)

_MAX_OWED = 10_000
_START_PATIENCE = 1.0
_END_PATIENCE = 0.25


@dataclass(slots=True)
class _Held:
    """Rows that run here; whether Redis has been told of them, and has counted their tokens."""

    call: ScriptCall
    is_charged: bool
    is_told: bool


class RedisLimits:
    """A tenant's limits over all replicas that use the Redis at `url`. Seconds.

    A caller waits at most `timeout` for Redis; a lease whose replica is gone ends after
    `lease_seconds`; Redis is looked at every `probe_seconds`, whether it fails or not, and fails if
    it is silent for as long. Raises InvalidRequest for a wrong URL.
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
            self._pipeline = ScriptPipeline(
                url,
                namespace=namespace,
                timeout=max(probe_seconds, timeout),
                connect_timeout=2 * probe_seconds,
            )
        except ValueError as error:
            raise InvalidRequest(f"the URL of Redis is not one: {error}") from error
        self._timeout, self._probe_seconds = timeout, probe_seconds
        self._lease_seconds, self._clock = lease_seconds, clock
        self._breaker = CircuitBreaker(
            "Redis", meanwhile="each replica applies the limits by itself", is_open=True
        )
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._live: dict[str, _Held] = {}
        self._owed: dict[str, ScriptCall] = {}
        self._known = LocalLimits(clock=clock)
        self._late, self._connections = 0, 0
        self._looking: asyncio.Future[bool] | None = None
        self._kept_at = clock()
        self._watcher: asyncio.Future[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether Redis is asked at all."""
        return not self._breaker.is_open

    @property
    def faults(self) -> int:
        """Calls and attempts that failed so far."""
        return self._breaker.faults

    def debug_state(self) -> dict[str, list[str]]:
        """For tests: leases that are held here, and those whose end Redis has not confirmed."""
        return {"held": list(self._live), "owed": list(self._owed)}

    async def start(self) -> None:
        """Connect, or go on without if that takes long; then keep looking."""
        deadline = self._clock() + _START_PATIENCE
        while not await self._look() and self._clock() < deadline:
            await asyncio.sleep(self._probe_seconds / 5)
        self._watcher = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Give back what can be given back at once, and end the connection."""
        running = [task for task in (self._watcher, self._looking) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        deadline = self._clock() + _END_PATIENCE
        while self._owed and self.is_up and self._clock() < deadline:
            await asyncio.sleep(0.005)
        await self._pipeline.close()

    async def take(
        self, tenant: str, limits: TenantLimits, cost: Cost
    ) -> tuple[str, LimitDecision | None]:
        """Count a request if every limit has room; None if Redis is down and nobody knows.

        What was granted, or is not known, holds its rows under the lease that is returned until
        `give` ends it.
        """
        if not self.is_up:
            return self._hold(tenant, limits, cost), None
        lease = self._new_lease()
        call = ScriptCall(
            tenant, "take", lease, cost.rows, self._lease_seconds, limits, 1, cost.tokens
        )
        try:
            reply = self._pipeline.send(call)
        except ScriptFault as fault:
            await self._doubt(fault)
            return self._decide_alone(call)
        try:
            # while a reply is overdue, nobody waits for the next ones
            if not await done_within(reply, 0 if self._late else self._timeout):
                return self._go_on_without(call, reply)
            standing = self._learn(call, await reply)
        except ScriptFault as fault:
            # it may have been counted without telling us: given back when Redis works again
            self._owe(replace(call, mode="give"))
            await self._doubt(fault)
            return self._decide_alone(call)
        except asyncio.CancelledError:
            self._return(replace(call, mode="give"))
            raise
        if standing.granted:
            self._live[lease] = _Held(call, is_charged=True, is_told=True)
        return lease, standing

    def _go_on_without(
        self, call: ScriptCall, reply: asyncio.Future[LimitDecision]
    ) -> tuple[str, LimitDecision]:
        """Decide now; what Redis says later is what counts there."""
        self._late += 1
        self._live[call.lease] = _Held(call, is_charged=True, is_told=True)
        reply.add_done_callback(partial(self._came_late, call))
        return self._guess(call, call.lease)

    def _came_late(self, call: ScriptCall, reply: asyncio.Future[LimitDecision]) -> None:
        self._late -= 1
        if reply.cancelled():
            return
        try:
            self._learn(call, reply.result())
        except ScriptFault as fault:
            held = self._live.get(call.lease)
            if held is not None:
                held.is_charged = False
            self._suspect(fault)

    def _guess(self, call: ScriptCall, lease: str) -> tuple[str, LimitDecision]:
        """By the rates that Redis had last; what it refuses gives `lease` back."""
        cost = Cost(call.tokens, 0)
        standing = self._known.take(call.tenant, replace(call.limits, max_rows=None), cost)
        if not standing.granted:
            self.give(lease, requests=1, tokens=call.tokens)
        return lease, standing

    def _learn(self, call: ScriptCall, standing: LimitDecision) -> LimitDecision:
        self._known.put(call.tenant, call.limits, standing)
        return standing

    def _decide_alone(self, call: ScriptCall) -> tuple[str, LimitDecision | None]:
        """After a fault: None if Redis is down, else by what it said last."""
        lease = self._hold(call.tenant, call.limits, Cost(call.tokens, call.rows))
        return self._guess(call, lease) if self.is_up else (lease, None)

    def _suspect(self, fault: Exception) -> asyncio.Future[bool] | None:
        """A call failed: that is evidence, or Redis is looked at. That look, if it is new."""
        if not self.is_up:
            return None
        if isinstance(fault, RedisFails):
            self._breaker.open(str(fault))
            return None
        is_new = self._looking is None or self._looking.done()
        self._breaker.count()
        look = self._look()
        return look if is_new else None

    async def _doubt(self, fault: ScriptFault) -> None:
        """The first whose call fails waits for what a look at Redis shows; not for long."""
        look = self._suspect(fault)
        if look is not None:
            await done_within(look, self._timeout)

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
        call = ScriptCall(tenant, "keep", lease, cost.rows, self._lease_seconds, limits)
        self._live[lease] = _Held(call, is_charged=False, is_told=False)
        return lease

    def _return(self, call: ScriptCall) -> None:
        self._owe(call)
        if self.is_up:
            self._send(call)

    def _owe(self, call: ScriptCall) -> None:
        """Remember what is to be given back; of too many, the oldest expire by themselves."""
        self._owed[call.lease] = call
        while len(self._owed) > _MAX_OWED:
            del self._owed[next(iter(self._owed))]

    def _send(self, call: ScriptCall) -> None:
        """Send what nobody waits for."""
        try:
            reply = self._pipeline.send(call)
        except ScriptFault as fault:
            self._suspect(fault)
        else:
            reply.add_done_callback(partial(self._sent, call))

    def _sent(self, call: ScriptCall, reply: asyncio.Future[LimitDecision]) -> None:
        if reply.cancelled():
            return
        fault = reply.exception()
        if isinstance(fault, Exception):
            self._suspect(fault)
        elif self._owed.get(call.lease) is call:
            del self._owed[call.lease]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            await self._look()
            if self.is_up and self._clock() - self._kept_at >= self._lease_seconds / 3:
                self._keep()

    def _look(self) -> asyncio.Future[bool]:
        """Look at Redis, once at a time; whether it works."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._try_safely())
        return self._looking

    async def _try_safely(self) -> bool:
        try:
            return await self._try()
        except Exception:
            _log.exception("looking at Redis failed; it is tried again")
            return False

    async def _try(self) -> bool:
        """Whether Redis works, seen by a call that writes; the breaker learns it.

        A Redis that failed has to answer twice before callers wait for it.
        """
        was_open = self._breaker.is_open
        try:
            try:
                await self._probe()
            except RedisFails:
                raise
            except ScriptFault:
                if was_open:
                    raise
                await self._probe()  # a lost connection says nothing of the next one
            if was_open:
                await self._probe()
        except ScriptFault as fault:
            self._breaker.open(str(fault))
            return False
        if was_open or self._connections != self._pipeline.connections:
            self._connections = self._pipeline.connections
            self._breaker.close()
            for call in list(self._owed.values()):
                self._send(call)
            self._keep()
        return True

    async def _probe(self) -> None:
        name = f"probe-{self._name}"
        call = ScriptCall(name, "take", name, 1, self._lease_seconds, TenantLimits())
        self._learn(call, await self._pipeline.send(call))

    def _keep(self) -> None:
        """Renew what runs here, or restore it where Redis has lost it."""
        self._kept_at = self._clock()
        for held in list(self._live.values()):
            held.is_told = True
            self._send(replace(held.call, mode="keep"))
