"""What the engine remembers of one tenant: its queue, what it was served, how much it uses.

Knows nothing about other tenants. Sizes are shares of the engine in parts per million, so that
sums are exact.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict

from app.engine.request import GenerationRequest
from app.engine.request_state import ActiveRequest

WHOLE = 1_000_000
"""The share of a request that needs the whole engine."""
INPUT_COST, OUTPUT_COST = 1.0, 2.0
"""What a prompt token and a new token cost; a new token needs a step of its own."""
MEMORY_S = 10.0
"""For how long what a tenant used still counts."""
_TYPICAL_REQUESTS = 8.0


class TenantShare:
    """One tenant; `order` tells equals apart, `counter` is what it was served over its weight.

    `prompts` counts the prompt tokens that were computed for it, over its weight; `held` is what
    its requests take of rows and of each memory.
    """

    def __init__(self, name: str, order: int) -> None:
        self.name, self.order = name, order
        self.counter = 0.0
        self.weight = 1.0
        self.running: dict[str, ActiveRequest] = {}
        self.running_share = 0
        self.waiting_share = 0
        self.held: tuple[int, ...] = ()
        self.prompts = 0.0
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
        self.waiting_share += entry.waiting_share
        self._note_peak(now)

    def remove(self, entry: ActiveRequest) -> None:
        """Take a request, or what of it has not entered, out of the queue."""
        priority = entry.request.priority
        del self._queues[priority][entry.request.id]
        if not self._queues[priority]:
            del self._queues[priority]
        self.waiting_share -= entry.waiting_share

    # --- service ---------------------------------------------------------------------------

    def cost(self, entry: ActiveRequest) -> float:
        """Of its next rows: the new tokens that they are likely to get, before them the prompt."""
        new_tokens = entry.rows_at_once * self.expected_tokens(entry.request)
        prompt = 0 if entry.has_begun else entry.request.prompt_work
        return INPUT_COST * prompt + OUTPUT_COST * new_tokens

    def start(self, entry: ActiveRequest) -> float:
        """Rows of its request enter, and are charged; what they cost.

        They have been taken out of the queue, or more of the request stays there.
        """
        cost = self.cost(entry)
        if not entry.has_begun:
            self.running[entry.request.id] = entry
            entry.served += INPUT_COST * entry.request.prompt_work
        self._hold(entry, entry.wanted, entry.share)
        entry.num_unstarted -= entry.rows_at_once
        entry.charged += cost
        self.counter += cost / entry.request.weight
        return cost

    def serve(self, entry: ActiveRequest, num_tokens: int, now: float) -> None:
        """Its request got new tokens; those beyond what was expected are charged now."""
        self._recent_tokens = self._recent(now) + num_tokens
        self._counted_at = now
        entry.served += OUTPUT_COST * num_tokens
        if entry.served > entry.charged:
            self.counter += (entry.served - entry.charged) / entry.request.weight
            entry.charged = entry.served

    def end_row(self, entry: ActiveRequest) -> None:
        """One row of its request has ended and others go on, or are still to enter."""
        self._hold(entry, tuple(-need for need in entry.needs), -entry.share)

    def end(self, entry: ActiveRequest) -> None:
        """Its request has ended: what it was charged and did not get is given back."""
        del self.running[entry.request.id]
        self._hold(entry, tuple(-held for held in entry.held), -entry.held_share)
        self.counter -= (entry.charged - entry.served) / entry.request.weight
        prompt_cost = INPUT_COST * entry.request.prompt_work
        num_begun = max(1, entry.request.num_rows - entry.num_unstarted)
        got = (entry.served - prompt_cost) / OUTPUT_COST / num_begun
        if self._typical_tokens is None:
            self._typical_tokens = got
        self._typical_tokens += (got - self._typical_tokens) / _TYPICAL_REQUESTS

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each of its rows is likely to get."""
        limit = float(request.sampling.max_tokens)
        return limit if self._typical_tokens is None else min(limit, self._typical_tokens)

    def _hold(self, entry: ActiveRequest, more: tuple[int, ...], share: int) -> None:
        """It takes so much more, or less, of what is shared."""
        entry.held, self.held = _sum(entry.held, more), _sum(self.held, more)
        entry.held_share += share
        self.running_share += share

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


def _sum(some: tuple[int, ...], more: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(operator.add, some, more)) if some else more
