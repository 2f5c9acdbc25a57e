"""Which sources the encoder reads next, in the order of their tenants' turns.

A source is the prompt of a request to a model with an encoder; one pass of the encoder reads
several. A pass cannot be stopped halfway, so a second pass may start before the first one has ended
if it is for tenants that use much less of the engine. Decoding rows wait for the slices of a pass,
so passes are shorter while rows decode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from app.engine.fairness.prefill_budget import PrefillBudget
from app.engine.fairness.queue import FairQueue
from app.engine.kv_cache.entries import KVEntry, Source
from app.engine.kv_cache.slots import SlotTable, StoreSource
from app.engine.request import GenerationRequest
from app.engine.step import Encoding

_TOKENS_BESIDE_ROWS = 1024
"""The most tokens of a pass while rows decode. A single longer source is still read whole."""


class SourceQueue:
    """Sources that wait to be encoded, and the sources of the passes that run."""

    def __init__(self, max_pass_tokens: int, table: SlotTable) -> None:
        """`table` places encoded sources in their K/V memory."""
        self.table = table
        self._max_pass_tokens = max_pass_tokens
        self._waiting: deque[Source] = deque()
        self._passes: list[tuple[Source, ...]] = []

    @property
    def num_waiting(self) -> int:
        """Sources that are not encoded yet."""
        return len(self._waiting) + sum(map(len, self._passes))

    def debug_state(self) -> dict[str, Any]:
        """Ids of the requests whose sources wait, are being encoded or are about to be stored."""
        stored = [one for one in self.table.operations if isinstance(one, StoreSource)]
        return {
            "waiting_sources": [source.request.id for source in self._waiting],
            "encoding": [source.request.id for one in self._passes for source in one],
            "storing": [one.occupant.request.id for one in stored],
        }

    def schedule(self, num_decode: int, queue: FairQueue, budget: PrefillBudget) -> Encoding:
        """The encoder's part of the next step, in which `num_decode` rows decode."""
        begin = self.begin(num_decode, queue.prompt_turn, queue.gives_way)
        for source in begin:
            queue.serve_prompt(source.request, source.num_tokens)
        num_waiting = self.num_waiting
        seconds = budget.encoder_seconds(num_decode, num_waiting) if num_waiting else None
        return Encoding(self.table.take_operations(), self.table.counts, begin, seconds)

    def add(self, source: Source) -> None:
        self._waiting.append(source)

    def forget(self, source: Source) -> None:
        """Remove a waiting source whose request has ended. A pass that runs reads it anyway."""
        if source in self._waiting:
            self._waiting.remove(source)

    def begin(
        self,
        num_decode: int,
        turn: Callable[[GenerationRequest], tuple[bool, float]] | None = None,
        gives_way: Callable[[GenerationRequest, list[GenerationRequest]], bool] = lambda *_: False,
    ) -> tuple[Source, ...]:
        """Choose the sources of a new pass, which runs before any other pass; () starts none.

        Sources are sorted by the `turn` of their requests, then by age. If a pass already runs, a
        source is chosen only if every request of that pass gives way to the source's request.
        """
        if len(self._passes) > 1:
            return ()
        if turn is not None and len(self._waiting) > 1:
            self._waiting = deque(sorted(self._waiting, key=lambda one: turn(one.request)))
        limit = self._max_pass_tokens
        if num_decode:
            limit = min(limit, _TOKENS_BESIDE_ROWS)
        chosen: list[Source] = []
        for source in self._waiting:
            under_way = (each.request for one in self._passes for each in one)
            if not all(gives_way(request, [source.request]) for request in under_way):
                continue
            if chosen and source.num_tokens > limit:
                break
            limit -= source.num_tokens
            chosen.append(source)
        for source in chosen:
            self._waiting.remove(source)
        if chosen:
            self._passes.append(tuple(chosen))
        return tuple(chosen)

    def end(self, sources: Iterable[KVEntry]) -> None:
        """The passes over these sources have ended, with a result or with a fault."""
        done = set(sources)
        left = [tuple(source for source in one if source not in done) for one in self._passes]
        self._passes = [one for one in left if one]
