"""The engine: one thread that schedules, runs, commits and delivers, step after step.

Other threads reach it only through `submit`, `cancel`, `drain` and `stop`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from app.engine.admission import Admission
from app.engine.attention.backends import choose_attention
from app.engine.config import EngineConfig
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import FINE_STEPS, STEPS, SlotTable, length_classes
from app.engine.request import GenerationRequest, RequestFailed, RequestFinished
from app.engine.request_state import RequestState
from app.engine.router import Cancel, EventRouter, Inbox, RequestStream, Revoke, Submit
from app.engine.runner import Runner
from app.engine.scheduler import Deliveries, Scheduler
from app.errors import Draining, EngineStopped, PolyprefixError, PrefixErased
from app.model.frozen import FrozenModel
from app.model.threads import single_thread_pool
from app.prefix.prefix import Prefix

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineProgress:
    """Whether the engine is alive and moves on. `last_step_age` is in seconds (0 while idle)."""

    alive: bool
    draining: bool
    running: int
    waiting: int
    steps: int
    last_step_age: float


@dataclass
class Counters:
    """Totals since start; only the engine's thread writes them.

    `decode_steps` are those in which no prompt and no source had a part.
    """

    steps: int = 0
    step_seconds: float = 0.0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    failed: int = 0


class Engine:
    """Continuous batching over one frozen model. Start it once; it serves until `stop`."""

    def __init__(self, model: FrozenModel, config: EngineConfig | None = None) -> None:
        self.model = model
        self.config = config or EngineConfig()
        shape = model.spec.decoder
        self.pool, self.table = self._memory("decoder", STEPS)
        self.source_pool: KVPool | None = None
        self.source_table: SlotTable | None = None
        if model.encoder_decoder is not None:
            self.source_pool, self.source_table = self._memory("cross", FINE_STEPS)
        self.counters = Counters()
        self.scheduler = Scheduler(
            self.config, self.table, model.text, self.source_table, model.generation.frame
        )
        self.attention = choose_attention(
            self.config.decode_attention,
            shape.kv_heads,
            shape.head_dim,
            model.device,
            model.dtype,
        )
        self.decode_attention = self.attention.name
        self.runner = Runner(model, self.pool, self.attention, self.source_pool)
        self.router = EventRouter()
        self.inbox = Inbox()
        self.admission = Admission(
            self.config,
            model.spec,
            model.text,
            self.table,
            self.source_table,
            self.scheduler.expected_tokens,
        )
        self._thread = threading.Thread(target=self._run, name="polyprefix-engine", daemon=True)
        self._revoked: WeakSet[Prefix] = WeakSet()
        self._draining = False
        self._step_started: float | None = None

    def _memory(self, role: str, steps: Sequence[int]) -> tuple[KVPool, SlotTable]:
        """The K/V memory of rows or of sources; with an encoder each has half of `kv_bytes`."""
        model, spec = self.model, self.model.spec
        longest = spec.context_limit if role == "decoder" else spec.prompt_limit
        capacities = length_classes(self.config.max_prefix_length + longest, steps)
        shape = spec.modules[role]
        max_bytes = self.config.kv_bytes // (1 if model.encoder_decoder is None else 2)
        column_bytes = KVPool.column_bytes(shape, model.dtype)
        pool = KVPool(shape, capacities, max_bytes, model.device, model.dtype)
        return pool, SlotTable(capacities, max_bytes // column_bytes)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K/V memory that are allocated now."""
        sources = 0 if self.source_pool is None else self.source_pool.nbytes
        return self.pool.nbytes + sources

    # --- called from any thread -------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: GenerationRequest) -> RequestStream:
        """Queue a request; call on the event loop that will read its stream.

        Raises InvalidRequest or ContextLengthExceeded for what can never run, Overloaded when the
        queue is full, Draining and EngineStopped when nothing new is taken.
        """
        if self._draining:
            raise Draining("the server is shutting down")
        if not self._thread.is_alive():
            raise EngineStopped("the engine is not running")
        self.admission.check(request)
        self.admission.enter(request)
        try:
            stream = self.router.open(request.id, self.cancel)
        except BaseException:
            self.admission.leave(request.id)
            raise
        seed = request.sampling.seed
        self.inbox.put(Submit(request, secrets.randbits(63) if seed is None else seed))
        return stream

    def cancel(self, request_id: str) -> None:
        """Free a request's rows at the next step boundary."""
        self.inbox.put(Cancel(request_id))

    def revoke(self, prefixes: Sequence[Prefix]) -> None:
        """End the requests with one of these prefixes at the next step boundary, with PrefixErased.

        So end requests that are submitted with one of them later. Prefixes are told apart by
        identity, not by content. From any thread.
        """
        self.inbox.put(Revoke(tuple(prefixes)))

    async def drain(self, timeout: float) -> bool:
        """Take nothing new and wait, `timeout` seconds at most; True if all requests ended."""
        self._draining = True
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and self.admission.num_open:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def stop(self) -> None:
        """End the loop after the current step; open requests fail with Draining."""
        self._draining = True
        self.inbox.close()
        if self._thread.is_alive():
            self._thread.join()

    def debug_state(self) -> dict[str, Any]:
        """What it holds, as plain values; exact while it rests or between steps."""
        return {"open": self.admission.num_open, **self.scheduler.debug_state()}

    def check_integrity(self) -> None:
        """Raise RuntimeError, with what is wrong, unless its parts agree with each other.

        Call it between steps, or while nothing runs.
        """
        self.scheduler.check_integrity()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the engine's thread has ended, `timeout` seconds at most."""
        self._thread.join(timeout)

    def progress(self) -> EngineProgress:
        """For health checks: from the loop's own steps, not from the web server."""
        started = self._step_started
        figures = self.admission.figures
        return EngineProgress(
            alive=self._thread.is_alive(),
            draining=self._draining,
            running=figures.num_rows,
            waiting=figures.num_waiting,
            steps=self.counters.steps,
            last_step_age=0.0 if started is None else time.monotonic() - started,
        )

    # --- the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        """Step until closed. Whatever ends the loop, every open request is answered."""
        error: PolyprefixError = Draining("the server has shut down")
        try:
            with single_thread_pool():
                while self._take_messages():
                    self.step()
        except BaseException as cause:
            _log.critical("the engine's loop has ended", exc_info=cause)
            error = EngineStopped("the engine has stopped after an internal error")
        finally:
            active = self.scheduler.figures().active
            self.router.deliver(
                [(entry.request.id, RequestFailed(error, entry.work)) for entry in active]
            )
            self.router.fail_all(error)

    def step(self) -> None:
        """One step: schedule, run, commit, deliver."""
        counters = self.counters
        now = self._step_started = time.monotonic()
        deliveries = self.scheduler.expire(now)
        plan = self.scheduler.schedule(now)
        if plan is not None:
            result = self.runner.run(plan)
            deliveries += self.scheduler.commit(plan, result, time.monotonic())
            counters.steps += 1
            counters.step_seconds += result.seconds
            if plan.num_prefill_tokens == 0 and plan.encoding.seconds is None:
                counters.decode_steps += 1
                counters.decode_seconds += result.seconds
            counters.prompt_tokens += plan.num_prefill_tokens
            counters.generated_tokens += len(result.sampled) + len(result.candidates)
        self._deliver(deliveries)
        self.admission.note_step(self.scheduler.figures())
        if self.scheduler.idle:
            self._step_started = None

    def _deliver(self, deliveries: Deliveries) -> None:
        for request_id, event in deliveries:
            if isinstance(event, RequestFinished | RequestFailed):
                self.admission.leave(request_id)
                self.counters.finished += isinstance(event, RequestFinished)
                self.counters.failed += isinstance(event, RequestFailed)
        if deliveries:
            self.router.deliver(deliveries)

    def _take_messages(self) -> bool:
        """Handle the inbox, waiting while there is nothing to do; False when it was closed."""
        messages = self.inbox.take(wait=self.scheduler.idle)
        if messages is None:
            return False
        for message in messages:
            if isinstance(message, Submit):
                request = message.request
                self.scheduler.add(request, message.seed, message.submitted_at)
                if self._revoked and not self._revoked.isdisjoint(request.prefixes):
                    self._deliver(self.scheduler.cancel(request.id, _erased()))
            elif isinstance(message, Revoke):
                self._revoked.update(message.prefixes)
                self._deliver(self.scheduler.end_where(self._is_revoked, _erased()))
            else:
                self._deliver(self.scheduler.cancel(message.request_id))
        return True

    def _is_revoked(self, entry: RequestState) -> bool:
        return not self._revoked.isdisjoint(entry.request.prefixes)


def _erased() -> PrefixErased:
    return PrefixErased("a prefix of this request was erased with all that was its user's")
