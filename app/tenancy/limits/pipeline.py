"""Sends calls of `limits.lua`, which counts in Redis, in order: those that wait share one pipeline.

Whoever calls waits for a future and may leave at any time: what was sent is exchanged all the same.
Any doubt ends the connection, nothing is tried twice, and the next call connects anew.

A tenant has two keys, in the same slot of a cluster: a hash with its meters, as in `local`, and a
sorted set with a member for every row that is in use, scored by its time of expiry. The clock is
that of Redis. Modes: "take" counts a request if every limit has room for it; "give" gives back what
a lease took, once, since only the call that removes the lease does so; "keep" renews a lease, or
restores a lost one. Other values under these keys are deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

from app.tenancy.limits.decision import LimitDecision
from app.tenancy.limits.limits import TenantLimits

LUA = (Path(__file__).parent / "limits.lua").read_text(encoding="utf-8")
MAX_WAITING = 10_000
"""Calls that may wait for a pipeline; more are refused."""

_MAX_BATCH = 64
_TURNS = 8
_SLICES = 5
_SHA = hashlib.sha1(LUA.encode(), usedforsecurity=False).hexdigest()


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


class ScriptFault(Exception):
    """A call was not answered; whether it was counted is not known."""


class RedisFails(ScriptFault):
    """Redis has the call and says nothing, or nonsense: evidence by itself."""


@dataclass(eq=False, slots=True)
class _Sent:
    call: ScriptCall
    nonce: str
    reply: asyncio.Future[LimitDecision]


class ScriptPipeline:
    """Calls of the script to the Redis at `url`. Seconds. Raises ValueError for a wrong URL.

    `timeout` is for one pipeline, however many calls it carries, on a connection that exists;
    `connections` is how many there were so far.
    """

    def __init__(self, url: str, *, namespace: str, timeout: float, connect_timeout: float) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            max_connections=1,
            decode_responses=True,
            socket_timeout=None,  # it would count the time of this loop: see `done_within`
            socket_connect_timeout=connect_timeout,
            redis_connect_func=self._greet,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        for verb in ("EVALSHA", "EVAL"):
            self._redis.set_response_callback(verb, _deliver)
        self._namespace = namespace
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._is_connected, self.connections = False, 0
        self._resolver = ThreadPoolExecutor(1, thread_name_prefix="redis-name")
        self._waiting: asyncio.Queue[_Sent] = asyncio.Queue(MAX_WAITING)
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._runner = asyncio.ensure_future(self._run())

    def send(self, call: ScriptCall) -> asyncio.Future[LimitDecision]:
        """Send a call; the reply to be ends with ScriptFault if there is none.

        Raises ScriptFault with too many calls waiting.
        """
        reply: asyncio.Future[LimitDecision] = asyncio.get_running_loop().create_future()
        # a fault that nobody waits for any more is no news
        reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        try:
            self._waiting.put_nowait(_Sent(call, f"{self._name}-{next(self._numbers)}", reply))
        except asyncio.QueueFull:
            raise ScriptFault(f"{MAX_WAITING} calls wait already") from None
        return reply

    async def close(self) -> None:
        """End all."""
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        _end(self._gather(MAX_WAITING), ScriptFault("the server stops"))
        await self._redis.aclose()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def _greet(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        self._is_connected, self.connections = True, self.connections + 1

    def _gather(self, most: int) -> list[_Sent]:
        return [self._waiting.get_nowait() for _ in range(min(most, self._waiting.qsize()))]

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get(), *self._gather(_MAX_BATCH - 1)]
            exchange = asyncio.ensure_future(self._exchange(batch))
            patience = self._timeout if self._is_connected else self._connect_timeout
            try:
                # what holds this loop may take a slice of Redis's time, not all of it
                for _ in range(_SLICES):
                    if await done_within(exchange, patience / _SLICES):
                        break
                else:
                    raise TimeoutError(f"no reply within {patience * 1000:.0f} ms")
                exchange.result()
            except Exception as error:
                # whatever a broken stream makes of the parser, this loop goes on
                reason = str(error) or type(error).__name__
                if isinstance(error, TimeoutError | ValueError):
                    _end(batch + self._gather(MAX_WAITING), RedisFails(reason))
                _end(batch, ScriptFault(reason))
                await self._drop(exchange)
            finally:
                exchange.cancel()

    async def _drop(self, exchange: asyncio.Future[None]) -> None:
        self._is_connected = False
        exchange.cancel()
        await asyncio.gather(exchange, return_exceptions=True)
        with suppress(Exception):
            await self._redis.connection_pool.disconnect()

    async def _exchange(
        self, batch: Sequence[_Sent], verb: str = "EVALSHA", script: str = _SHA
    ) -> None:
        """One round trip, two if Redis has to be told the script. ValueError: a foreign reply.

        redis-py's own `Script` asks before every pipeline whether it is known: two trips always.
        """
        if not self._is_connected:
            await self._resolve()
        pipeline = self._redis.pipeline(transaction=False)
        for sent in batch:
            keys = sent.call.keys(self._namespace)
            arguments = sent.call.arguments(sent.nonce)
            pipeline.execute_command(verb, script, len(keys), *keys, *arguments, sent=sent)
        unknown = []
        for sent, reply in zip(batch, await pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(reply, NoScriptError):
                unknown.append(sent)
            elif isinstance(reply, ResponseError):
                _end([sent], ScriptFault(f"{type(reply).__name__}: {reply}"))
        if unknown:
            await self._exchange(unknown, "EVAL", LUA)

    async def _resolve(self) -> None:
        """Look the host up; a name server that is silent holds one thread, nobody else's."""
        host = self._redis.connection_pool.connection_kwargs.get("host")
        if host is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._resolver, socket.getaddrinfo, host, None)


def _deliver(response: object, **options: Any) -> None:
    """Called by redis-py with each reply as it is read."""
    sent: _Sent = options["sent"]
    standing = read_reply(response, sent.nonce)
    if not sent.reply.done():
        sent.reply.set_result(standing)


def _end(batch: Sequence[_Sent], fault: ScriptFault) -> None:
    for sent in batch:
        if not sent.reply.done():
            sent.reply.set_exception(fault)


async def done_within(future: asyncio.Future[Any], seconds: float) -> bool:
    """Whether it is done after so many seconds of Redis's time, not of ours.

    The reply may have come while this loop was busy elsewhere: it gets some turns to be read.
    """
    if seconds > 0:
        await asyncio.wait({future}, timeout=seconds)
    for _ in range(_TURNS):
        if future.done():
            break
        await asyncio.sleep(0)
    return future.done()
