"""What may enter the engine: requests that can run at all, and no more of them than may wait.

Knows nothing about the order in which they run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.engine.config import EngineConfig
from app.engine.memory import Memories
from app.engine.request import GenerationRequest
from app.engine.slots import SlotTable
from app.errors import ContextLengthExceeded, InvalidRequest, Overloaded, TenantQueueFull
from app.model.text import Text
from app.prefix.spec import BaseModelSpec

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0


@dataclass(frozen=True)
class _Noted:
    """The scheduler's figures after a step: `active` requests have rows, by tenant."""

    requests: int = 0
    rows: int = 0
    tenants: int = 0
    active: Mapping[str, int] = field(default_factory=dict)


class Admission:
    """Checks requests against the model and the limits, and counts those that are open."""

    def __init__(
        self,
        config: EngineConfig,
        spec: BaseModelSpec,
        text: Text,
        table: SlotTable,
        sources: SlotTable | None = None,
    ) -> None:
        self._config, self._spec, self._text = config, spec, text
        self._memories = Memories(table, sources)
        self._lock = threading.Lock()
        self._open: dict[str, GenerationRequest] = {}
        self._num_open_of: Counter[str] = Counter()
        self._tokens = 0
        self._noted = _Noted()

    @property
    def num_open(self) -> int:
        """Requests without a terminal event."""
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Requests that have no rows yet, as of the last step."""
        return self._noted.requests

    @property
    def num_running(self) -> int:
        """Rows being computed, as of the last step."""
        return self._noted.rows

    @property
    def num_waiting_tenants(self) -> int:
        """Tenants with such requests, as of the last step."""
        return self._noted.tenants

    def note_waiting(
        self, requests: int, rows: int, tenants: int = 0, active: Mapping[str, int] | None = None
    ) -> None:
        """The scheduler's view after a step; `active` counts requests with rows by tenant."""
        self._noted = _Noted(requests, rows, tenants, active or {})

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest or ContextLengthExceeded for what could never run."""
        if not MIN_WEIGHT <= request.weight <= MAX_WEIGHT:
            raise InvalidRequest(f"a tenant's weight is from {MIN_WEIGHT} to {MAX_WEIGHT}")
        self._check_tokens(request)
        self._check_context(request)
        self._check_rows(request)
        prefix_limit = self._config.max_prefix_length
        longest = max(request.columns_of(role) for role in self._spec.modules)
        if longest > prefix_limit:
            raise InvalidRequest(
                f"the prefixes have {longest} positions together; the limit is {prefix_limit}",
                param="model",
            )
        self._memories.check(request)

    def enter(self, request: GenerationRequest) -> None:
        """Count a request in; raises Overloaded when too many are open, TenantQueueFull when as
        many of its tenant wait as may."""
        tokens = len(request.prompt_ids)
        limit = self._config.max_waiting + self._config.max_rows
        with self._lock:
            self._check_queue_of(request)
            if len(self._open) >= limit:
                raise Overloaded(f"the server's queue is full ({limit} requests)")
            if self._open and self._tokens + tokens > self._config.max_waiting_tokens:
                raise Overloaded(
                    f"the server's queue is full ({self._config.max_waiting_tokens} prompt tokens)"
                )
            if request.id in self._open:
                raise InvalidRequest(f"a request with id {request.id!r} is open already")
            self._open[request.id] = request
            self._num_open_of[request.tenant] += 1
            self._tokens += tokens

    def leave(self, request_id: str) -> None:
        """Count a request out; unknown ids are ignored."""
        with self._lock:
            request = self._open.pop(request_id, None)
            if request is None:
                return
            self._tokens -= len(request.prompt_ids)
            self._num_open_of[request.tenant] -= 1
            if not self._num_open_of[request.tenant]:
                del self._num_open_of[request.tenant]

    def _check_queue_of(self, request: GenerationRequest) -> None:
        """The tenant's own bound; while nobody waits, as many more may enter as rows are free."""
        if request.queue_cap is None:
            return
        noted = self._noted
        waiting = self._num_open_of[request.tenant] - noted.active.get(request.tenant, 0)
        free = 0 if noted.requests else self._config.max_rows - noted.rows
        if waiting >= request.queue_cap + free:
            raise TenantQueueFull(
                f"{request.queue_cap} requests of this tenant may wait, and {waiting} do"
            )

    def _check_tokens(self, request: GenerationRequest) -> None:
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        vocabulary = self._text.vocab_size
        for name, ids in (
            ("prompt", request.prompt_ids),
            ("logit_bias", request.sampling.logit_bias),
        ):
            if min(ids, default=0) < 0 or max(ids, default=0) >= vocabulary:
                raise InvalidRequest(
                    f"{name} names a token id outside 0 to {vocabulary - 1}", param=name
                )

    def _check_rows(self, request: GenerationRequest) -> None:
        limit, beam = self._config.max_rows, request.sampling.beam
        if request.row_cap is not None:
            limit = min(limit, request.row_cap)
        if not 1 <= request.n <= limit:
            raise InvalidRequest(f"n must be from 1 to {limit}, not {request.n}", param="n")
        if beam is None:
            return
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
