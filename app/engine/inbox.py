"""The engine's inbox: messages from any thread, taken by the engine's thread between steps."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from app.engine.request import GenerationRequest

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


class Inbox:
    """A queue that can be closed. What is in it is bounded by admission, not here."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: list[Submit | Cancel] = []
        self._closed = False

    def put(self, message: Submit | Cancel) -> None:
        """Add a message and wake the reader."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def close(self) -> None:
        """Let the reader end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self, *, wait: bool) -> list[Submit | Cancel] | None:
        """All messages; with `wait`, at least one, and what comes close behind it.

        None once the inbox is closed.
        """
        with self._changed:
            while wait and not self._messages and not self._closed:
                self._changed.wait()
                self._gather()
            if self._closed:
                return None
            messages, self._messages = self._messages, []
            return messages

    def _gather(self) -> None:
        """Let a burst arrive whole, so that its first request does not start a step alone."""
        last = time.monotonic() + _LONGEST_BURST_S
        while not self._closed and time.monotonic() < last:
            before = len(self._messages)
            self._changed.wait(_BURST_GAP_S)
            if len(self._messages) == before:
                return
