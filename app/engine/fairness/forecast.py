"""Retry-After: estimates in how many seconds a client that is refused now would be accepted.

The estimate plays the present requests forward: those that run, those that wait, and the clients
that were promised a time before. Each row is assumed to get as many tokens as its tenant's requests
usually get, at the mean duration of recent steps. All times are in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from app.engine.request import GenerationRequest
from app.engine.request_state import RequestState

MAX_WAIT_S = 60.0
"""The longest time that a client is told; OpenAI's clients ignore longer ones."""
_MAX_TENANTS, _MAX_PROMISES = 4096, 128
"""How many tenants are remembered, and how many promises of each."""
_MAX_WAITING = 64
"""How many waiting requests of a tenant are played forward."""


@dataclass(frozen=True, slots=True)
class RowUse:
    """A request that uses `rows` rows for `seconds` more, counted from now or from its start."""

    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SchedulerFigures:
    """What waits and runs after a step: requests, rows, tenants, and the requests with rows.

    `step_s` is the mean duration of recent steps in seconds.
    """

    num_waiting: int = 0
    num_rows: int = 0
    num_waiting_tenants: int = 0
    active: tuple[RequestState, ...] = ()
    step_s: float = 0.0


class Promises:
    """Times that were promised to refused clients, by tenant, until these times have come.

    A client that was promised a time counts as one that waits. So of many clients that are refused
    together, each is told a different time.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, list[tuple[float, RowUse]]] = OrderedDict()

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._of)

    def open(self, tenant: str, now: float) -> list[RowUse]:
        """What the tenant's clients asked for whose promised time has not come yet."""
        kept = [promise for promise in self._of.get(tenant, ()) if promise[0] > now]
        if kept:
            self._of[tenant] = kept
        else:
            self._of.pop(tenant, None)
        return [use for _, use in kept]

    def add(self, tenant: str, until: float, use: RowUse) -> None:
        """A client of the tenant will come back at `until` and then needs `use`."""
        promises = self._of.setdefault(tenant, [])
        if len(promises) < _MAX_PROMISES:
            promises.append((until, use))
        self._of.move_to_end(tenant)
        if len(self._of) > _MAX_TENANTS:
            self._of.popitem(last=False)


def seconds_until_free(
    free: int, running: Iterable[RowUse], promised: Sequence[RowUse], rows: int
) -> float | None:
    """Seconds until a client gets `rows` rows, when all `promised` clients get theirs before it.

    `free` rows are free now, and each request of `running` frees its rows when it ends. None if the
    rows are never enough.
    """
    ends = [(use.seconds, use.rows) for use in running]
    heapq.heapify(ends)
    now = 0.0
    for client in (*promised, RowUse(rows, 0.0)):
        while free < client.rows:
            if not ends:
                return None
            now, freed = heapq.heappop(ends)
            free += freed
        free -= client.rows
        heapq.heappush(ends, (now + client.seconds, client.rows))
    return now


def simulate_queue(
    running_s: Sequence[float], waiting: Iterable[tuple[int, float]], num_places: int
) -> list[tuple[float, float]]:
    """When each waiting request starts and ends: (start, end), in seconds from now.

    `running_s` says in how many seconds each running row ends. A waiting request is (number of
    rows, seconds that each row takes). Its rows take the places of rows that have ended, one after
    the other; there are `num_places` places, or as many as rows run if that is more.
    """
    places = sorted(running_s)[-max(1, num_places, len(running_s)) :]
    places += [0.0] * (max(1, num_places) - len(places))
    heapq.heapify(places)
    times = []
    for rows, seconds in waiting:
        start, end = places[0], 0.0
        for _ in range(rows):
            end = max(end, places[0] + seconds)
            heapq.heapreplace(places, places[0] + seconds)
        times.append((start, end))
    return times


class Forecast:
    """Estimates waiting times; the caller holds one lock around every call.

    Its caller replaces `figures` after each step. `expected_tokens` says how many new tokens a row
    of a request usually gets.
    """

    def __init__(
        self,
        expected_tokens: Callable[[GenerationRequest], float],
        max_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected_tokens, self._max_rows = expected_tokens, max_rows
        self._clock = clock
        self.figures = SchedulerFigures()
        self._for_rows, self._for_queue, self._for_room = Promises(), Promises(), Promises()

    def rows_wait(
        self,
        tenant: str,
        waiting: Iterable[GenerationRequest],
        free: int,
        rows: int,
        new_tokens: int,
    ) -> float:
        """Seconds until the tenant may use `rows` more rows within its own limit of rows.

        Of that limit `free` rows are free now. `waiting` are the tenant's requests without a row.
        Each refused row gets `new_tokens` tokens; 0 if that is not known yet.
        """
        running = self._running(tenant, waiting)
        promised = self._for_rows.open(tenant, self._clock())
        wait = seconds_until_free(free, running, promised, rows)
        if not new_tokens:
            usual = (self._expected_tokens(one.request) for one in self._of(tenant))
            new_tokens = round(next(usual, 0))
        use = RowUse(rows, new_tokens * self.figures.step_s)
        # the other rows of the limit are in use on another server: nobody knows when these end
        wait = use.seconds / 2 if wait is None else wait
        return self._promise(self._for_rows, tenant, wait, use)

    def queue_wait(self, tenant: str, waiting: Iterable[GenerationRequest], count: int) -> float:
        """Seconds until `count` of the tenant's waiting requests have started."""
        count += len(self._for_queue.open(tenant, self._clock()))
        starts = [start for start, _ in self._times(tenant, itertools.islice(waiting, count))]
        return self._promise(self._for_queue, tenant, _nth(sorted(starts), count), RowUse(1, 0.0))

    def room_wait(self, tenant: str | None) -> float:
        """Seconds until a request of the tenant has ended; of any tenant if `tenant` is None."""
        key = tenant or ""
        count = 1 + len(self._for_room.open(key, self._clock()))
        active = [one for one in self.figures.active if tenant in (None, one.request.tenant)]
        ends = sorted(max(self._row_seconds(one), default=0.0) for one in active)
        return self._promise(self._for_room, key, _nth(ends, count), RowUse(1, 0.0))

    def _promise(self, promises: Promises, tenant: str, wait: float, use: RowUse) -> float:
        """Round the wait up to whole seconds within the bounds, and remember it as a promise."""
        wait = float(math.ceil(min(MAX_WAIT_S, max(1.0, wait))))
        promises.add(tenant, self._clock() + wait, use)
        return wait

    def _running(self, tenant: str, waiting: Iterable[GenerationRequest]) -> list[RowUse]:
        """The tenant's requests that run and the first ones that wait, until each one's end."""
        queue = list(itertools.islice(waiting, _MAX_WAITING))
        times = iter(self._times(tenant, queue))
        uses = []
        for one in self._of(tenant):
            end = max(self._row_seconds(one), default=0.0)
            if one.num_unstarted:
                end = max(end, next(times)[1])
            uses.append(RowUse(one.request.num_rows, end))
        uses += [RowUse(one.num_rows, end) for one, (_, end) in zip(queue, times, strict=False)]
        return uses

    def _times(
        self, tenant: str, waiting: Iterable[GenerationRequest]
    ) -> list[tuple[float, float]]:
        """(start, end) of the tenant's rows that have not started.

        First those of its running requests, then those of its waiting ones. The tenant gets an
        equal part of the engine's rows.
        """
        active = self._of(tenant)
        running = [end for one in active for end in self._row_seconds(one)]
        parts = [(one.num_unstarted, one.request) for one in active if one.num_unstarted]
        parts += [(one.num_rows, one) for one in waiting]
        seconds = ((rows, self._expected_tokens(one) * self.figures.step_s) for rows, one in parts)
        tenants = len({one.request.tenant for one in self.figures.active} | {tenant})
        return simulate_queue(running, seconds, self._max_rows // tenants)

    def _of(self, tenant: str) -> list[RequestState]:
        return [one for one in self.figures.active if one.request.tenant == tenant]

    def _row_seconds(self, entry: RequestState) -> list[float]:
        """Seconds until each row of a running request ends.

        A row that already has more tokens than usual is assumed to be halfway to its limit.
        """
        request, rows = entry.request, list(entry.rows)
        limit, expected = request.sampling.max_tokens, self._expected_tokens(request)
        if entry.beams is not None:
            rows = rows[-1:] * request.num_rows
        left = []
        for made in (row.num_generated for row in rows):
            left.append(expected - made if made < expected else (limit - made) / 2)
        # rows whose prompt has no slot yet, or whose source is not encoded yet
        left += [expected] * (entry.num_rows - len(left))
        return [tokens * self.figures.step_s for tokens in left]


def _nth(times: Sequence[float], count: int) -> float:
    """The `count`th of ascending times; beyond the last one they go on at the same rate."""
    if not times:
        return 0.0
    if count <= len(times):
        return times[count - 1]
    return times[-1] * count / len(times)
