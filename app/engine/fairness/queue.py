"""Whose request starts next: the queue of waiting requests, fair between tenants.

*Counters.* Each tenant has a virtual token counter: the cost of what it was served, divided by its
weight (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). The tenant with the
smallest counter is next. A request is charged when it starts, with the tokens that its tenant's
requests usually get, and the charge is corrected by the tokens that it really gets. (If it were
charged only while it runs, a new tenant would get all free rows at once.) A tenant that was idle,
or held back by a limit, gets no credit for that time: its counter is raised to that of the tenant
that started last.

*Isolation.* Rows are never taken away, so some are kept free for tenants that arrive. Only tenants
below their fair share may use this reserve, and each leaves as much of it as it takes. A tenant is
heavy if it wants more than twice its fair share or gets more than 1.3 times its fair share; else it
is light. Together, heavy tenants may use the throughput that light tenants leave, and at least half
of their own fair share. What light tenants leave is measured against their highest demand of the
last seconds, plus a quarter. Without light tenants there is no such limit.

*Several rows.* The rows of a request start one by one, each when its tenant is next. Only the beams
of one search start together.

*Nobody starves.* A tenant without a row is never held back. Other requests may overtake a request
that does not fit into memory, but only until they cost as much as that request (twice as much for
tenants without a row). From then on, everything that becomes free is kept for it. Requests that a
limit holds back can always be overtaken. Within a tenant, the higher priority comes first, then the
older request; so requests of high priority can starve those of low priority.

*Prompts.* Prompt tokens are counted per tenant in the same way: the tenant for which the fewest
were computed, divided by its weight, is first.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from app.engine.fairness.prefill_budget import Speed
from app.engine.fairness.tenant_share import MEMORY_S, WHOLE, Stock, TenantShare
from app.engine.request import GenerationRequest
from app.engine.request_state import RequestState

_HEAVY_DEMAND, _HEAVY_RATE = 2.0, 1.3
"""A tenant is heavy that wants, or gets, more than so many times its fair share."""
_NEVER_HEAVY = 1 / 8
"""A tenant that uses less than this part of the engine is always light."""
_MARGIN = 1.25
"""Factor on the highest recent demand of light tenants: their next peak may be higher."""
_LEAST_FOR_HEAVY = 0.5
"""The part of their own fair share that heavy tenants may always use."""
_PATIENCE = 2.0
"""Tenants without a row may overtake a request up to so many times its cost."""
_PROMPT_CREDIT = 512.0
"""Prompt tokens by which a new tenant may be ahead of those that send prompts all the time."""
_REBASE = 2.0**20
"""When counters exceed this, all are reduced, so that they stay exact."""
_MAX_IDLE = 256
"""The most idle tenants that are remembered, each for `MEMORY_S` seconds."""


class FairQueue:
    """Requests with rows that have not started.

    `waiting` holds the requests of which no row has started, by id; `queued` the tenants that have
    rows to start, by name.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, RequestState] = {}
        self._tenants: dict[str, TenantShare] = {}
        self.queued: dict[str, TenantShare] = {}
        self._idle_since: OrderedDict[str, float] = OrderedDict()
        self._num_seen = 0
        self._last_started = 0.0
        self._turn: TenantShare | None = None
        self._now = 0.0
        self._speed = Speed(0.0, 0.0, 1)
        self._heavy: set[TenantShare] = set()
        self._room_for_heavy = math.inf
        self._weights = 1.0
        self._last_prompted = 0.0

    def debug_state(self) -> dict[str, Any]:
        """Its state as plain values."""
        tenants = {
            name: {
                "counter": tenant.counter,
                "running_share": tenant.running_share,
                "waiting_share": tenant.waiting_share,
                "demand": tenant.demand,
                "idle": tenant.idle,
            }
            for name, tenant in self._tenants.items()
        }
        return {
            "tenants": tenants,
            "idle": list(self._idle_since),
            "waiting": list(self.waiting),
            "last_started": self._last_started,
        }

    def add(self, entry: RequestState, now: float) -> None:
        """Queue a request whose `share` of the engine is known."""
        self._now = max(self._now, now)
        name = entry.request.tenant
        tenant = self._tenants.get(name)
        if tenant is None:
            self._num_seen += 1
            tenant = self._tenants[name] = TenantShare(name, self._num_seen)
            tenant.counter = self._last_started
        self._idle_since.pop(name, None)
        if name not in self.queued:
            tenant.counter = max(tenant.counter, self._last_started)
            self.queued[name] = tenant
        tenant.add(entry, self._now)
        self.waiting[entry.request.id] = entry

    def remove(self, request_id: str) -> bool:
        """Remove a waiting request; False if it does not wait."""
        entry = self.waiting.get(request_id)
        if entry is None:
            return False
        tenant = self._tenants[entry.request.tenant]
        self._take(entry, tenant)
        if tenant.idle:
            self._idle_since[tenant.name] = self._now
        return True

    def begin(self, now: float, speed: Speed) -> None:
        """Call it before each step: forgets idle tenants and finds the heavy ones."""
        self._now, self._speed = max(self._now, now), speed
        while self._idle_since:
            name, since = next(iter(self._idle_since.items()))
            if self._now - since < MEMORY_S and len(self._idle_since) <= _MAX_IDLE:
                break
            del self._idle_since[name], self._tenants[name]
        if self._last_started > _REBASE:
            for tenant in self._tenants.values():
                tenant.counter -= self._last_started
            self._last_started = 0.0
        self._heavy.clear()
        self._room_for_heavy = math.inf
        self._weights = 0.0
        for tenant in self._tenants.values():
            self._weights += tenant.weight
        if len(self._tenants) > 1:
            self._divide()

    def starts(
        self,
        fits: Callable[[RequestState], bool],
        stocks: Callable[[], Sequence[Stock]] = lambda: (),
    ) -> Iterator[RequestState]:
        """Yield the requests whose next rows start now; each leaves the queue as it is yielded.

        `fits` says whether a request's next rows fit into memory. `stocks` lists what tenants
        share, in the order of a request's `needs`.
        """
        if not self.queued:
            return
        turns: list[tuple[bool, float, int, TenantShare]] = []
        for tenant in self.queued.values():
            heapq.heappush(turns, (*self._rank(tenant), tenant))
        passed: list[TenantShare] = []
        blocked: list[RequestState] = []
        while turns:
            tenant = turns[0][-1]
            head = tenant.head
            if head is None:
                heapq.heappop(turns)
            elif tenant.running_share and self._is_capped(tenant, head, stocks()):
                heapq.heappop(turns)
                passed.append(tenant)
            elif not fits(head):
                heapq.heappop(turns)
                blocked.append(head)
                if not tenant.running_share:
                    self._turn = tenant
            elif blocked and not self._may_overtake(tenant, blocked):
                heapq.heappop(turns)
            else:
                self._start(tenant, head, passed, blocked)
                heapq.heapreplace(turns, (*self._rank(tenant), tenant))
                yield head

    def serve(self, entry: RequestState, num_tokens: int) -> None:
        """Charge a running request for new tokens."""
        self._tenants[entry.request.tenant].serve(entry, num_tokens, self._now)

    def end_row(self, entry: RequestState) -> None:
        """One row of a request has ended; the request goes on."""
        self._tenants[entry.request.tenant].end_row(entry)

    def end(self, entry: RequestState) -> None:
        """A running request has ended: it finished, failed or was cancelled."""
        tenant = self._tenants[entry.request.tenant]
        if entry.num_unstarted:
            self._take(entry, tenant)
        tenant.end(entry)
        if tenant.idle:
            self._idle_since[tenant.name] = self._now

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each row of the request usually gets. Callable from any thread."""
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            return float(request.sampling.max_tokens)
        return tenant.expected_tokens(request)

    def serve_prompt(self, request: GenerationRequest, num_tokens: int) -> None:
        """Charge the tenant for `num_tokens` tokens of a prompt."""
        tenant = self._tenants[request.tenant]
        self._last_prompted = max(self._last_prompted, tenant.prompts)
        tenant.prompts += num_tokens / tenant.weight

    def prompt_turn(self, request: GenerationRequest) -> tuple[bool, float]:
        """The sort key of running requests: the prompt of the smallest is computed first."""
        tenant = self._tenants[request.tenant]
        return bool(self._heavy) and self.is_held_back(request), tenant.prompts

    def gives_way(self, request: GenerationRequest, others: Collection[GenerationRequest]) -> bool:
        """Whether its tenant uses more than twice as much, by weight, as a tenant of `others`."""
        wide = self._tenants[request.tenant]
        for other in others:
            narrow = self._tenants[other.tenant]
            if wide.running_share * narrow.weight > 2 * narrow.running_share * wide.weight:
                return True
        return False

    def is_held_back(self, request: GenerationRequest) -> bool:
        """Whether its tenant is heavy while others are light."""
        return self._tenants[request.tenant] in self._heavy and self._room_for_heavy < math.inf

    # --- whose turn ------------------------------------------------------------------------

    def _rank(self, tenant: TenantShare) -> tuple[bool, float, int]:
        return tenant is not self._turn, tenant.counter, tenant.order

    def _start(
        self,
        tenant: TenantShare,
        entry: RequestState,
        passed: Collection[TenantShare],
        blocked: Collection[RequestState],
    ) -> None:
        self._last_started = tenant.counter
        if not entry.has_begun:
            # a tenant without prompts for a while gets at most this much credit
            least = self._last_prompted - _PROMPT_CREDIT / tenant.weight
            tenant.prompts = max(tenant.prompts, least)
        for other in passed:
            other.counter = max(other.counter, tenant.counter)
        if self._turn is tenant:
            self._turn = None
        if entry.num_unstarted == entry.rows_at_once:
            self._take(entry, tenant)
        else:
            self.waiting.pop(entry.request.id, None)
            tenant.waiting_share -= entry.share
        cost = tenant.start(entry)
        for waits in blocked:
            waits.overtaken += cost

    def _may_overtake(self, tenant: TenantShare, blocked: Collection[RequestState]) -> bool:
        """Whether the tenant may start a request before the `blocked` ones, which do not fit."""
        patience = 1.0 if tenant.running_share else _PATIENCE
        return all(
            waits.overtaken < patience * self._tenants[waits.request.tenant].cost(waits)
            for waits in blocked
        )

    def _take(self, entry: RequestState, tenant: TenantShare) -> None:
        """Remove a request from the queue."""
        self.waiting.pop(entry.request.id, None)
        tenant.remove(entry)
        if tenant.head is None:
            del self.queued[tenant.name]
            if self._turn is tenant:
                self._turn = None

    # --- caps ------------------------------------------------------------------------------

    def _is_capped(self, tenant: TenantShare, head: RequestState, stocks: Sequence[Stock]) -> bool:
        cap = head.request.row_cap
        if cap is not None and tenant.num_rows + head.rows_at_once > cap:
            return True
        fair = tenant.weight / self._weights
        held = tenant.held or (0,) * len(stocks)
        for stock, holds, wants in zip(stocks, held, head.needs, strict=False):
            if not stock.allows(holds, wants, fair):
                return True
        if tenant not in self._heavy:
            return False
        used = sum(other.running_share for other in self._heavy) + head.share
        return self._speed.worth(used / WHOLE) > self._room_for_heavy

    def _divide(self) -> None:
        """Find the heavy tenants, and the part of the throughput that they may use."""
        wanted, fair_for_heavy = 0, 0.0
        for tenant in self._tenants.values():
            fair = tenant.weight / self._weights
            if self._is_heavy(tenant, fair):
                self._heavy.add(tenant)
                fair_for_heavy += fair
            else:
                wanted += tenant.peak_demand(self._now)
        if wanted:
            left = 1 - self._speed.worth(_MARGIN * wanted / WHOLE)
            self._room_for_heavy = max(_LEAST_FOR_HEAVY * fair_for_heavy, left)

    def _is_heavy(self, tenant: TenantShare, fair: float) -> bool:
        if tenant.demand > WHOLE * max(_NEVER_HEAVY, _HEAVY_DEMAND * fair):
            return True
        rate = tenant.token_rate(self._now) / self._speed.tokens_per_s
        return rate > max(_NEVER_HEAVY, _HEAVY_RATE * fair)
