"""A request between submission and its terminal event: what it holds, costs and answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from app.engine.decoding.beam_sequences import BeamSequences
from app.engine.kv_cache.entries import KVEntry, SharedPrefix, Source
from app.engine.request import (
    Event,
    GenerationRequest,
    PromptScored,
    RequestFinished,
    TokenScore,
    Work,
)
from app.engine.sequence import OutputText, TokenSequence
from app.engine.step import Sampled
from app.model.generation_defaults import ReplyFrame
from app.model.text import Text


@dataclass(frozen=True, slots=True)
class KVNeeds:
    """Columns that a request sets aside in one memory, in whole slots.

    Each row that enters by itself takes `row`; the request keeps `kept` besides, for its prompt,
    its beams or its encoded source. Requests with the same long prefixes take `shared` together.
    `slot` is how many columns a row or source uses at most.
    """

    row: int
    kept: int
    shared: int
    slot: int


@dataclass(frozen=True, slots=True)
class KVReservation:
    """What one request holds of a memory besides its rows: columns and shared prefixes."""

    columns: int = 0
    segments: tuple[SharedPrefix, ...] = ()


@dataclass(eq=False)
class RequestState:
    """Times are those of `time.monotonic`.

    A request begins with as many of its rows as there is room for, and the others enter one by
    one; the beams of a search enter together: `rows_at_once`. `num_rows` have entered and not
    ended, `num_unstarted` have not entered. `rows` hold slots, whether they decode or others attend
    to them; `beams` are those that search; `prompt` keeps the prompt's columns for rows that enter
    late.

    `columns` is what it needs of each memory, `reservations` what it holds of them. What all
    tenants share is counted as (rows, columns of each memory): `needs` is what the next of its rows
    take, `row_needs` what each takes after the first ones, `held` what the request takes now.
    `share` and `held_share` are the same as parts of the engine, in parts per million. `charged`
    and `served` are what its tenant was charged for it and what it got, as costs; `overtaken` is
    the cost of what others began while there was no room for it.
    """

    request: GenerationRequest
    seed: int
    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    rows: list[TokenSequence] = field(default_factory=list)
    beams: BeamSequences | None = None
    source: Source | None = None
    scores: list[TokenScore] = field(default_factory=list)
    prompt: TokenSequence | None = None
    num_rows: int = 0
    num_unstarted: int = field(init=False)
    num_made: int = 0
    columns: tuple[KVNeeds, ...] = ()
    reservations: tuple[KVReservation, ...] = ()
    share: int = 0
    held_share: int = 0
    needs: tuple[int, ...] = ()
    row_needs: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    charged: float = 0.0
    served: float = 0.0
    overtaken: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    rows_at_once: int = field(init=False)
    deadline: float = field(init=False)
    prompt_work: int = field(init=False)
    """Tokens of the prompt; those that are scored count twice, for their logits."""

    def __post_init__(self) -> None:
        request = self.request
        self.num_unstarted = request.num_rows
        self.rows_at_once = 1 if request.sampling.beam is None else request.num_rows
        self.deadline = math.inf if request.deadline is None else request.deadline
        self.prompt_work = len(request.prompt_ids) * (2 if request.scores_prompt else 1)

    @property
    def has_begun(self) -> bool:
        return self.num_unstarted < self.request.num_rows

    @property
    def occupants(self) -> list[KVEntry]:
        """Everything in memory that the request depends on."""
        held: list[KVEntry] = [*self.rows]
        if self.prompt is not None:
            held.append(self.prompt)
        for reservation in self.reservations:
            held.extend(reservation.segments)
        return held if self.source is None else [*held, self.source]

    @property
    def work(self) -> Work:
        return Work(self.prompt_tokens, self.new_tokens)

    def note_first_token(self, now: float) -> list[Event]:
        """Its first logits were finite, and the scores that it asked for are complete."""
        self.first_token_at = now
        if self.source is not None:
            self.source.proven = True
        return [PromptScored(tuple(self.scores))] if self.scores else []

    def take_scores(self, row: TokenSequence, scored: Iterable[Sampled]) -> None:
        """Add log-probabilities of its prompt's next tokens."""
        score = row.output.score
        if not self.scores:
            self.scores.append(score(row.token_ids[0], None))
        self.scores.extend(score(item.token_id, item.logprob, item.top) for item in scored)

    def take_token(self, sampled: Sampled, now: float) -> list[Event]:
        """Add a row's new token; what is to be told of it."""
        row = sampled.row
        delta = row.output.push(sampled.token_id, sampled.logprob, sampled.top)
        row.token_ids.append(sampled.token_id)
        self.new_tokens += 1 if self.request.sampling.max_tokens else 0
        events = self.note_first_token(now) if self.first_token_at is None else []
        if delta is not None:
            events.append(delta)
        if row.output.finish_reason is not None:
            events.append(row.output.finished())
        return events

    def taint(self) -> None:
        """The request has failed: what it depends on may hold NaN, wherever it moves from now."""
        for occupant in self.occupants:
            occupant.tainted = True

    def make_row(self, text: Text, frame: ReplyFrame) -> TokenSequence:
        """Make the next row; the first one computes the prompt for all.

        With an encoder the decoder's prompt is the start token.
        """
        request, index = self.request, self.num_made
        told = request.prompt_ids if frame.start is None else ()
        prompt = list(told) if frame.start is None else [frame.start]
        row = TokenSequence(
            request,
            index,
            prompt,
            self.columns[0].slot,
            self.seed,
            OutputText(
                index,
                request.sampling,
                text,
                frame.forced_last,
                prompt_ids=told,
                whole=request.whole,
            ),
            segments=self.reservations[0].segments,
            source=self.source,
            forced_first=frame.forced_first if len(prompt) == 1 else None,
            forced_last=frame.forced_last,
        )
        self.num_made += 1
        self.rows.append(row)
        if request.sampling.beam is not None:
            self.beams = BeamSequences(row, text)
        return row

    def keep_prompt(self, leader: TokenSequence) -> TokenSequence:
        """A place for the prompt that `leader` has computed, for rows that are still to enter."""
        ids = list(leader.token_ids)
        self.prompt = replace(leader, is_trunk=True, token_ids=ids, slot=None, history=None)
        return self.prompt

    def finished(self, now: float) -> RequestFinished:
        """The terminal event of a request that has all its results."""
        started = self.started_at if self.started_at is not None else now
        first = self.first_token_at
        return RequestFinished(
            queue_time=started - self.submitted_at,
            time_to_first_token=None if first is None else first - self.submitted_at,
            total_time=now - self.submitted_at,
            work=self.work,
        )
