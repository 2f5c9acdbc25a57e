"""What the engine remembers of one tenant: its queue, what it was served, how much it uses.

Knows nothing about other tenants. Sizes are shares of the engine in parts per million, so that
sums are exact.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from app.engine.active import ActiveRequest
from app.engine.request import GenerationRequest

WHOLE = 1_000_000
"""The share of a request that needs the whole engine."""
INPUT_COST, OUTPUT_COST = 1.0, 2.0
"""What a prompt token and a new token cost; a new token needs a step of its own."""
MEMORY_S = 10.0
"""For how long what a tenant used still counts."""
_TYPICAL_REQUESTS = 8.0


class Tenant:
    """One tenant; `order` tells equals apart, `counter` is what it was served over its weight."""

    def __init__(self, name: str, order: int) -> None:
        self.name, self.order = name, order
        self.counter = 0.0
        self.weight = 1.0
        self.running: dict[str, ActiveRequest] = {}
        self.running_share = 0
        self.waiting_share = 0
        self._queues: dict[int, OrderedDict[str, ActiveRequest]] = {}
        self._typical_tokens: float | None = None
        self._recent_tokens, self._counted_at = 0.0, -math.inf
        self._peaks, self._peaks_since = (0, 0), -math.inf

    # --- the queue -------------------------------------------------------------------------

    @property
    def head(self) -> ActiveRequest | None:
        """Who is next: the oldest of the highest priority; None if nobody waits."""
        if not self._queues:
            return None
        return next(iter(self._queues[max(self._queues)].values()))

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self._queues and not self.running

    def add(self, entry: ActiveRequest, now: float) -> None:
        """Queue a request."""
        self.weight = entry.request.weight
        queue = self._queues.setdefault(entry.request.priority, OrderedDict())
        queue[entry.request.id] = entry
        self.waiting_share += entry.share
        self._note_peak(now)

    def remove(self, entry: ActiveRequest) -> None:
        """Take a request out of the queue."""
        priority = entry.request.priority
        del self._queues[priority][entry.request.id]
        if not self._queues[priority]:
            del self._queues[priority]
        self.waiting_share -= entry.share

    # --- service ---------------------------------------------------------------------------

    def start(self, entry: ActiveRequest) -> None:
        """Its request begins: charge the prompt, and the new tokens that it is likely to get."""
        self.running[entry.request.id] = entry
        self.running_share += entry.share
        entry.served = INPUT_COST * entry.request.prompt_work
        entry.charged = entry.served + OUTPUT_COST * self._expected_tokens(entry.request)
        self.counter += entry.charged / entry.request.weight

    def serve(self, entry: ActiveRequest, num_tokens: int, now: float) -> None:
        """Its request got new tokens; those beyond what was expected are charged now."""
        self._recent_tokens = self._recent(now) + num_tokens
        self._counted_at = now
        entry.served += OUTPUT_COST * num_tokens
        if entry.served > entry.charged:
            self.counter += (entry.served - entry.charged) / entry.request.weight
            entry.charged = entry.served

    def end(self, entry: ActiveRequest) -> None:
        """Its request has ended: what it was charged and did not get is given back."""
        del self.running[entry.request.id]
        self.running_share -= entry.share
        self.counter -= (entry.charged - entry.served) / entry.request.weight
        prompt_cost = INPUT_COST * entry.request.prompt_work
        got = (entry.served - prompt_cost) / OUTPUT_COST / entry.request.num_rows
        if self._typical_tokens is None:
            self._typical_tokens = got
        self._typical_tokens += (got - self._typical_tokens) / _TYPICAL_REQUESTS

    def _expected_tokens(self, request: GenerationRequest) -> float:
        limit = float(request.sampling.max_tokens)
        if self._typical_tokens is not None:
            limit = min(limit, self._typical_tokens)
        return request.num_rows * limit

    # --- use -------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        """Rows that it holds."""
        return sum(entry.num_rows for entry in self.running.values())

    @property
    def demand(self) -> int:
        """Share of the engine that it would use if it could."""
        return self.running_share + self.waiting_share

    def token_rate(self, now: float) -> float:
        """New tokens per second of late, the latest weighing most."""
        return self._recent(now) / MEMORY_S

    def peak_demand(self, now: float) -> int:
        """The most that it wanted at once within the last seconds."""
        self._note_peak(now)
        return max(self._peaks)

    def _recent(self, now: float) -> float:
        return self._recent_tokens * math.exp(min(0.0, self._counted_at - now) / MEMORY_S)

    def _note_peak(self, now: float) -> None:
        """The peaks of the present and of the past half of the time that counts."""
        half = MEMORY_S / 2
        if now - self._peaks_since >= half:
            past = self._peaks[0] if now - self._peaks_since < MEMORY_S else 0
            self._peaks, self._peaks_since = (self.demand, past), now
        self._peaks = (max(self._peaks[0], self.demand), self._peaks[1])
