"""A request between submission and its terminal event: what it holds, and how it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from app.engine.decoding.beam_sequences import BeamSequences
from app.engine.kv_cache.memory import KVReservation
from app.engine.output_text import OutputText
from app.engine.request import (
    Event,
    GenerationRequest,
    PromptScored,
    RequestFinished,
    RowFinished,
    TokenScore,
)
from app.engine.sequence import KVEntry, Source, TokenSequence
from app.model.text import Text


@dataclass(frozen=True)
class ReplyFrame:
    """How a model's replies begin and end, by its generation config.

    `start` is the decoder's first input behind an encoder; `forced_first` the first token behind a
    prompt of one, `forced_last` that of a reply that reaches its limit.
    """

    start: int | None = None
    forced_first: int | None = None
    forced_last: int | None = None


@dataclass(eq=False)
class ActiveRequest:
    """Times are those of `time.monotonic`.

    A request begins with as many of its rows as there is room for, and the others enter one by
    one; the beams of a search enter together. `num_rows` have entered and not ended,
    `num_unstarted` have not entered. `rows` hold slots, whether they decode or others attend to
    them; `beams` are those that search; `prompt` has the prompt's columns for rows that enter late.

    Rows that enter at once take the part `share` of the engine, in parts per million, and `needs`
    of what is shared (rows, columns of each memory), the first ones `first_needs`; `held` is what
    the request takes now, `held_share` likewise. `charged` and `served` are what its tenant was
    charged for it and what it got, as costs; `overtaken` is the cost of what others began while
    there was no room for it.
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
    share: int = 0
    held_share: int = 0
    needs: tuple[int, ...] = ()
    first_needs: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    charged: float = 0.0
    served: float = 0.0
    overtaken: float = 0.0
    holdings: tuple[KVReservation, ...] = ()

    def __post_init__(self) -> None:
        self.num_unstarted = self.request.num_rows

    @property
    def rows_at_once(self) -> int:
        """Rows that can only enter together."""
        return 1 if self.request.sampling.beam is None else self.request.num_rows

    @property
    def has_begun(self) -> bool:
        """Whether any of its rows has entered."""
        return self.num_unstarted < self.request.num_rows

    @property
    def wanted(self) -> tuple[int, ...]:
        """What the next of its rows need to enter."""
        return self.needs if self.has_begun else self.first_needs

    @property
    def waiting_share(self) -> int:
        """The part of the engine that its other rows would take."""
        return self.share * (self.num_unstarted // self.rows_at_once)

    @property
    def occupants(self) -> list[KVEntry]:
        """Everything in memory that the request depends on."""
        held: list[KVEntry] = [*self.rows]
        if self.prompt is not None:
            held.append(self.prompt)
        for holding in self.holdings:
            held.extend(holding.segments)
        return held if self.source is None else [*held, self.source]

    @property
    def deadline(self) -> float:
        """When it must have ended."""
        return math.inf if self.request.deadline is None else self.request.deadline

    def note_first_token(self, now: float) -> list[Event]:
        """Its first logits were finite, and what it wanted scored is complete."""
        if self.first_token_at is not None:
            return []
        self.first_token_at = now
        if self.source is not None:
            self.source.proven = True
        return [PromptScored(tuple(self.scores))] if self.scores else []

    def taint(self) -> None:
        """The request has failed: what it depends on may hold NaN, wherever it moves from now."""
        for occupant in self.occupants:
            occupant.tainted = True

    def make_row(self, columns: int, text: Text, frame: ReplyFrame) -> TokenSequence:
        """Make the next row, of at most `columns` columns; the first computes the prompt for all.

        With an encoder the prompt of its decoder is the start token.
        """
        request, index = self.request, self.num_made
        told = request.prompt_ids if frame.start is None else ()
        prompt = list(told) if frame.start is None else [frame.start]
        row = TokenSequence(
            request,
            index,
            prompt,
            columns,
            self.seed,
            OutputText(
                index,
                request.sampling,
                text,
                frame.forced_last,
                prompt_ids=told,
                whole=request.whole,
            ),
            segments=self.holdings[0].segments,
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
        )


def first_room(row: TokenSequence) -> int:
    """Columns for a new row: its prompt and some tokens, so that it does not move at once."""
    needed = row.num_cached + row.num_prompt
    return min(row.max_columns, needed + needed // 4 + 16)


def row_finished(row: TokenSequence) -> RowFinished | None:
    """How a row has ended; None if it has not."""
    transcript = row.transcript
    if transcript.finish_reason is None:
        return None
    scored = row.request.sampling.logprobs is not None
    return RowFinished(
        row.index,
        transcript.finish_reason,
        transcript.num_tokens,
        transcript.cumulative_logprob if scored else None,
        transcript.stop_string,
    )
