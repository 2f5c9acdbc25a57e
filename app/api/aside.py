"""Computation beside the engine: one piece at a time, in a thread that ends with it.

The engine keeps the machine's other cores, and memory is that of one piece, however many requests
ask. Pieces are short, so that all who wait get their turns. Knows nothing about what is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from app.errors import DeadlineExceeded, Overloaded
from app.model.threads import in_passing_thread

Result = TypeVar("Result")

_MAX_WAITING = 64


class Aside:
    """Turns, in the order of coming; it belongs to one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def run(self, deadline: float, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)` when its turn comes; `deadline` is on the clock of `time.monotonic`.

        Raises Overloaded if too many wait, DeadlineExceeded if the turn comes too late. Who is
        cancelled leaves at once; a piece that runs keeps its turn to its end.
        """
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("too many evaluations wait for their turn")
        self._waiting += 1
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._turn.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded("the request's time is over") from error
        finally:
            self._waiting -= 1
        running = asyncio.ensure_future(asyncio.to_thread(in_passing_thread, work, *arguments))
        running.add_done_callback(self._end)
        return await asyncio.shield(running)

    def _end(self, done: asyncio.Future[Any]) -> None:
        self._turn.release()
        if not done.cancelled():
            done.exception()  # seen, though nobody may be left to hear of it
