"""Carries calls of one script to one Redis: many in a round trip, over one connection.

Callers never touch the connection: they wait for a future and may be cancelled at any time, so
that a reply is never left for the next one to read. Any doubt ends the connection, and nothing is
tried twice. Connecting is the business of whoever holds the courier, off the callers' path.

Knows nothing about limits.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

MAX_WAITING = 10_000
"""Calls that may wait for a round trip; more are refused."""

_MAX_BATCH = 64
_TURNS = 8


class CourierFault(Exception):
    """A call was not answered, or not in time; whether it was counted is not known."""


class CourierSilence(CourierFault):
    """Redis has the call and says nothing."""


@dataclass(eq=False, slots=True)
class _Parcel:
    """A call that waits for its reply."""

    keys: Sequence[str]
    arguments: Callable[[str], Sequence[str | int | float]]
    nonce: str
    reply: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def command(self, verb: str, script: str) -> tuple[Any, ...]:
        return (verb, script, len(self.keys), *self.keys, *self.arguments(self.nonce))

    def end(self, fault: CourierFault) -> None:
        if not self.reply.done():
            self.reply.set_exception(fault)


class Courier:
    """One connection to the Redis at `url`, and those who wait for it. Seconds.

    `timeout` is for one round trip, however many calls it carries.
    """

    def __init__(self, url: str, lua: str, *, timeout: float, connect_timeout: float) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            max_connections=1,
            decode_responses=True,
            socket_timeout=None,
            socket_connect_timeout=connect_timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self._lua, self._sha = lua, hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._connection: AbstractConnection | None = None
        self._looking: asyncio.Task[object] | None = None
        self._waiting: deque[_Parcel] = deque()
        self._wake = asyncio.Event()
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._runner = asyncio.ensure_future(self._run())

    @property
    def is_connected(self) -> bool:
        """Whether calls are carried at all."""
        return self._connection is not None

    async def connect(self) -> None:
        """Connect if it is not. Raises CourierFault, after the connecting timeout at the latest."""
        if self._connection is not None:
            return
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._look_up()
                connection = self._pool.connection_class(**self._pool.connection_kwargs)
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            raise CourierFault(f"connecting: {error or type(error).__name__}") from error
        self._connection = connection

    def post(
        self, keys: Sequence[str], arguments: Callable[[str], Sequence[str | int | float]]
    ) -> tuple[str, asyncio.Future[str]]:
        """Send a call, its arguments made with the nonce; returns the nonce and the reply to be.

        The reply ends with CourierFault if there is none. Raises CourierFault without a connection
        or with too many calls waiting.
        """
        if self._connection is None:
            raise CourierFault("not connected")
        if len(self._waiting) >= MAX_WAITING:
            raise CourierFault(f"{MAX_WAITING} calls wait already")
        parcel = _Parcel(keys, arguments, f"{self._name}-{next(self._numbers)}")
        # a fault that nobody waits for any more is no news
        parcel.reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        self._waiting.append(parcel)
        self._wake.set()
        return parcel.nonce, parcel.reply

    async def drop(self, reason: str) -> None:
        """End the connection; everybody who waits gets a CourierFault."""
        connection, self._connection = self._connection, None
        fault = CourierFault(reason)
        while self._waiting:
            self._waiting.popleft().end(fault)
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """End all."""
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        await self.drop("the server stops")

    async def _look_up(self) -> None:
        """Resolve the host's name, in one thread at most however long the name server is silent."""
        host = self._pool.connection_kwargs.get("host")
        if host is None or _is_address(host):
            return
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            self._looking = asyncio.ensure_future(loop.getaddrinfo(host, None))
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._looking)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            size = min(_MAX_BATCH, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(size)]
            if not batch:
                self._wake.clear()
                continue
            connection = self._connection
            try:
                await self._trip(connection, batch)
            except Exception as error:
                # whatever a broken stream makes of the parser, this loop goes on
                reason = str(error) or type(error).__name__
                kind = CourierSilence if isinstance(error, CourierSilence) else CourierFault
                for parcel in batch:
                    parcel.end(kind(reason))
                if self._connection is connection:
                    await self.drop(reason)

    async def _trip(self, connection: AbstractConnection | None, batch: Sequence[_Parcel]) -> None:
        """One round trip within the timeout; raises what went wrong with the connection."""
        if connection is None:
            raise CourierFault("not connected")
        trip = asyncio.ensure_future(self._exchange(connection, batch))
        try:
            if await done_within(trip, self._timeout):
                return trip.result()
            raise CourierSilence(f"no reply within {self._timeout * 1000:.0f} ms")
        finally:
            trip.cancel()
            await asyncio.gather(trip, return_exceptions=True)

    async def _exchange(self, connection: AbstractConnection, batch: Sequence[_Parcel]) -> None:
        unknown = await self._send(connection, batch, "EVALSHA", self._sha)
        if unknown:
            await self._send(connection, unknown, "EVAL", self._lua)

    async def _send(
        self, connection: AbstractConnection, batch: Sequence[_Parcel], verb: str, script: str
    ) -> list[_Parcel]:
        """Returns those for which Redis has to be told the script."""
        commands = [parcel.command(verb, script) for parcel in batch]
        await connection.send_packed_command(connection.pack_commands(commands))
        unknown = []
        for parcel in batch:
            try:
                reply = await connection.read_response()
            except NoScriptError:
                unknown.append(parcel)
            except ResponseError as error:
                parcel.end(CourierFault(f"{type(error).__name__}: {error}"))
            else:
                if not isinstance(reply, str):
                    raise CourierFault(f"a reply of the kind {type(reply).__name__}")
                if not parcel.reply.done():
                    parcel.reply.set_result(reply)
        return unknown


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


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
