"""Which tokens are computed next: queues, budgets and verbs; no tensor, no clock of its own.

A request waits until all its rows fit (rows, K/V memory); then its prompt is computed in chunks
under the step's token budget, its rows decode one token a step, and each ends by itself. Rows are
never preempted: their worst case is reserved when they are admitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.engine.config import EngineConfig
from app.engine.pacing import PrefillPace
from app.engine.plan import Chunk, Outcome, Sampled, StepPlan
from app.engine.request import (
    Event,
    GenerationRequest,
    PromptScored,
    RequestFailed,
    RequestFinished,
    RowFinished,
    TokenScore,
)
from app.engine.row import Row
from app.engine.slots import SlotTable, slot_of
from app.engine.transcript import Transcript
from app.errors import DeadlineExceeded, GenerationFault, PolyprefixError
from app.model.text import Text

Deliveries = list[tuple[str, Event]]
"""Events with the id of the request that they belong to, in order."""


@dataclass(eq=False)
class ActiveRequest:
    """A request between submission and its terminal event. Times are those of `time.monotonic`."""

    request: GenerationRequest
    seed: int
    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    rows: list[Row] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    reserved_columns: int = 0


class Scheduler:
    """Queues of one engine; used by its thread alone."""

    def __init__(self, config: EngineConfig, table: SlotTable, text: Text) -> None:
        self._config = config
        self._table = table
        self._text = text
        self._pace = PrefillPace(config.prefill_share, config.max_step_tokens)
        self._waiting: deque[ActiveRequest] = deque()
        self._active: dict[str, ActiveRequest] = {}
        self._prefilling: list[Row] = []
        self.num_rows = 0

    @property
    def num_waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._active

    @property
    def request_ids(self) -> list[str]:
        """Ids of all requests that have not ended."""
        return [entry.request.id for entry in self._waiting] + list(self._active)

    def add(self, request: GenerationRequest, seed: int, now: float) -> None:
        """Queue a request; `seed` is its noise key."""
        self._waiting.append(ActiveRequest(request, seed, now))

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free its rows; False if there is none (it may have ended)."""
        if request_id in self._active:
            self._end(self._active[request_id])
            return True
        for entry in self._waiting:
            if entry.request.id == request_id:
                self._waiting.remove(entry)
                return True
        return False

    def expire(self, now: float) -> Deliveries:
        """End every request whose deadline has passed."""
        late = [
            entry
            for entry in [*self._waiting, *self._active.values()]
            if entry.request.deadline is not None and entry.request.deadline <= now
        ]
        for entry in late:
            self.cancel(entry.request.id)
        error = DeadlineExceeded("the request's deadline has passed")
        return [(entry.request.id, RequestFailed(error)) for entry in late]

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing is due."""
        self._admit(now)
        decode = self._decode_chunks()
        prefill = self._prefill_chunks(self._pace.budget(len(decode), len(self._prefilling)))
        operations = self._table.take_operations()
        if not decode and not prefill and not operations:
            return None
        num_rows = tuple(len(rows) for rows in self._table.rows)
        return StepPlan(operations, tuple(decode + prefill), len(decode), num_rows)

    def commit(self, plan: StepPlan, outcome: Outcome, now: float) -> Deliveries:
        """Take a step's results: advance rows, end those that are done, say what happened."""
        self._pace.observe(plan.num_decode, plan.num_prefill_tokens, outcome.seconds)
        deliveries: Deliveries = []
        for chunk in plan.chunks:
            if chunk.row not in outcome.faults:
                chunk.row.num_computed += chunk.count
        for row, error in outcome.faults.items():
            deliveries.extend(self._fail(row, error))
        for row, scored in outcome.scored.items():
            deliveries.extend(self._collect_scores(row, scored))
        self._fork_rows(plan)
        for sampled in outcome.sampled:
            deliveries.extend(self._take_token(sampled, now))
        self._prefilling = [row for row in self._prefilling if row.in_prefill and row.slot]
        return deliveries

    # --- admission -------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Start waiting requests, first come first served, while all their rows fit."""
        while self._waiting:
            request = self._waiting[0].request
            columns = self.columns_of(request)
            reserved = self._table.reservation(columns) * request.n
            if self.num_rows + request.n > self._config.max_rows:
                return
            if not self._table.can_reserve(reserved):
                return
            self._start(self._waiting.popleft(), columns, reserved, now)

    @staticmethod
    def columns_of(request: GenerationRequest) -> int:
        """The worst case of K/V columns of one row."""
        return request.prefix_length + len(request.prompt_ids) + request.sampling.max_tokens

    def _start(self, entry: ActiveRequest, columns: int, reserved: int, now: float) -> None:
        request = entry.request
        entry.started_at = now
        entry.reserved_columns = reserved
        entry.rows = [
            Row(
                request,
                index,
                list(request.prompt_ids),
                columns,
                entry.seed,
                Transcript(index, request.sampling, self._text),
            )
            for index in range(request.n)
        ]
        self._table.reserve(reserved)
        self._active[request.id] = entry
        self.num_rows += request.n
        leader = entry.rows[0]
        self._table.place_with_prefixes(leader, self._first_room(leader))
        self._prefilling.append(leader)

    @staticmethod
    def _first_room(row: Row) -> int:
        """Columns for a new row: its prompt and some tokens, so that it does not move at once."""
        needed = row.request.prefix_length + row.num_prompt
        return min(row.max_columns, needed + needed // 4 + 16)

    # --- planning --------------------------------------------------------------------------

    def _decode_chunks(self) -> list[Chunk]:
        """One token of every row whose prompt is done, in the order of their slots."""
        rows = [row for row in self._placed_rows() if not row.in_prefill]
        for row in rows:
            self._table.make_room(row, row.num_cached + row.num_pending)
        rows.sort(key=_slot_order)
        return [Chunk(row, row.num_pending, (row,)) for row in rows]

    def _prefill_chunks(self, budget: int) -> list[Chunk]:
        """Chunks of prompts, oldest request first, until the budget is spent."""
        chunks: list[Chunk] = []
        scorable = self._config.score_chunk
        for row in self._prefilling:
            if budget <= 0:
                break
            scores = row.request.echo and row.request.sampling.logprobs is not None
            if scores and scorable <= 0:
                continue
            count = min(row.num_pending, budget)
            if scores:
                count = min(count, scorable)
                scorable -= count
            budget -= count
            done = count == row.num_pending
            samplers = tuple(self._active[row.request.id].rows) if done else ()
            chunks.append(Chunk(row, count, samplers, scores))
        chunks.sort(key=lambda chunk: _slot_order(chunk.row))
        return chunks

    def _placed_rows(self) -> Iterable[Row]:
        return [row for rows in self._table.rows for row in rows]

    # --- results ---------------------------------------------------------------------------

    def _fork_rows(self, plan: StepPlan) -> None:
        """After a prompt is done, give the request's other rows a copy of its columns."""
        for chunk in plan.chunks[plan.num_decode :]:
            leader = chunk.row
            if leader.slot is None or leader.in_prefill:
                continue
            for row in chunk.samplers[1:]:
                row.num_computed = leader.num_computed
                self._table.fork(leader, row, leader.num_cached, self._first_room(row))

    def _collect_scores(self, row: Row, scored: Iterable[Sampled]) -> Deliveries:
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
        if entry.first_token_at is None:
            entry.first_token_at = now
            if entry.scores:
                events.append(PromptScored(tuple(entry.scores)))
        if delta is not None:
            events.append(delta)
        if row.transcript.finish_reason is not None:
            events.extend(self._finish(entry, row, now))
        return [(row.request.id, event) for event in events]

    def _finish(self, entry: ActiveRequest, row: Row, now: float) -> list[Event]:
        """End one row, and the request with its last one."""
        transcript = row.transcript
        if transcript.finish_reason is None:
            return []
        scored = row.request.sampling.logprobs is not None
        finished = RowFinished(
            row.index,
            transcript.finish_reason,
            transcript.num_tokens,
            transcript.cumulative_logprob if scored else None,
            transcript.stop_string,
        )
        self._table.release(row)
        self.num_rows -= 1
        entry.rows.remove(row)
        if entry.rows:
            return [finished]
        self._end(entry)
        return [finished, _request_finished(entry, now)]

    def _fail(self, row: Row, error: PolyprefixError) -> Deliveries:
        """End the whole request of a row that failed; nobody else is concerned."""
        entry = self._active.get(row.request.id)
        if entry is None:
            return []
        self._end(entry, faulted=True)
        return [(entry.request.id, RequestFailed(error))]

    def _end(self, entry: ActiveRequest, *, faulted: bool = False) -> None:
        """Free everything that the request holds."""
        for row in entry.rows:
            self._table.release(row, faulted=faulted)
        self.num_rows -= len(entry.rows)
        entry.rows = []
        self._prefilling = [row for row in self._prefilling if row.slot is not None]
        self._table.unreserve(entry.reserved_columns)
        del self._active[entry.request.id]


def _slot_order(row: Row) -> tuple[int, int]:
    slot = slot_of(row)
    return slot.length_class, slot.index


def _request_finished(entry: ActiveRequest, now: float) -> RequestFinished:
    started = entry.started_at if entry.started_at is not None else now
    first = entry.first_token_at
    return RequestFinished(
        queue_time=started - entry.submitted_at,
        time_to_first_token=None if first is None else first - entry.submitted_at,
        total_time=now - entry.submitted_at,
    )
