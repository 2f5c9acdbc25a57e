"""Which tokens are computed next: queues, budgets and verbs; no tensor, no clock of its own.

A request waits for its tenant's turn and until one of its rows fits (rows, K/V memory), with beams
until all do. Then its prompt is computed in chunks under the step's token budget, its other rows
enter as there is room for them, each decodes one token a step and ends by itself. Rows are never
preempted: their worst case is reserved when they enter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from app.engine.config import EngineConfig
from app.engine.encoder.source_queue import SourceQueue
from app.engine.fairness.prefill_budget import PrefillBudget
from app.engine.fairness.queue import FairQueue
from app.engine.kv_cache.reservation import Reservations
from app.engine.kv_cache.slots import SlotTable, slot_order
from app.engine.request import Event, GenerationRequest, RequestFailed
from app.engine.request_state import ActiveRequest, ReplyFrame, row_finished
from app.engine.sequence import KVEntry, Source, TokenSequence
from app.engine.step import Chunk, Sampled, StepPlan, StepResult
from app.errors import DeadlineExceeded, GenerationFault, PolyprefixError
from app.model.text import Text

_LONGEST_PROMPTS_S = 0.15
"""What prompts may add to a step, by which whoever comes may have to wait."""

Deliveries = list[tuple[str, Event]]
"""Events with the id of the request that they belong to, in order."""


class Scheduler:
    """Queues of one engine; used by its thread alone."""

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
        self._source_table = sources
        self._places = Reservations(config, table, text, sources, frame or ReplyFrame())
        self._sources = SourceQueue(config.max_step_tokens)
        longest = _LONGEST_PROMPTS_S if config.reserve else math.inf
        self._pace = PrefillBudget(config.prefill_share, config.max_step_tokens, longest)
        self._queue = FairQueue()
        self._first_deadline = math.inf
        self._active: dict[str, ActiveRequest] = {}
        self._prefilling: list[TokenSequence] = []

    @property
    def num_rows(self) -> int:
        """Rows that have been admitted and have not ended."""
        return self._places.num_rows

    @property
    def num_waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._queue.waiting)

    @property
    def num_waiting_tenants(self) -> int:
        """Tenants with rows that have not been admitted yet."""
        return self._queue.num_waiting_tenants

    @property
    def active(self) -> Sequence[ActiveRequest]:
        """Requests that have been admitted, the oldest first."""
        return tuple(self._active.values())

    def expected_tokens(self, request: GenerationRequest) -> float:
        """New tokens that each of its rows is likely to get; from any thread."""
        return self._queue.expected_tokens(request)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._queue.waiting and not self._active

    @property
    def request_ids(self) -> list[str]:
        """Ids of all requests that have not ended."""
        return [*self._queue.waiting, *self._active]

    def add(self, request: GenerationRequest, seed: int, now: float) -> None:
        """Queue a request; `seed` is its noise key."""
        entry = ActiveRequest(request, seed, now)
        self._places.measure(entry)
        self._queue.add(entry, now)
        self._first_deadline = min(self._first_deadline, entry.deadline)

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free its rows; False if there is none (it may have ended)."""
        if request_id in self._active:
            self._end(self._active[request_id])
            return True
        return self._queue.remove(request_id)

    def expire(self, now: float) -> Deliveries:
        """End every request whose deadline has passed."""
        if now < self._first_deadline:
            return []
        entries = [*self._queue.waiting.values(), *self._active.values()]
        late = [entry.request.id for entry in entries if entry.deadline <= now]
        for request_id in late:
            self.cancel(request_id)
        others = (entry.deadline for entry in entries if entry.deadline > now)
        self._first_deadline = min(others, default=math.inf)
        error = DeadlineExceeded("the request's deadline has passed")
        return [(request_id, RequestFailed(error)) for request_id in late]

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing is due."""
        self._admit(now)
        decode = self._decode_chunks()
        prefill = self._prefill_chunks(len(decode))
        queue = self._queue
        encode = self._sources.begin(len(decode), queue.prompt_turn, queue.gives_way)
        for chunk in prefill:
            queue.serve_prompt(chunk.row.request, chunk.count)
        for source in encode:
            queue.serve_prompt(source.request, source.num_tokens)
        num_sources = self._sources.num_waiting
        operations = self._table.take_operations()
        source_table = self._source_table
        source_operations = () if source_table is None else source_table.take_operations()
        if not (decode or prefill or operations or source_operations or num_sources):
            return None
        return StepPlan(
            operations,
            tuple(decode + prefill),
            len(decode),
            self._table.counts,
            source_operations,
            () if source_table is None else source_table.counts,
            encode,
            self._pace.encoder_seconds(len(decode), num_sources) if num_sources else None,
        )

    def commit(self, plan: StepPlan, outcome: StepResult, now: float) -> Deliveries:
        """Take a step's results: advance rows, end those that are done, say what happened."""
        seconds = outcome.seconds - outcome.encoder_seconds
        self._pace.observe(plan.num_decode, plan.num_prefill_tokens, seconds)
        deliveries: Deliveries = []
        for chunk in plan.chunks:
            if chunk.row not in outcome.faults:
                chunk.row.num_computed += chunk.count
            if chunk.samplers and chunk.row.request.id in self._active:
                self._queue.serve(self._active[chunk.row.request.id], len(chunk.samplers))
        self._sources.end(outcome.encoded)
        # all before any of them frees a slot that another one would move into
        for entry in self._depending_on(outcome.faults):
            entry.taint()
        for occupant, error in outcome.faults.items():
            deliveries.extend(self._fail_all(occupant, error))
        for source, encoded in outcome.encoded.items():
            self._store(source, encoded)
        for row, scored in outcome.scored.items():
            deliveries.extend(self._collect_scores(row, scored))
        self._fork_rows(plan)
        for sampled in outcome.sampled:
            deliveries.extend(self._take_token(sampled, now))
        for request_id in dict.fromkeys(row.request.id for row in outcome.candidates):
            deliveries.extend(self._advance_beams(request_id, outcome, now))
        self._prefilling = [row for row in self._prefilling if row.in_prefill and row.slot]
        return deliveries

    # --- admission -------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Let rows of waiting requests enter, each tenant in its turn, while they fit."""
        self._queue.begin(now, self._pace.speed(self._config.max_rows))
        starts = self._queue.starts(self._places.fits, self._places.stocks)
        while self.num_rows < self._config.max_rows and (entry := next(starts, None)):
            is_first = entry.started_at is None
            if is_first:
                self._places.begin(entry)
            self._places.enter(entry)
            if is_first:
                self._start(entry, now)

    def _start(self, entry: ActiveRequest, now: float) -> None:
        """A request has its first row: its prompt is computed, or what an encoder reads."""
        entry.started_at = now
        self._active[entry.request.id] = entry
        self._queue.begin_prompt(entry.request)
        if entry.source is None:
            self._prefilling.append(self._places.start_prompt(entry))
        else:
            self._sources.add(entry.source)

    def _store(self, source: Source, encoded: object) -> None:
        """Keep what was made of a source, and let its request begin with the start token."""
        entry = self._active.get(source.request.id)
        if self._source_table is not None and entry is not None and entry.source is source:
            self._source_table.place_encoded(source, encoded)
            self._prefilling.append(self._places.start_prompt(entry))

    # --- planning --------------------------------------------------------------------------

    def _decode_chunks(self) -> list[Chunk]:
        """One token of every row whose prompt is done, in the order of their slots."""
        rows = [row for row in self._placed_rows() if not row.in_prefill and not row.is_trunk]
        for row in rows:
            self._table.make_room(row, row.num_cached + row.num_pending)
        rows.sort(key=slot_order)
        return [Chunk(row, row.num_pending, (row,)) for row in rows]

    def _prefill_chunks(self, num_decode: int) -> list[Chunk]:
        """Chunks of prompts until the budget is spent: the tenant that was served least comes
        first, of its prompts the oldest. A narrow tenant's prompt that is done now makes wide ones
        wait for the next step."""
        chunks: list[Chunk] = []
        ready: list[GenerationRequest] = []
        waiting = [row.request for row in self._prefilling if not row.request.scores_prompt]
        urgent = sum(not self._queue.is_held_back(request) for request in waiting)
        budget = self._pace.budget(num_decode, urgent)
        # nobody waits for scores as for a first token
        scorable = min(self._config.score_chunk, self._pace.budget(num_decode, 0))
        for row in sorted(self._prefilling, key=lambda row: self._queue.prompt_turn(row.request)):
            if budget <= 0:
                break
            scores = row.request.scores_prompt
            if (scores and scorable <= 0) or self._queue.gives_way(row.request, ready):
                continue
            count = min(row.num_pending, budget, scorable if scores else budget)
            scorable -= count if scores else 0
            budget -= count
            done = count == row.num_pending
            samplers = tuple(self._active[row.request.id].rows) if done else ()
            if done and self._config.reserve:
                ready.append(row.request)
            chunks.append(Chunk(row, count, samplers, scores))
        chunks.sort(key=lambda chunk: slot_order(chunk.row))
        return chunks

    def _placed_rows(self) -> Iterable[TokenSequence]:
        return [row for rows in self._table.rows for row in rows if isinstance(row, TokenSequence)]

    # --- results ---------------------------------------------------------------------------

    def _fork_rows(self, plan: StepPlan) -> None:
        """After a prompt is done, give the request's other rows a copy of its columns."""
        for chunk in plan.chunks[plan.num_decode :]:
            leader = chunk.row
            if leader.slot is None or leader.in_prefill:
                continue
            self._places.fork(self._active[leader.request.id], leader, chunk.samplers[1:])

    def _collect_scores(self, row: TokenSequence, scored: Iterable[Sampled]) -> Deliveries:
        entry = self._active.get(row.request.id)
        if entry is None:
            return []
        score = row.transcript.score
        try:
            if not entry.scores:
                entry.scores.append(score(row.token_ids[0], None))
            entry.scores.extend(score(item.token_id, item.logprob, item.top) for item in scored)
        except Exception as error:
            return self._fail(row, GenerationFault(f"the prompt's text failed: {error}"))
        return []

    def _take_token(self, sampled: Sampled, now: float) -> Deliveries:
        row = sampled.row
        entry = self._active.get(row.request.id)
        if entry is None:
            return []
        try:
            delta = row.transcript.push(sampled.token_id, sampled.logprob, sampled.top)
        except Exception as error:
            return self._fail(row, GenerationFault(f"the row's text failed: {error}"))
        row.token_ids.append(sampled.token_id)
        events: list[Event] = []
        events.extend(entry.note_first_token(now))
        if delta is not None:
            events.append(delta)
        if row.transcript.finish_reason is not None:
            events.extend(self._finish(entry, row, now))
        return [(row.request.id, event) for event in events]

    def _finish(self, entry: ActiveRequest, row: TokenSequence, now: float) -> list[Event]:
        """End one row, and the request with its last one."""
        finished = row_finished(row)
        if finished is None:
            return []
        self._places.end_row(entry, row)
        self._queue.end_row(entry)
        if entry.rows or entry.num_unstarted:
            return [finished]
        self._end(entry)
        return [finished, entry.finished(now)]

    def _advance_beams(self, request_id: str, outcome: StepResult, now: float) -> Deliveries:
        """Let a request's search go on by one token; with its last one come all results."""
        entry = self._active.get(request_id)
        if entry is None or entry.beams is None:
            return []
        events = entry.note_first_token(now)
        try:
            goes_on = entry.beams.advance(outcome.candidates, self._table)
            results = [] if goes_on else entry.beams.results()
        except Exception as error:
            return self._fail(entry.rows[0], GenerationFault(f"the beam search failed: {error}"))
        if goes_on:
            entry.rows = list(dict.fromkeys([entry.rows[0], *entry.beams.rows]))
        else:
            self._end(entry)
            events.extend([*results, entry.finished(now)])
        return [(request_id, event) for event in events]

    def _fail_all(self, occupant: KVEntry, error: PolyprefixError) -> Deliveries:
        """End every request that depends on what failed."""
        if isinstance(occupant, TokenSequence):
            return self._fail(occupant, error)
        if isinstance(occupant, Source):
            self._sources.end([occupant])
        concerned = self._depending_on([occupant])
        for entry in concerned:
            self._end(entry)
        return [(entry.request.id, RequestFailed(error)) for entry in concerned]

    def _fail(self, row: TokenSequence, error: PolyprefixError) -> Deliveries:
        """End the whole request of a row that failed; nobody else is concerned."""
        entry = self._active.get(row.request.id)
        if entry is None:
            return []
        entry.taint()
        self._end(entry)
        return [(entry.request.id, RequestFailed(error))]

    def _depending_on(self, occupants: Collection[KVEntry]) -> list[ActiveRequest]:
        entries = self._active.values() if occupants else ()
        return [entry for entry in entries if any(item in occupants for item in entry.occupants)]

    def _end(self, entry: ActiveRequest) -> None:
        """Free everything that the request holds."""
        if entry.source is not None:
            self._sources.forget(entry.source)
        self._places.end(entry)
        self._prefilling = [row for row in self._prefilling if row.slot is not None]
        self._queue.end(entry)
        del self._active[entry.request.id]
