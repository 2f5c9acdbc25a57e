"""What the engine remembers of one tenant: its queue, what it was served, how much it uses.

Sizes are shares of the engine in parts per million, so that sums are exact.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from dataclasses import dataclass

from app.engine.request import GenerationRequest
from app.engine.request_state import RequestState

WHOLE = 1_000_000
"""The share of a request that needs the whole engine."""
INPUT_COST, OUTPUT_COST = 1.0, 2.0
"""What a prompt token and a new token cost; a new token needs a step of its own."""
MEMORY_S = 10.0
"""For how long what a tenant used still counts."""
_TYPICAL_REQUESTS = 8.0


@dataclass(frozen=True, slots=True)
class Stock:
    """One thing that tenants share: there is `whole` of it, `free` is left, `reserve` is kept."""

    whole: int
    reserve: int
    free: int

    def allows(self, held: int, wanted: int, fair: float = 1.0) -> bool:
        """Whether a tenant that holds `held` may take `wanted` more; `fair` is its part of all.

        The reserve is for tenants that have less than their fair share of the rest, and each leaves
        as much of it to others as it then has: of many that come at once, each finds something.
        """
        if self.reserve == 0:
            return True
        left = self.free - wanted
        return left >= self.reserve or held + wanted <= min(
            left, fair * (self.whole - self.reserve)
        )


class TenantShare:
    """One tenant; `order` tells equals apart, `counter` is what it was served over its weight.

    `prompts` counts the prompt tokens that were computed for it, over its weight; `held` is what
    its requests take of rows and of each memory.
    """

    def __init__(self, name: str, order: int) -> None:
        self.name, self.order = name, order
        self.counter = 0.0
        self.weight = 1.0
        self.running: dict[str, RequestState] = {}
        self.running_share = 0
        self.waiting_share = 0
        self.held: tuple[int, ...] = ()
        self.prompts = 0.0
        self._queues: dict[int, OrderedDict[str, RequestState]] = {}
        self._typical_tokens: float | None = None
        self._recent_tokens, self._counted_at = 0.0, -math.inf
        self._peaks, self._peaks_since = (0, 0), -math.inf

    # --- the queue -------------------------------------------------------------------------

    @property
    def head(self) -> RequestState | None:
        """Who is next: the oldest of the highest priority; None if nobody waits."""
        if not self._queues:
            return None
        return next(iter(self._queues[max(self._queues)].values()))

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self._queues and not self.running

    def add(self, entry: RequestState, now: float) -> None:
        self.weight = entry.request.weight
        queue = self._queues.setdefault(entry.request.priority, OrderedDict())
        queue[entry.request.id] = entry
        self.waiting_share += entry.share * (entry.num_unstarted // entry.rows_at_once)
        self._note_peak(now)

    def remove(self, entry: RequestState) -> None:
        """Take a request, or what of it has not entered, out of the queue."""
        queue = self._queues[entry.request.priority]
        del queue[entry.request.id]
        if not queue:
            del self._queues[entry.request.priority]
        self.waiting_share -= entry.share * (entry.num_unstarted // entry.rows_at_once)

    # --- service ---------------------------------------------------------------------------

    def cost(self, entry: RequestState) -> float:
        """Of its next rows: the new tokens that they are likely to get, before them the prompt."""
        new_tokens = entry.rows_at_once * self.expected_tokens(entry.request)
        prompt = 0 if entry.has_begun else entry.prompt_work
        return INPUT_COST * prompt + OUTPUT_COST * new_tokens

    def start(self, entry: RequestState) -> float:
        """Rows of its request enter, and are charged; what they cost.

        They have been taken out of the queue, or more of the request stays there.
        """
        cost = self.cost(entry)
        if not entry.has_begun:
            self.running[entry.request.id] = entry
            entry.served += INPUT_COST * entry.prompt_work
        self._hold(entry, entry.needs, entry.share)
        entry.needs = entry.row_needs
        entry.num_unstarted -= entry.rows_at_once
        entry.charged += cost
        self.counter += cost / entry.request.weight
        return cost

    def serve(self, entry: RequestState, num_tokens: int, now: float) -> None:
        """Its request got new tokens; those beyond what was expected are charged now."""
        self._recent_tokens = self._recent(now) + num_tokens
        self._counted_at = now
        entry.served += OUTPUT_COST * num_tokens
        if entry.served > entry.charged:
            self.counter += (entry.served - entry.charged) / entry.request.weight
            entry.charged = entry.served

    def end_row(self, entry: RequestState) -> None:
        """One row of its request has ended and others go on, or are still to enter."""
        self._hold(entry, tuple(map(operator.neg, entry.row_needs)), -entry.share)

    def end(self, entry: RequestState) -> None:
        """Its request has ended: what it was charged and did not get is given back."""
        del self.running[entry.request.id]
        self._hold(entry, tuple(map(operator.neg, entry.held)), -entry.held_share)
        self.counter -= (entry.charged - entry.served) / entry.request.weight
        num_begun = max(1, entry.request.num_rows - entry.num_unstarted)
        got = (entry.served - INPUT_COST * entry.prompt_work) / OUTPUT_COST / num_begun
        if self._typical_tokens is None:
            self._typical_tokens = got
        self._typical_tokens += (got - self._typical_tokens) / _TYPICAL_REQUESTS

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each of its rows is likely to get."""
        limit = float(request.sampling.max_tokens)
        return limit if self._typical_tokens is None else min(limit, self._typical_tokens)

    def _hold(self, entry: RequestState, more: tuple[int, ...], share: int) -> None:
        """It takes so much more, or less, of what is shared."""
        entry.held = tuple(map(operator.add, entry.held, more)) if entry.held else more
        self.held = tuple(map(operator.add, self.held, more)) if self.held else more
        entry.held_share += share
        self.running_share += share

    # --- use -------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        return sum([entry.num_rows for entry in self.running.values()])

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
