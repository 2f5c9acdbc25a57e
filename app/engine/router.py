"""Between event loops and the engine's thread: messages go in, the events of requests come out.

The router exists before the engine runs and outlives its loop, so that every request that was
accepted gets exactly one terminal event, whatever happens. Each step wakes an event loop once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from app.engine.request import End, Event, GenerationRequest, RequestFailed, RequestFinished
from app.errors import PolyprefixError
from app.prefix.prefix import Prefix

_BURST_GAP_S, _LONGEST_BURST_S = 0.002, 0.03
"""An idle engine begins when nothing has arrived for the one time, or after the other."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Run this request; `seed` keys its noise."""

    request: GenerationRequest
    seed: int
    submitted_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Free the rows of this request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """End the requests with one of these prefixes, also those that come later."""

    prefixes: tuple[Prefix, ...]


Message = Submit | Cancel | Revoke


class Inbox:
    """A queue that can be closed. What is in it is bounded by admission, not here."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self.closed = False

    def put(self, message: Message) -> None:
        """Add a message and wake the reader."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def close(self) -> None:
        """Let the reader end."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def take(self, *, wait: bool) -> list[Message] | None:
        """All messages; with `wait`, at least one, and what comes close behind it.

        None once the inbox is closed.
        """
        with self._changed:
            while wait and not self._messages and not self.closed:
                self._changed.wait()
                # let a burst arrive whole, so that its first request does not start a step alone
                last = time.monotonic() + _LONGEST_BURST_S
                num_seen = 0
                while (
                    num_seen < len(self._messages) and not self.closed and time.monotonic() < last
                ):
                    num_seen = len(self._messages)
                    self._changed.wait(_BURST_GAP_S)
            if self.closed:
                return None
            messages, self._messages = self._messages, []
            return messages


class RequestStream:
    """The events of one request, for one consumer on the event loop that submitted it."""

    def __init__(self, request_id: str, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._on_end: Callable[[End], None] | None = None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """All events, ending after the terminal one."""
        while True:
            for event in await self.next_events():
                yield event
                if isinstance(event, RequestFinished | RequestFailed):
                    return

    async def next_events(self) -> list[Event]:
        """Everything that has arrived since the last call, at least one event."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        """Free the request's rows at the next step boundary; harmless once it has ended.

        The stream then ends with RequestCancelled, unless it ended otherwise before.
        """
        if not self._closing:
            self._closing = True
            self._cancel(self.request_id)

    def when_ended(self, listener: Callable[[End], None]) -> None:
        """Call `listener` once with the terminal event, before any reader sees it and also if
        nobody reads any more; to be set where the request was submitted, without a wait between."""
        self._on_end = listener

    def put(self, event: Event) -> None:
        """Take an event; on the stream's own event loop."""
        self._events.append(event)
        self._arrived.set()
        if isinstance(event, RequestFinished | RequestFailed):
            self._closing = True
            if self._on_end is not None:
                self._on_end(event)


class EventRouter:
    """Delivers events to the streams of requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, tuple[asyncio.AbstractEventLoop, RequestStream]] = {}
        self._ended: PolyprefixError | None = None

    def open(self, request_id: str, cancel: Callable[[str], None]) -> RequestStream:
        """A stream for a new request; call on the event loop that will read it.

        After `fail_all` its error is raised instead.
        """
        loop, stream = asyncio.get_running_loop(), RequestStream(request_id, cancel)
        with self._lock:
            if self._ended is not None:
                raise type(self._ended)(self._ended.message)
            self._streams[request_id] = (loop, stream)
        return stream

    def deliver(self, deliveries: Iterable[tuple[str, Event]]) -> None:
        """Hand a step's events over: one wake-up per event loop. From any thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, Event]]] = {}
        with self._lock:
            for request_id, event in deliveries:
                entry = self._streams.get(request_id)
                if entry is None:
                    continue
                by_loop.setdefault(entry[0], []).append((entry[1], event))
                if isinstance(event, RequestFinished | RequestFailed):
                    del self._streams[request_id]
        for loop, events in by_loop.items():
            # a closed loop raises: its streams have no reader any more
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_put_all, events)

    def fail_all(self, error: PolyprefixError) -> None:
        """End every open request with `error`, and refuse new ones."""
        with self._lock:
            self._ended = error
            open_ids = list(self._streams)
        self.deliver([(request_id, RequestFailed(error)) for request_id in open_ids])


def _put_all(events: list[tuple[RequestStream, Event]]) -> None:
    for stream, event in events:
        stream.put(event)
