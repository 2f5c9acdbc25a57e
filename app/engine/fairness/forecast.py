"""When a client that was refused may try again: estimated from what runs, what waits and how fast.

A client that was told a time counts as waiting until then, so that of many clients that are refused
together each gets a time of its own.
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
"""What clients are told at most; those of OpenAI wait no longer on anybody's word."""
_MAX_TENANTS, _MAX_TOLD = 4096, 128
_MOST_WAITING = 64
"""Of one tenant's requests that wait, so many are looked at."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A request as the forecast sees it: its rows, and when the last of them ends, from now on."""

    rows: int
    end_s: float


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


class Told:
    """Who was told when to come back, by tenant; forgotten when the time has come."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, list[tuple[float, Stay]]] = OrderedDict()

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._until)

    def of(self, tenant: str, now: float) -> list[Stay]:
        """What those who are still to come back asked for, with how long they will take."""
        kept = [one for one in self._until.get(tenant, ()) if one[0] > now]
        if kept:
            self._until[tenant] = kept
        else:
            self._until.pop(tenant, None)
        return [stay for _, stay in kept]

    def add(self, tenant: str, until: float, stay: Stay) -> None:
        """Somebody of the tenant comes back then; at most so many are remembered."""
        told = self._until.setdefault(tenant, [])
        if len(told) < _MAX_TOLD:
            told.append((until, stay))
        self._until.move_to_end(tenant)
        if len(self._until) > _MAX_TENANTS:
            self._until.popitem(last=False)


def first_fit(free: int, stays: Iterable[Stay], told: Sequence[Stay], rows: int) -> float | None:
    """Seconds until `rows` are free, if those who were told come first, each in its turn.

    `free` are free now, those of `stays` as these end. None if they never are.
    """
    ends = [(stay.end_s, stay.rows) for stay in stays]
    heapq.heapify(ends)
    now = 0.0
    for ahead in (*told, Stay(rows, 0.0)):
        while free < ahead.rows:
            if not ends:
                return None
            now, freed = heapq.heappop(ends)
            free += freed
        free -= ahead.rows
        heapq.heappush(ends, (now + ahead.end_s, ahead.rows))
    return now


def simulate(
    running_s: Sequence[float], waiting: Iterable[tuple[int, float]], at_once: int
) -> list[tuple[float, float]]:
    """When each waiting request starts and ends, in seconds from now: (start, end).

    `running_s` is when each row that runs will end. Those that wait have (rows, seconds a row) and
    take turns on the places of these rows, or on `at_once` places if there are more.
    """
    places = sorted(running_s)[-max(1, at_once, len(running_s)) :]
    places += [0.0] * (max(1, at_once) - len(places))
    heapq.heapify(places)
    times = []
    for rows, seconds in waiting:
        start, end = places[0], 0.0
        for _ in range(rows):
            begun = places[0]
            heapq.heapreplace(places, begun + seconds)
            end = max(end, begun + seconds)
        times.append((start, end))
    return times


class Forecast:
    """What the engine's own progress says of the times to come; read and written under one lock.

    `figures` are those of the last step; `expected_tokens` are the new tokens that a row of a
    request is likely to get.
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
        self._told: dict[str, Told] = {what: Told() for what in ("rows", "queue", "room")}

    def rows_wait(
        self,
        tenant: str,
        waiting: Iterable[GenerationRequest],
        free: int,
        rows: int,
        new_tokens: int,
    ) -> float:
        """Seconds until the tenant, of whose limit `free` rows are free, may have `rows`.

        `waiting` are its requests without a row, `new_tokens` those of each row that is refused, 0
        where that is not known yet.
        """
        stays = self._stays(tenant, waiting)
        told = self._told["rows"]
        wait = first_fit(free, stays, told.of(tenant, self._clock()), rows)
        if not new_tokens:
            likely = (self._expected_tokens(one.request) for one in self._of(tenant))
            new_tokens = round(next(likely, 0))
        stay = Stay(rows, new_tokens * self.figures.step_s)
        # what does not end here ends elsewhere, at a time that is not known
        return self._tell(told, tenant, stay.end_s / 2 if wait is None else wait, stay)

    def queue_wait(self, tenant: str, waiting: Iterable[GenerationRequest], count: int) -> float:
        """Seconds until `count` of the tenant's requests that wait have begun."""
        told = self._told["queue"]
        count += len(told.of(tenant, self._clock()))
        starts = [start for start, _ in self._times(tenant, itertools.islice(waiting, count))]
        return self._tell(told, tenant, _nth(sorted(starts), count), Stay(1, 0.0))

    def room_wait(self, tenant: str | None) -> float:
        """Seconds until a request of the tenant has ended, or one of anybody."""
        told, key = self._told["room"], tenant or ""
        count = 1 + len(told.of(key, self._clock()))
        active = [one for one in self.figures.active if tenant in (None, one.request.tenant)]
        ends = sorted(max(self._rows_s(one), default=0.0) for one in active)
        return self._tell(told, key, _nth(ends, count), Stay(1, 0.0))

    def _tell(self, told: Told, tenant: str, wait: float, stay: Stay) -> float:
        wait = float(math.ceil(min(MAX_WAIT_S, max(1.0, wait))))
        told.add(tenant, self._clock() + wait, stay)
        return wait

    def _stays(self, tenant: str, waiting: Iterable[GenerationRequest]) -> list[Stay]:
        """All open requests of a tenant, of those that wait the first ones."""
        queue = list(itertools.islice(waiting, _MOST_WAITING))
        times = iter(self._times(tenant, queue))
        stays = []
        for one in self._of(tenant):
            end = max(self._rows_s(one), default=0.0)
            if one.num_unstarted:
                end = max(end, next(times)[1])
            stays.append(Stay(one.request.num_rows, end))
        stays += [Stay(one.num_rows, end) for one, (_, end) in zip(queue, times, strict=False)]
        return stays

    def _times(
        self, tenant: str, waiting: Iterable[GenerationRequest]
    ) -> list[tuple[float, float]]:
        """Starts and ends of rows that still enter: of requests that have begun, then of others."""
        active = self._of(tenant)
        running = [end for one in active for end in self._rows_s(one)]
        parts = [(one.num_unstarted, one.request) for one in active if one.num_unstarted]
        parts += [(one.num_rows, one) for one in waiting]
        seconds = ((rows, self._expected_tokens(one) * self.figures.step_s) for rows, one in parts)
        tenants = len({one.request.tenant for one in self.figures.active} | {tenant})
        return simulate(running, seconds, self._max_rows // tenants)

    def _of(self, tenant: str) -> list[RequestState]:
        return [one for one in self.figures.active if one.request.tenant == tenant]

    def _rows_s(self, entry: RequestState) -> list[float]:
        """Seconds that each of its rows in the engine is likely to take."""
        request, rows = entry.request, list(entry.rows)
        limit, expected = request.sampling.max_tokens, self._expected_tokens(request)
        if entry.beams is not None:
            rows = rows[-1:] * request.num_rows
        left = []
        for made in (row.num_generated for row in rows):
            left.append(expected - made if made < expected else (limit - made) / 2)
        # before its prompt is placed, or its source read, it has none
        left += [expected] * (entry.num_rows - len(left))
        return [tokens * self.figures.step_s for tokens in left]


def _nth(times: Sequence[float], count: int) -> float:
    """The `count`th of ascending times; beyond the last as if they went on as they came."""
    if not times:
        return 0.0
    if count <= len(times):
        return times[count - 1]
    return times[-1] * count / len(times)
