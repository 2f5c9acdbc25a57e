"""Whose request starts next: the queue of requests that wait for rows, fair between tenants.

Each tenant has a virtual token counter: the cost of what it was served, divided by its weight
(Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). The tenant with the smallest
counter is next. A request is charged when it starts, with the new tokens that its tenant's requests
usually get; the charge is corrected by what the request really gets. If requests were charged while
they run, a newcomer would be given all rows.

*Idling earns no credit.* When a tenant with nothing waiting asks again, its counter is raised to
that of the tenant that started last. The same holds for a tenant that a cap holds back while
another one starts.

*Isolation.* Rows are never taken away, so some must stay free for newcomers. A reserve of rows and
of memory is left to tenants below their share, even while nobody waits, and each of these leaves as
much of it to others as it takes itself. A tenant is heavy if it wants more than twice its fair
share, or gets more than 1.3 times its fair share; otherwise it is light. Heavy tenants leave to
light ones the largest part of the engine's throughput that these wanted in the last seconds, and a
quarter more, but may always use half of their own fair share. If no tenant or every tenant is
heavy, or a tenant is alone, this limit does not apply.

*Wide requests.* The rows of a request enter one by one, each in its tenant's turn. Only the beams
of a search enter together.

*Nobody starves.* No cap holds back a tenant without a row. A request that does not fit when its
turn comes may be overtaken: by any tenant, until these have begun as much as the request costs, and
then up to twice its cost by tenants that have no row. After that, everything that becomes free is
kept for it. If its tenant has no row, the tenant keeps the turn. Tenants at a cap can always be
overtaken. Inside a tenant the higher priority always comes first, then the older request, so a
stream of high priority starves low priority.

*Prompts.* Prompts are computed a tenant at a time. The tenant for which the fewest prompt tokens
were computed, divided by its weight, comes first. Time without prompts earns it little credit.
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
"""Times its fair share that a tenant wants, or gets, from which on it is heavy."""
_NEVER_HEAVY = 1 / 8
"""Part of the engine up to which a tenant is light, however many there are."""
_MARGIN = 1.25
"""Times what light tenants wanted at most: the next peak may be higher."""
_LEAST_FOR_HEAVY = 0.5
"""Part of their own fair share that heavy tenants may use in any case."""
_PATIENCE = 2.0
"""Times its own cost by which a request that does not fit is overtaken at most."""
_PROMPT_CREDIT = 512.0
"""Prompt tokens that a newcomer may be ahead of tenants that have prompts all the time."""
_REBASE = 2.0**20
"""Counters are made small again from here on."""
_MAX_IDLE = 256
"""Idle tenants that are remembered, for `MEMORY_S` at most."""


class FairQueue:
    """The requests that wait, by id and by tenant; one tenant's are in its own order.

    A request of which some rows have entered and others wait is no longer in `waiting`. `queued`
    are the tenants with rows that wait, by name.
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
        """What it remembers, as plain values, for tests and for finding faults."""
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
        """Queue a request that has its `share`."""
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
        """Forget a request that waits; False if there is none."""
        entry = self.waiting.get(request_id)
        if entry is None:
            return False
        tenant = self._tenants[entry.request.tenant]
        self._take(entry, tenant)
        if tenant.idle:
            self._idle_since[tenant.name] = self._now
        return True

    def begin(self, now: float, speed: Speed) -> None:
        """A step begins: forget tenants that were idle for long, and see who is heavy."""
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
        """Requests whose next rows enter now, each tenant in its turn; they are taken as they come.

        `stocks` says what there is of what a request `needs`, in the same order.
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
        """A request that runs got new tokens."""
        self._tenants[entry.request.tenant].serve(entry, num_tokens, self._now)

    def end_row(self, entry: RequestState) -> None:
        """One row of a request that goes on has ended."""
        self._tenants[entry.request.tenant].end_row(entry)

    def end(self, entry: RequestState) -> None:
        """A request that ran has ended, in whatever way."""
        tenant = self._tenants[entry.request.tenant]
        if entry.num_unstarted:
            self._take(entry, tenant)
        tenant.end(entry)
        if tenant.idle:
            self._idle_since[tenant.name] = self._now

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each of its rows is likely to get; from any thread."""
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            return float(request.sampling.max_tokens)
        return tenant.expected_tokens(request)

    def serve_prompt(self, request: GenerationRequest, num_tokens: int) -> None:
        """Tokens of a prompt are about to be computed."""
        tenant = self._tenants[request.tenant]
        self._last_prompted = max(self._last_prompted, tenant.prompts)
        tenant.prompts += num_tokens / tenant.weight

    def prompt_turn(self, request: GenerationRequest) -> tuple[bool, float]:
        """Sorts requests that run: whose prompt is computed first."""
        tenant = self._tenants[request.tenant]
        return bool(self._heavy) and self.is_held_back(request), tenant.prompts

    def gives_way(self, request: GenerationRequest, others: Collection[GenerationRequest]) -> bool:
        """Whether its tenant takes more than twice as much as one of the others', over weights."""
        wide = self._tenants[request.tenant]
        for other in others:
            narrow = self._tenants[other.tenant]
            if wide.running_share * narrow.weight > 2 * narrow.running_share * wide.weight:
                return True
        return False

    def is_held_back(self, request: GenerationRequest) -> bool:
        """Whether its tenant is heavy, and there are light ones."""
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
            # it has a prompt to compute; the tenant keeps little credit from the time without one
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
        """Whether the tenant may begin something before those that do not fit."""
        patience = 1.0 if tenant.running_share else _PATIENCE
        return all(
            waits.overtaken < patience * self._tenants[waits.request.tenant].cost(waits)
            for waits in blocked
        )

    def _take(self, entry: RequestState, tenant: TenantShare) -> None:
        """Out of the queue."""
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
        """Tell heavy tenants from light ones, and how much room the heavy ones have."""
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
