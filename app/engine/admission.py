"""What may enter the engine: requests that can run at all, and no more of them than may wait."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from app.engine.config import EngineConfig
from app.engine.fairness.forecast import Forecast, SchedulerFigures
from app.engine.fairness.tenant_share import Stock
from app.engine.kv_cache.memory import check_kv_needs
from app.engine.kv_cache.slots import SlotTable
from app.engine.request import GenerationRequest, columns_of
from app.errors import ContextLengthExceeded, InvalidRequest, Overloaded, TenantQueueFull
from app.model.text import Text
from app.prefix.spec import BaseModelSpec

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0


def _all_tokens(request: GenerationRequest) -> float:
    return request.sampling.max_tokens


class Admission:
    """Checks requests against the model and the limits, and counts those that are open."""

    def __init__(
        self,
        config: EngineConfig,
        spec: BaseModelSpec,
        text: Text,
        table: SlotTable,
        sources: SlotTable | None = None,
        expected_tokens: Callable[[GenerationRequest], float] = _all_tokens,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._spec, self._text = config, spec, text
        self._table, self._sources = table, sources
        self._lock = threading.Lock()
        self._open: dict[str, GenerationRequest] = {}
        self._open_of: dict[str, dict[str, GenerationRequest]] = {}
        self._tokens_of = Counter[str]()
        self._tokens = 0
        self.figures = SchedulerFigures()
        self.forecast = Forecast(expected_tokens, config.max_tenant_rows, clock)

    @property
    def num_open(self) -> int:
        """Requests without a terminal event."""
        return len(self._open)

    def debug_state(self) -> dict[str, Any]:
        """Open requests and prompt tokens by tenant, as plain values."""
        return {
            "open": {name: list(of) for name, of in self._open_of.items()},
            "tokens": dict(self._tokens_of),
        }

    def note_step(self, figures: SchedulerFigures) -> None:
        """`figures` are what waits and runs after a step."""
        self.figures = self.forecast.figures = figures

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest or ContextLengthExceeded for what could never run."""
        if not MIN_WEIGHT <= request.weight <= MAX_WEIGHT:
            raise InvalidRequest(f"a tenant's weight is from {MIN_WEIGHT} to {MAX_WEIGHT}")
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        vocabulary = self._text.vocab_size
        named = {"prompt": request.prompt_ids, "logit_bias": request.sampling.logit_bias}
        for name, ids in named.items():
            if ids and (min(ids) < 0 or max(ids) >= vocabulary):
                raise InvalidRequest(
                    f"{name} names a token id outside 0 to {vocabulary - 1}", param=name
                )
        self._check_context(request)
        self._check_rows(request)
        prefix_limit = self._config.max_prefix_length
        for role in self._spec.modules:
            if (length := columns_of(request.prefixes, role)) > prefix_limit:
                raise InvalidRequest(
                    f"the prefixes have {length} positions together; the limit is {prefix_limit}",
                    param="model",
                )
        check_kv_needs(request, self._table, self._sources)

    def enter(self, request: GenerationRequest) -> None:
        """Count a request in.

        Raises Overloaded when too many are open, TenantQueueFull when as many of its tenant wait
        as may.
        """
        with self._lock:
            if request.queue_cap is not None:
                self._check_queue_of(request, request.queue_cap)
            self._check_room(request)
            if request.id in self._open:
                raise InvalidRequest(f"a request with id {request.id!r} is open already")
            self._open[request.id] = request
            self._open_of.setdefault(request.tenant, {})[request.id] = request
            self._tokens += len(request.prompt_ids)
            self._tokens_of[request.tenant] += len(request.prompt_ids)

    def leave(self, request_id: str) -> None:
        """Count a request out; unknown ids are ignored."""
        with self._lock:
            request = self._open.pop(request_id, None)
            if request is None:
                return
            tenant = request.tenant
            del self._open_of[tenant][request_id]
            self._tokens -= len(request.prompt_ids)
            self._tokens_of[tenant] -= len(request.prompt_ids)
            if not self._open_of[tenant]:
                del self._open_of[tenant], self._tokens_of[tenant]

    def rows_wait(self, tenant: str, free: int, rows: int, new_tokens: int) -> float:
        """Seconds until a tenant, of whose limit `free` rows are free, may probably have `rows`.

        `new_tokens` is what each of them takes.
        """
        with self._lock:
            waiting = self._waiting_of(tenant)
            return self.forecast.rows_wait(tenant, waiting, free, rows, new_tokens)

    def _check_room(self, request: GenerationRequest) -> None:
        """The server's bounds; a part of each is left to tenants that have little in the queue."""
        config = self._config
        most, most_tokens = config.max_waiting + config.max_rows, config.max_waiting_tokens
        if len(self._open) >= most:
            raise self._overloaded(f"{most} requests")
        if self._open and self._tokens + len(request.prompt_ids) > most_tokens:
            raise self._overloaded(f"{most_tokens} prompt tokens")
        if not config.reserve:
            return
        tenant, tokens = request.tenant, len(request.prompt_ids)
        num_open = len(self._open_of.get(tenant, ()))
        for used, whole, held, wanted, what in (
            (len(self._open), most, num_open, 1, "requests"),
            (self._tokens, most_tokens, self._tokens_of[tenant], tokens, "prompt tokens"),
        ):
            stock = Stock(whole, config.reserved(whole), whole - used)
            if held and not stock.allows(held, wanted):
                raise _queue_full(
                    f"{held} {what} of this tenant are open; the rest of the server's queue is "
                    "kept for other tenants",
                    self.forecast.room_wait(tenant),
                )

    def _overloaded(self, what: str) -> Overloaded:
        wait = self.forecast.room_wait(None)
        error = Overloaded(f"the server's queue is full ({what}); try again in {wait:.0f} s")
        error.retry_after = wait
        return error

    def _waiting_of(self, tenant: str) -> Iterator[GenerationRequest]:
        """The tenant's requests that have no rows, as of the last step, the oldest first."""
        open_of = self._open_of.get(tenant, {}).values()
        return itertools.islice(open_of, self._num_begun(tenant), None)

    def _num_begun(self, tenant: str) -> int:
        """Its requests that have rows, as of the last step."""
        return sum(entry.request.tenant == tenant for entry in self.figures.active)

    def _check_queue_of(self, request: GenerationRequest, cap: int) -> None:
        """The tenant's own bound; while nobody waits, as many more may enter as rows are free."""
        tenant, figures = request.tenant, self.figures
        waiting = len(self._open_of.get(tenant, ())) - self._num_begun(tenant)
        free = 0 if figures.num_waiting else self._config.max_rows - figures.num_rows
        if waiting >= cap + free:
            raise _queue_full(
                f"{cap} requests of this tenant may wait, and {waiting} do",
                self.forecast.queue_wait(
                    tenant, self._waiting_of(tenant), waiting - cap - free + 1
                ),
            )

    def _check_rows(self, request: GenerationRequest) -> None:
        limit, beam = self._config.max_rows, request.sampling.beam
        if request.row_cap is not None:
            limit = min(limit, request.row_cap)
        if not 1 <= request.n <= limit:
            raise InvalidRequest(f"n must be from 1 to {limit}, not {request.n}", param="n")
        if beam is None:
            return
        # they are computed together, and no tenant has more rows than that
        limit = min(limit, self._config.max_tenant_rows)
        if not 1 <= beam.num_beams <= limit:
            raise InvalidRequest(
                f"num_beams must be from 1 to {limit}, not {beam.num_beams}", param="num_beams"
            )
        if request.n > beam.num_beams:
            raise InvalidRequest(
                f"{beam.num_beams} beams have at most as many results, not {request.n}", param="n"
            )
        if request.sampling.max_tokens < 1:
            raise InvalidRequest("beams need at least one token to search", param="max_tokens")

    def _check_source(self, request: GenerationRequest, limit: int) -> None:
        if len(request.prompt_ids) > limit:
            raise ContextLengthExceeded(
                f"this model's encoder reads at most {limit} tokens; the prompt has "
                f"{len(request.prompt_ids)}",
                param="prompt",
            )
        needed = request.position_offset + 1 + request.sampling.max_tokens
        if needed > self._spec.context_limit:
            raise ContextLengthExceeded(
                f"this model's decoder has {self._spec.context_limit} positions; the request "
                f"needs {needed} ({request.position_offset} of the prefix, the start token, "
                f"{request.sampling.max_tokens} new tokens)",
                param="max_tokens",
            )

    def _check_context(self, request: GenerationRequest) -> None:
        if self._spec.source_limit is not None:
            self._check_source(request, self._spec.source_limit)
            return
        offset, prompt = request.position_offset, len(request.prompt_ids)
        new, limit = request.sampling.max_tokens, self._spec.context_limit
        if offset + prompt + new > limit:
            raise ContextLengthExceeded(
                f"this model's context is {limit} positions; the request needs "
                f"{offset + prompt + new} ({offset} of the prefix, {prompt} of the prompt, "
                f"{new} new tokens)",
                param="max_tokens" if offset + prompt < limit else "prompt",
            )


def _queue_full(message: str, wait: float) -> TenantQueueFull:
    return TenantQueueFull(f"{message}; try again in {wait:.0f} s", retry_after=wait)
