"""One HTTP request's work in the engine: submitted together, read together, freed together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Protocol, TypeVar

from starlette.types import Receive

from app.api.generation.engine_input import (
    GenerationSpec,
    choose_beams,
    encode_prompts,
    parse_logit_bias,
    sampling_params,
)
from app.api.generation.prefix_selection import PrefixSelection, PrefixSelector
from app.api.metrics import Metrics
from app.engine.engine import Engine
from app.engine.request import End, Event, GenerationRequest, RequestFailed, RequestFinished
from app.engine.router import RequestStream
from app.errors import InvalidRequest, RequestCancelled
from app.model.frozen import FrozenModel
from app.runtime.workers import WorkerPool
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limiter import Limiter, Reservation
from app.tenancy.usage.ledger import UsageLedger, UsageTotals

Result = TypeVar("Result")


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
        """The reply's `x-…-time` headers, in milliseconds; none before anything has ended."""
        headers: dict[str, str] = {}
        if self.total_time:
            for name, milliseconds in self.milliseconds.items():
                headers[f"x-{name.replace('_', '-')}"] = str(milliseconds)
        return headers


class EventSink(Protocol):
    """Collects the events of one request."""

    def add(self, event: Event) -> None:
        """Take in an event."""


@dataclass
class Generation:
    """The rows of one HTTP request in the engine. `close` it in every case.

    What was not used of the reservation comes free when the last request has ended, whether
    anybody still reads or not.
    """

    tenant: str
    requests: Sequence[GenerationRequest]
    selection: PrefixSelection
    reservation: Reservation
    usage: UsageLedger
    metrics: Metrics
    timings: Timings = field(default_factory=Timings)
    _streams: list[RequestStream] = field(default_factory=list)
    _spent: UsageTotals = field(default_factory=UsageTotals)
    _num_ended: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers that are known once it has started."""
        return {**self.selection.headers, **self.reservation.headers}

    def submit(self, engine: Engine) -> None:
        """Submit every request, or none: after an error nothing runs."""
        try:
            for request in self.requests:
                stream = engine.submit(request)
                stream.when_ended(self._end)
                self._streams.append(stream)
        except BaseException:
            self._spent.failed = 1
            if not self._streams:
                self.reservation.release()
            self.close()
            raise

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Everything as it comes, in batches of (request's index, event); raises their errors."""
        num_open = len(self._streams)
        async for batch in self._batches():
            for _, event in batch:
                if isinstance(event, RequestFailed):
                    raise event.error
                num_open -= isinstance(event, RequestFinished)
            yield batch
            if num_open == 0:
                return

    async def finish(self, receive: Receive, into: Sequence[EventSink]) -> None:
        """Add every event to its request's sink, then close.

        RequestCancelled if the client, which `receive` listens to, goes away.
        """

        async def collect() -> None:
            async for batch in self.events():
                for index, event in batch:
                    into[index].add(event)

        try:
            await cancel_on_disconnect(receive, collect())
        finally:
            self.close()

    def close(self) -> None:
        """Free whatever still runs, and the prefixes. Harmless when all has ended."""
        for stream in self._streams:
            stream.cancel()
        self.selection.release()

    def _end(self, event: End) -> None:
        """One request has ended; with the last one the cost is final, and it is noted once."""
        spent = self._spent
        spent.tokens_in += event.work.prompt_tokens
        spent.tokens_out += event.work.new_tokens
        if isinstance(event, RequestFailed):
            spent.failed = 1
        else:
            self.timings.add(event)
            self.metrics.queue_seconds.observe(event.queue_time)
            if event.time_to_first_token is not None:
                self.metrics.first_token_seconds.observe(event.time_to_first_token)
        self._num_ended += 1
        if self._num_ended < len(self._streams):
            return
        spent.requests = 1
        self.reservation.settle(spent.tokens_in + spent.tokens_out)
        if not spent.failed:
            spent.first_token_ms = round(1000 * self.timings.time_to_first_token)
            spent.total_ms = round(1000 * self.timings.total_time)
        self.usage.add(self.tenant, self.selection.names, self.selection.digests, spent)

    async def _batches(self) -> AsyncIterator[list[tuple[int, Event]]]:
        if len(self._streams) == 1:
            while True:
                yield list(zip(repeat(0), await self._streams[0].next_events(), strict=False))
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


@dataclass(frozen=True)
class GenerationService:
    """Takes specs to the engine: names become prefixes, prompts token ids, within the limits.

    `max_rows` and `timeout`, in seconds, are what one request may take at most. Long texts
    are encoded in the threads of `text_pool`.
    """

    model: FrozenModel
    engine: Engine
    selector: PrefixSelector
    limiter: Limiter
    usage: UsageLedger
    metrics: Metrics
    text_pool: WorkerPool
    max_rows: int
    timeout: float

    @cached_property
    def system_fingerprint(self) -> str:
        """Replicas with the same one compute the same numbers."""
        model = self.model
        dtype = str(model.dtype).removeprefix("torch.")
        decode_attention = self.engine.decode_attention
        parts = [model.spec.fingerprint[:12], model.device.type, dtype, decode_attention]
        if "few_rows" in model.notes:
            parts.append(f"{model.notes['few_rows']}-rows")
        return "-".join(parts)

    async def run(self, spec: GenerationSpec, principal: Principal) -> Generation:
        """Start what `spec` asks for; raises RateLimited, or what the engine refuses.

        The number of rows is checked before any text is encoded.
        """
        fields = spec.fields
        rows = len(spec.prompts) * max(spec.num_results, fields.num_beams or 1)
        self.check_rows(rows, beams=fields.num_beams is not None)
        self.limiter.check(principal.tenant, principal.limits, rows=rows)
        selection = await self.selector.select(
            principal.tenant, spec.model, fields.prefixes, user=fields.user
        )
        try:
            requests = await self._requests(spec, principal.tenant, selection)
            return await self.submit(requests, principal, selection, timeout=fields.timeout)
        except BaseException:
            selection.release()
            raise

    async def submit(
        self,
        requests: Sequence[GenerationRequest],
        principal: Principal,
        selection: PrefixSelection,
        *,
        timeout: float | None,
    ) -> Generation:
        """Reserve for all requests and submit them, as the principal's and with `selection`."""
        rows, tokens, beams = 0, 0, False
        for request in requests:
            rows += request.num_rows
            tokens += len(request.prompt_ids) + request.num_rows * request.sampling.max_tokens
            beams = beams or request.sampling.beam is not None
        self.check_rows(rows, beams=beams)
        tenant, limits = principal.tenant, principal.limits
        reservation = await self.limiter.reserve(tenant, limits, tokens=tokens, rows=rows)
        deadline = time.monotonic() + min(timeout or self.timeout, self.timeout)
        own = []
        for request in requests:
            made = replace(
                request,
                tenant=tenant,
                prefixes=selection.prefixes,
                deadline=deadline,
                weight=limits.weight,
                row_cap=limits.max_rows,
                queue_cap=limits.max_queue,
            )
            own.append(made)
        generation = Generation(tenant, own, selection, reservation, self.usage, self.metrics)
        generation.submit(self.engine)
        return generation

    def check_rows(self, rows: int, *, beams: bool) -> None:
        """InvalidRequest if one request has too many rows; ask before any work is done for it."""
        if rows > self.max_rows:
            raise InvalidRequest(
                f"prompts × max(n, best_of, num_beams) is {rows}; at most {self.max_rows} rows are "
                "taken at once",
                param="num_beams" if beams else "n",
            )

    async def _requests(
        self, spec: GenerationSpec, tenant: str, selection: PrefixSelection
    ) -> list[GenerationRequest]:
        """One request to the engine per prompt."""
        fields, model, beam = spec.fields, self.model, None
        if fields.num_beams is not None or "num_beams" in selection.decoding:
            beam = choose_beams(spec, selection, model.generation)
        if beam is not None:
            spec.check_beams(beam)
            self.check_rows(len(spec.prompts) * beam.num_beams, beams=True)
        encoded = await encode_prompts(
            model,
            self.text_pool,
            tenant,
            spec.prompts,
            template=None if fields.raw else selection.template,
            cut_to=spec.cut_to,
            add_special_tokens=fields.add_special_tokens,
            parse_special=bool(fields.parse_special),
        )
        bias = parse_logit_bias(spec.logit_bias) if spec.logit_bias else {}
        requests = []
        for ids in encoded:
            request = GenerationRequest(
                id=secrets.token_hex(12),
                tenant=tenant,
                prompt_ids=ids,
                sampling=sampling_params(
                    spec, selection, model, len(ids), logit_bias=bias, beam=beam
                ),
                n=spec.num_results,
                echo=spec.scores_prompt,
                whole=not spec.streams,
                priority=fields.priority or 0,
            )
            requests.append(request)
        return requests


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
