"""Which tokens are computed next: queues and budgets, without tensors and without a clock.

A request waits for its tenant's turn and until one of its rows fits (rows, K/V memory), with beams
until all do. Then its prompt is computed in chunks under the step's token budget, its other rows
enter as there is room for them, and each row decodes one token a step and ends by itself. Rows are
never preempted: their worst case is reserved when they enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.engine.config import EngineConfig
from app.engine.encoder.source_queue import SourceQueue
from app.engine.fairness.forecast import SchedulerFigures
from app.engine.fairness.prefill_budget import PrefillBudget
from app.engine.fairness.queue import FairQueue
from app.engine.kv_cache.entries import KVEntry
from app.engine.kv_cache.memory import Reservations
from app.engine.kv_cache.slots import SlotTable, slot_of
from app.engine.request import Event, GenerationRequest, RequestFailed
from app.engine.request_state import RequestState
from app.engine.sequence import TokenSequence
from app.engine.step import NO_ENCODING, Chunk, Sampled, StepPlan, StepResult
from app.errors import DeadlineExceeded, GenerationFault, PolyprefixError, RequestCancelled
from app.model.generation_defaults import ReplyFrame
from app.model.text import Text

_LONGEST_PROMPTS_S = 0.15
"""What prompts may add to a step, by which a newcomer may have to wait."""

_STEPS = 16
"""Recent steps whose mean duration is believed."""

Deliveries = list[tuple[str, Event]]
"""Events with the id of the request that they belong to, in order."""


class Scheduler:
    """Queues of one engine; only the engine's thread uses it."""

    def __init__(
        self,
        config: EngineConfig,
        table: SlotTable,
        text: Text,
        sources: SlotTable | None = None,
        frame: ReplyFrame | None = None,
    ) -> None:
        """`sources` is for a model with an encoder; `frame` says how its replies begin and end."""
        self._config = config
        self._table = table
        self._reservations = Reservations(config, text, frame or ReplyFrame(), table, sources)
        self._sources = None if sources is None else SourceQueue(config.max_step_tokens, sources)
        longest = _LONGEST_PROMPTS_S if config.reserve else math.inf
        self._budget = PrefillBudget(config.prefill_share, config.max_step_tokens, longest)
        self._queue = FairQueue()
        self._first_deadline = math.inf
        self._active: dict[str, RequestState] = {}
        self._prefilling: list[TokenSequence] = []
        self._step_s = 0.0

    @property
    def idle(self) -> bool:
        return not self._queue.waiting and not self._active

    def figures(self) -> SchedulerFigures:
        """What waits and runs now, the oldest request first."""
        queue, active = self._queue, tuple(self._active.values())
        num_rows = self._reservations.num_rows
        return SchedulerFigures(
            len(queue.waiting), num_rows, len(queue.queued), active, self._step_s
        )

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each of its rows is likely to get; from any thread."""
        return self._queue.expected_tokens(request)

    def debug_state(self) -> dict[str, Any]:
        """What it holds, as plain values, for tests and for finding faults."""
        return {
            "active": list(self._active),
            "prefilling": [row.request.id for row in self._prefilling],
            **self._queue.debug_state(),
            **self._reservations.debug_state(),
            **({} if self._sources is None else self._sources.debug_state()),
        }

    def check_integrity(self) -> None:
        """Raise RuntimeError, with what is wrong, unless its parts agree with each other."""
        self._reservations.check_integrity(self._active.values())
        left = [row.request.id for row in self._prefilling if row.request.id not in self._active]
        if left:
            raise RuntimeError(f"the requests {left} have ended; their prompts are still computed")

    def add(self, request: GenerationRequest, seed: int, now: float) -> None:
        """Queue a request; `seed` is its noise key."""
        entry = RequestState(request, seed, now)
        self._reservations.measure(entry)
        self._queue.add(entry, now)
        self._first_deadline = min(self._first_deadline, entry.deadline)

    def state_of(self, request_id: str) -> RequestState | None:
        """A request that waits or runs; None if there is none."""
        return self._active.get(request_id) or self._queue.waiting.get(request_id)

    def cancel(self, request_id: str, error: PolyprefixError | None = None) -> Deliveries:
        """End a request with `error` and free its rows; nothing if it has ended already."""
        entry = self.state_of(request_id)
        if entry is None:
            return []
        if request_id in self._active:
            self._end(entry)
        else:
            self._queue.remove(request_id)
        error = error or RequestCancelled("the request was cancelled")
        return [(request_id, RequestFailed(error, entry.work))]

    def expire(self, now: float) -> Deliveries:
        """End every request whose deadline has passed."""
        if now < self._first_deadline:
            return []
        error = DeadlineExceeded("the request's deadline has passed")
        ended = self.end_where(lambda entry: entry.deadline <= now, error)
        left = [*self._queue.waiting.values(), *self._active.values()]
        self._first_deadline = min((entry.deadline for entry in left), default=math.inf)
        return ended

    def end_where(self, ends: Callable[[RequestState], bool], error: PolyprefixError) -> Deliveries:
        """End with `error` every request that waits or runs and for which `ends` holds."""
        entries = [*self._queue.waiting.values(), *self._active.values()]
        found = [entry.request.id for entry in entries if ends(entry)]
        return [event for request_id in found for event in self.cancel(request_id, error)]

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing is due."""
        self._admit(now)
        decode = self._decode_chunks()
        prefill = self._prefill_chunks(len(decode)) if self._prefilling else []
        encoding = NO_ENCODING
        if self._sources is not None:
            encoding = self._sources.schedule(len(decode), self._queue, self._budget)
        operations = self._table.take_operations()
        if not (decode or prefill or operations) and encoding.is_empty:
            return None
        num_prefill = 0
        for chunk in prefill:
            num_prefill += chunk.count
            self._queue.serve_prompt(chunk.row.request, chunk.count)
        counts, chunks = self._table.counts, (*decode, *prefill)
        return StepPlan(operations, chunks, len(decode), num_prefill, counts, encoding)

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> Deliveries:
        """Take a step's result: advance rows, end those that are done, say what happened."""
        seconds = result.seconds - result.encoder_seconds
        self._budget.observe(plan.num_decode, plan.num_prefill_tokens, seconds)
        self._step_s += (result.seconds - self._step_s) / (_STEPS if self._step_s else 1)
        self._advance(plan, result)
        deliveries = self._fail(result.faults) if result.faults else []
        if self._sources is not None:
            self._begin_encoded(self._sources, result)
        for row, scored in result.scored.items():
            deliveries += self._take_scores(row, scored)
        for chunk in plan.chunks[plan.num_decode :]:
            if chunk.row.slot and not chunk.row.in_prefill:
                self._prefilling.remove(chunk.row)
                # the request's other rows get a copy of its columns
                if chunk.row.request.n > 1:
                    entry = self._active[chunk.row.request.id]
                    self._reservations.fork(entry, chunk.row, chunk.samplers[1:])
        for sampled in result.sampled:
            deliveries += self._take_token(sampled, now)
        if result.candidates:
            for request_id in dict.fromkeys(row.request.id for row in result.candidates):
                deliveries.extend(self._advance_beams(request_id, result, now))
        return deliveries

    # --- admission -------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Let rows of waiting requests enter, each tenant in its turn, while they fit."""
        reservations, queue = self._reservations, self._queue
        queue.begin(now, self._budget.speed(self._config.max_rows))
        starts = queue.starts(reservations.fits, reservations.stocks)
        while reservations.num_rows < self._config.max_rows and (entry := next(starts, None)):
            reservations.enter(entry)
            if entry.started_at is not None:
                continue
            entry.started_at = now
            self._active[entry.request.id] = entry
            if entry.source is None:
                self._prefilling.append(reservations.start_prompt(entry))
            elif self._sources is not None:
                self._sources.add(entry.source)

    def _begin_encoded(self, sources: SourceQueue, result: StepResult) -> None:
        """Keep what was made of sources, and let their requests begin with the start token."""
        sources.end([*result.encoded, *result.faults])
        for source, encoded in result.encoded.items():
            entry = self._active.get(source.request.id)
            # the request may have ended, and another one may have its id
            if entry is not None and entry.source is source:
                sources.table.place_encoded(source, encoded)
                self._prefilling.append(self._reservations.start_prompt(entry))

    # --- planning --------------------------------------------------------------------------

    def _decode_chunks(self) -> list[Chunk]:
        """One token of every row whose prompt is done, in the order of their slots."""
        rows: list[TokenSequence] = []
        for slots in self._table.rows:
            for row in slots:
                if isinstance(row, TokenSequence) and not (row.in_prefill or row.is_trunk):
                    rows.append(row)
        for row in rows:
            self._table.make_room(row, row.num_cached + row.num_pending)
        rows.sort(key=slot_of)
        chunks = []
        for row in rows:
            chunks.append(Chunk(row, row.num_pending, (row,)))
        return chunks

    def _prefill_chunks(self, num_decode: int) -> list[Chunk]:
        """Chunks of prompts until the budget is spent, in the order of their tenants' turns.

        A narrow tenant's prompt that is done now makes wide ones wait for the next step.
        """
        chunks: list[Chunk] = []
        ready: list[GenerationRequest] = []
        queue, rows = self._queue, self._prefilling
        urgent = 0
        for row in rows:
            urgent += not (row.request.scores_prompt or queue.is_held_back(row.request))
        budget = self._budget.budget(num_decode, urgent)
        # nobody waits for scores as for a first token
        scorable = min(self._config.score_chunk, self._budget.budget(num_decode, 0))
        if len(rows) > 1:
            rows = sorted(rows, key=lambda row: queue.prompt_turn(row.request))
        for row in rows:
            if budget <= 0:
                break
            scores = row.request.scores_prompt
            if (scores and scorable <= 0) or (ready and queue.gives_way(row.request, ready)):
                continue
            count = min(row.num_pending, budget, scorable if scores else budget)
            scorable -= count if scores else 0
            budget -= count
            done = count == row.num_pending
            samplers = tuple(self._active[row.request.id].rows) if done else ()
            if done and self._config.reserve:
                ready.append(row.request)
            chunks.append(Chunk(row, count, samplers, scores))
        if len(chunks) > 1:
            chunks.sort(key=lambda chunk: slot_of(chunk.row))
        return chunks

    # --- results ---------------------------------------------------------------------------

    def _advance(self, plan: StepPlan, result: StepResult) -> None:
        """Note what was computed, for rows, their requests and their tenants."""
        for at, chunk in enumerate(plan.chunks):
            row, entry = chunk.row, self._active.get(chunk.row.request.id)
            failed = row in result.faults
            row.num_computed += 0 if failed else chunk.count
            if entry is None:
                continue
            # with an encoder what a row begins with is not of the user's prompt
            if at >= plan.num_decode and row.source is None and not failed:
                entry.prompt_tokens += chunk.count
            if chunk.samplers:
                self._queue.serve(entry, len(chunk.samplers))
        for source in plan.encoding.begin:
            if entry := self._active.get(source.request.id):
                entry.prompt_tokens += source.num_tokens

    def _take_scores(self, row: TokenSequence, scored: Iterable[Sampled]) -> Deliveries:
        try:
            if entry := self._active.get(row.request.id):
                entry.take_scores(row, scored)
        except Exception as error:
            return self._fail({row: GenerationFault(f"the prompt's text failed: {error}")})
        return []

    def _take_token(self, sampled: Sampled, now: float) -> Deliveries:
        """Add a row's new token, and end the row, and with its last one the request."""
        row = sampled.row
        entry = self._active.get(row.request.id)
        if entry is None:
            return []
        try:
            events = entry.take_token(sampled, now)
        except Exception as error:
            return self._fail({row: GenerationFault(f"the row's text failed: {error}")})
        if row.output.finish_reason is not None:
            if len(entry.rows) > 1 or entry.num_unstarted:
                self._reservations.end_row(entry, row)
                self._queue.end_row(entry)
            else:
                self._end(entry)
                events.append(entry.finished(now))
        return [(entry.request.id, event) for event in events]

    def _advance_beams(self, request_id: str, result: StepResult, now: float) -> Deliveries:
        """Let a request's search go on by one token; with its last one come all results."""
        entry = self._active.get(request_id)
        if entry is None or entry.beams is None:
            return []
        entry.new_tokens += entry.request.num_rows
        events = entry.note_first_token(now) if entry.first_token_at is None else []
        try:
            goes_on = entry.beams.advance(result.candidates, self._table)
            results = [] if goes_on else entry.beams.results()
        except Exception as error:
            fault = GenerationFault(f"the beam search failed: {error}")
            return self._fail({entry.rows[0]: fault})
        if goes_on:
            entry.rows = list(dict.fromkeys([entry.rows[0], *entry.beams.rows]))
        else:
            self._end(entry)
            events.extend([*results, entry.finished(now)])
        return [(entry.request.id, event) for event in events]

    def _fail(self, faults: Mapping[KVEntry, PolyprefixError]) -> Deliveries:
        """End every request that depends on what failed, or of which a row failed."""
        rows = [item for item in faults if isinstance(item, TokenSequence)]
        by_request = {row.request.id: faults[row] for row in rows}
        failed: list[tuple[RequestState, PolyprefixError]] = []
        for entry in self._active.values():
            errors = [faults[item] for item in entry.occupants if item in faults]
            error = errors[0] if errors else by_request.get(entry.request.id)
            if error is not None:
                failed.append((entry, error))
        # all before any of them frees a slot that another one would move into
        for entry, _ in failed:
            entry.taint()
        return [
            delivery for entry, error in failed for delivery in self.cancel(entry.request.id, error)
        ]

    def _end(self, entry: RequestState) -> None:
        """Free everything that the request holds."""
        if entry.source is not None and self._sources is not None:
            self._sources.forget(entry.source)
        self._reservations.end(entry)
        if self._prefilling:
            self._prefilling = [row for row in self._prefilling if row.slot is not None]
        self._queue.end(entry)
        del self._active[entry.request.id]
