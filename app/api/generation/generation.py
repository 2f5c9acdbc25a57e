"""One HTTP request's work in the engine: submitted together, read together, freed together.

Knows nothing about the shapes of replies.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.types import Receive

from app.api.generation.prefix_selection import PrefixSelection
from app.api.services import Services
from app.engine.request import (
    Event,
    GenerationRequest,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from app.engine.router import RequestStream
from app.errors import InvalidRequest, RequestCancelled
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limiter import Reservation
from app.tenancy.usage.totals import UsageTotals

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """One prompt of a request: its tokens and how its `rows` results are made.

    With `scored` the prompt's tokens get log-probabilities too.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    rows: int = 1
    scored: bool = False

    @property
    def num_rows(self) -> int:
        """Rows that it takes in the engine: its results, or its beams."""
        return self.rows if self.sampling.beam is None else self.sampling.beam.num_beams

    @property
    def most_tokens(self) -> int:
        """Tokens that it can take: its prompt, and the new ones of all its rows."""
        return len(self.prompt_ids) + self.num_rows * self.sampling.max_tokens


@dataclass
class Timings:
    """Totals of a request in seconds; over several prompts, the slowest counts."""

    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    total_time: float = 0.0

    def add(self, finished: RequestFinished) -> None:
        """Take in one prompt's totals."""
        self.queue_time = max(self.queue_time, finished.queue_time)
        first = finished.time_to_first_token or 0.0
        self.time_to_first_token = max(self.time_to_first_token, first)
        self.total_time = max(self.total_time, finished.total_time)

    @property
    def milliseconds(self) -> dict[str, float]:
        """As replies show them."""
        return {
            "queue_time": round(1000 * self.queue_time, 3),
            "time_to_first_token": round(1000 * self.time_to_first_token, 3),
            "total_time": round(1000 * self.total_time, 3),
        }

    @property
    def headers(self) -> dict[str, str]:
        """The reply's `x-…-time` headers, in milliseconds."""
        return {f"x-{name.replace('_', '-')}": str(ms) for name, ms in self.milliseconds.items()}


@dataclass
class Generation:
    """Rows in the engine for one HTTP request; with `whole` each text comes in one piece.

    `close` it in every case.
    """

    services: Services
    choice: PrefixSelection
    principal: Principal
    jobs: Sequence[Job]
    timeout: float | None
    whole: bool = False
    priority: int = 0
    timings: Timings = field(default_factory=Timings)
    _streams: list[RequestStream] = field(default_factory=list)
    _spent: UsageTotals = field(default_factory=lambda: UsageTotals(requests=1))
    _num_ended: int = 0
    _reservation: Reservation = field(default_factory=Reservation)

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.principal.tenant

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers that are known once it has started."""
        return {**self.choice.headers, **self._reservation.headers}

    async def start(self) -> None:
        """Reserve and submit every job; raises RateLimited, or what the engine refuses.

        After an error nothing runs. What was not used of the reservation comes free when the last
        job has ended, whether anybody still reads or not.
        """
        rows = sum(job.num_rows for job in self.jobs)
        beams = any(job.sampling.beam is not None for job in self.jobs)
        check_rows(self.services, rows, beams=beams)
        self._reservation = await self.services.limiter.reserve(
            self.tenant,
            self.principal.limits,
            tokens=sum(job.most_tokens for job in self.jobs),
            rows=rows,
        )
        longest = self.services.limits.request_timeout
        deadline = time.monotonic() + min(self.timeout or longest, longest)
        try:
            for job in self.jobs:
                stream = self.services.engine.submit(self._request(job, deadline))
                stream.when_ended(self._end)
                self._streams.append(stream)
        except BaseException:
            self._spent.failed = 1
            if not self._streams:
                self._reservation.release()
            self.close()
            raise

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Everything as it comes, in batches of (job's index, event); raises a job's error."""
        open_jobs = len(self._streams)
        async for batch in self._batches():
            for _, event in batch:
                if isinstance(event, RequestFailed):
                    raise event.error
                open_jobs -= isinstance(event, RequestFinished)
            yield batch
            if open_jobs == 0:
                return

    def close(self) -> None:
        """Free whatever still runs, and the prefixes. Harmless when all has ended."""
        for stream in self._streams:
            stream.cancel()
        self.choice.release()

    def _end(self, event: RequestFinished | RequestFailed) -> None:
        """One job has ended, whether anybody still reads or not; with the last one all is known."""
        self._spent.tokens_in += event.work.prompt_tokens
        self._spent.tokens_out += event.work.new_tokens
        if isinstance(event, RequestFailed):
            self._spent.failed = 1
        else:
            self._note(event)
        self._num_ended += 1
        if self._num_ended == len(self._streams):
            self._settle()

    def _settle(self) -> None:
        """What the request has cost is final: it is noted, once."""
        spent, timings = self._spent, self.timings
        self._reservation.settle(spent.tokens_in + spent.tokens_out)
        if not spent.failed:
            spent.first_token_ms = round(1000 * timings.time_to_first_token)
            spent.total_ms = round(1000 * timings.total_time)
        self.services.usage.add(self.tenant, self.choice.names, self.choice.digests, spent)

    def _note(self, event: RequestFinished) -> None:
        self.timings.add(event)
        metrics = self.services.metrics
        metrics.queue_seconds.observe(event.queue_time)
        if event.time_to_first_token is not None:
            metrics.first_token_seconds.observe(event.time_to_first_token)

    def _request(self, job: Job, deadline: float) -> GenerationRequest:
        limits = self.principal.limits
        return GenerationRequest(
            id=secrets.token_hex(12),
            tenant=self.tenant,
            prompt_ids=job.prompt_ids,
            sampling=job.sampling,
            prefixes=self.choice.prefixes,
            n=job.rows,
            echo=job.scored,
            deadline=deadline,
            whole=self.whole,
            weight=limits.weight,
            priority=self.priority,
            row_cap=limits.max_rows,
            queue_cap=limits.max_queue,
        )

    async def _batches(self) -> AsyncIterator[list[tuple[int, Event]]]:
        if len(self._streams) == 1:
            while True:
                yield [(0, event) for event in await self._streams[0].next_events()]
        reads = {self._read(index): index for index in range(len(self._streams))}
        try:
            while True:
                done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
                batch: list[tuple[int, Event]] = []
                for task in done:
                    index = reads.pop(task)
                    batch.extend((index, event) for event in task.result())
                    if not isinstance(batch[-1][1], RequestFinished | RequestFailed):
                        reads[self._read(index)] = index
                yield batch
        finally:
            for task in reads:
                task.cancel()

    def _read(self, index: int) -> asyncio.Task[list[Event]]:
        return asyncio.ensure_future(self._streams[index].next_events())


def check_rows(services: Services, rows: int, *, beams: bool) -> None:
    """InvalidRequest if one request has too many rows; ask before any work is done for it."""
    limit = services.limits.max_request_rows
    if rows > limit:
        raise InvalidRequest(
            f"prompts × max(n, best_of, num_beams) is {rows}; at most {limit} rows are taken "
            "at once",
            param="num_beams" if beams else "n",
        )


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_on_disconnect(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled if the client goes away first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestCancelled("the client went away")
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
