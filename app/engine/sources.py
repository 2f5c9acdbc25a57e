"""Which sources the encoder reads next: one pass at a time, whose turn it is first.

While rows decode a pass reads fewer tokens, since its slices are what they wait for. Knows nothing
about tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from app.engine.row import Source

_TOKENS_BESIDE_ROWS = 1024
"""Tokens of one pass while rows decode; one source may have more, since it is read whole."""


class SourceQueue:
    """Sources that wait to be encoded, and those of the pass that is under way."""

    def __init__(self, max_pass_tokens: int) -> None:
        self._max_pass_tokens = max_pass_tokens
        self._waiting: deque[Source] = deque()
        self._in_pass: tuple[Source, ...] = ()

    @property
    def num_waiting(self) -> int:
        """Sources without a result."""
        return len(self._waiting) + len(self._in_pass)

    def add(self, source: Source) -> None:
        """Queue a source."""
        self._waiting.append(source)

    def forget(self, source: Source) -> None:
        """Drop a source that nobody needs any more; a pass that is under way ignores it."""
        if source in self._waiting:
            self._waiting.remove(source)

    def begin(
        self, num_decode: int, turn: Callable[[Source], tuple[bool, float]] | None = None
    ) -> tuple[Source, ...]:
        """Sources for a new pass; none while one is under way.

        Those of the least `turn` come first, of equals the oldest.
        """
        if self._in_pass:
            return ()
        if turn is not None and len(self._waiting) > 1:
            self._waiting = deque(sorted(self._waiting, key=turn))
        limit = self._max_pass_tokens
        if num_decode:
            limit = min(limit, _TOKENS_BESIDE_ROWS)
        chosen: list[Source] = []
        while self._waiting and (not chosen or self._waiting[0].num_tokens <= limit):
            source = self._waiting.popleft()
            limit -= source.num_tokens
            chosen.append(source)
        self._in_pass = tuple(chosen)
        return self._in_pass

    def end(self, sources: Iterable[Source]) -> None:
        """The pass over `sources` is over, for better or worse."""
        done = set(sources)
        self._in_pass = tuple(source for source in self._in_pass if source not in done)
