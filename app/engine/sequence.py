"""A sequence of tokens that decodes: what is computed of it, and the text that it gives.

It attends to the segments that it shares with others (a long prefix; with beams its request's
prompt; an encoded source) and to its own columns. Only the scheduler and the slot tables change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from app.engine.decoding.history import TokenHistory
from app.engine.kv_cache.entries import KVEntry, Slot, Source
from app.engine.request import (
    FinishReason,
    GenerationRequest,
    RowFinished,
    SamplingParams,
    TextDelta,
    TokenScore,
    columns_of,
)
from app.model.text import Text
from app.prefix.prefix import Prefix


class OutputText:
    """The text side of one row.

    `finish_reason` is set as soon as the row has ended: by the end-of-text token, a stop string
    (then named in `stop_string`) or the token limit, which `forced_last` stands for if the model
    wants every text to end with that token. With `whole` nothing is shown before the end. What is
    shown is what the row adds to the text of `prompt_ids`.
    """

    def __init__(
        self,
        index: int,
        sampling: SamplingParams,
        text: Text,
        forced_last: int | None = None,
        *,
        prompt_ids: Sequence[int] = (),
        whole: bool = False,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self.num_tokens = 0
        self.cumulative_logprob = 0.0
        self._index = index
        self._sampling = sampling
        self._text = text
        self.detokenizer = text.detokenizer(prompt_ids)
        self._num_spelled = self._num_shown = 0
        self._held = ""
        self._whole, self._unshown = whole, ""
        self._forced_last = forced_last
        self._unsent: list[TokenScore] = []

    def push(
        self, token_id: int, logprob: float | None, top: tuple[tuple[int, float], ...]
    ) -> TextDelta | None:
        """Take a sampled token; returns what may be shown now, if anything.

        With a `max_tokens` of 0 (scoring alone) the token is dropped and the row ends.
        """
        if self._sampling.max_tokens == 0:
            self.finish_reason = FinishReason.LENGTH
            return None
        self.num_tokens += 1
        self.cumulative_logprob += logprob or 0.0
        ended = token_id in self._text.eos_token_ids and not self._sampling.ignore_eos
        piece = "" if ended else self.detokenizer.push(token_id)
        if self._sampling.logprobs is None:
            self._unsent.append(TokenScore(token_id, "", None))
        else:
            start = self.detokenizer.start
            start = max(self._num_spelled, start) if ended else start
            self._unsent.append(self.score(token_id, logprob, top, start))
        self._num_spelled += len(piece)
        shown = self._show(piece) if self._sampling.stop else piece
        full = self.num_tokens >= self._sampling.max_tokens
        was_cut = full and token_id == self._forced_last
        if self.stop_string is not None or (ended and not was_cut):
            self.finish_reason = FinishReason.STOP
        elif full:
            self.finish_reason = FinishReason.LENGTH
        if self.finish_reason is not None and self.stop_string is None:
            rest = self.detokenizer.flush()
            shown += self._close(rest) if self._sampling.stop else rest
            if self.stop_string is not None:
                self.finish_reason = FinishReason.STOP
        self._num_shown += len(shown)
        if self.stop_string is not None:
            self._unsent = [self._within_text(score) for score in self._unsent]
        return self._delta(shown)

    def finished(self, score: float | None = None) -> RowFinished:
        """How the row has ended; `score` is what a beam's result was ranked by."""
        return RowFinished(
            self._index,
            self.finish_reason or FinishReason.LENGTH,
            self.num_tokens,
            None if self._sampling.logprobs is None else self.cumulative_logprob,
            self.stop_string,
            score,
        )

    def score(
        self,
        token_id: int,
        logprob: float | None,
        top: tuple[tuple[int, float], ...] = (),
        start: int = 0,
    ) -> TokenScore:
        """A scored token as events carry it."""
        alternatives = tuple((other, self._text.token_text(other), value) for other, value in top)
        return TokenScore(token_id, self._text.token_text(token_id), logprob, alternatives, start)

    def _within_text(self, score: TokenScore) -> TokenScore:
        """The score of a token whose text a stop string may have cut off."""
        return replace(score, start=min(score.start, self._num_shown))

    def _close(self, rest: str) -> str:
        """The text that was held back when the row ended, and `rest` behind it."""
        shown = self._show(rest)
        return shown if self.stop_string is not None else shown + self._held

    def _delta(self, shown: str) -> TextDelta | None:
        if self._whole:
            shown = self._unshown + shown
            if self.finish_reason is None:
                self._unshown = shown
                return None
        if not shown and self._sampling.logprobs is None and self.finish_reason is None:
            return None
        delta = TextDelta(self._index, shown, tuple(self._unsent))
        self._unsent.clear()
        return delta

    def _show(self, new: str) -> str:
        """What of the held text and `new` cannot be part of a stop string."""
        stops = self._sampling.stop
        pending = self._held + new
        if self.num_tokens >= self._sampling.min_tokens:
            ends = [(_end_of(stop, pending, len(self._held)), -len(stop), stop) for stop in stops]
            end, _, stop = min(ends)
            if end < math.inf:
                self.stop_string = stop
                self._held = ""
                return pending[: int(end) - len(stop)]
        held = max(_overlap(pending, stop) for stop in stops)
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held]


@dataclass(eq=False, slots=True)
class TokenSequence:
    """Sequence `index` of a request; HTTP clients and the settings call a sequence a row.

    `token_ids` is the prompt, then the generated tokens. The first `num_computed` of them have
    their keys and values in the pool; the first `num_elsewhere` of those are in `segments`. A
    sequence that has `joined` began with a copy of its prompt's columns; it computes the last of
    them again, for its logits, in a step like one that decodes. `max_columns` is its worst case of
    pool columns, `seed` the key of its noise. `forced_first` and `forced_last` are what the model's
    generation config wants as the first token, and as the last one of a sequence that reaches its
    limit.
    """

    role: ClassVar[str] = "decoder"

    request: GenerationRequest
    index: int
    token_ids: list[int]
    max_columns: int
    seed: int
    output: OutputText
    num_computed: int = 0
    slot: Slot | None = None
    num_elsewhere: int = 0
    segments: tuple[KVEntry, ...] = ()
    source: Source | None = None
    is_trunk: bool = False
    """Whether others attend to it or begin with a copy of it, and it decodes no further itself."""
    forced_first: int | None = None
    forced_last: int | None = None
    joined: bool = False
    tainted: bool = False
    history: TokenHistory | None = None
    """Its tokens as bans and penalties look at them, from when they first do."""
    num_prompt: int = field(init=False)
    """Tokens before the first generated one; with an encoder the decoder's start token."""
    prefixes: Sequence[Prefix] = field(init=False)
    """Prefixes at the front of its own slot."""
    num_prefix: int = field(init=False)
    """Columns that these take."""

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt_ids) if self.source is None else 1
        self.prefixes = () if self.segments else self.request.prefixes
        self.num_prefix = columns_of(self.prefixes, self.role)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_cached(self) -> int:
        """Own columns in use: prefixes that are not shared, and the computed tokens."""
        return self.num_prefix + self.num_computed - self.num_elsewhere

    @property
    def first_room(self) -> int:
        """Columns for its first slot: its prompt and some tokens, so that it does not move soon."""
        needed = self.num_cached + self.num_prompt
        return min(self.max_columns, needed + needed // 4 + 16)

    @property
    def may_hold_nan(self) -> bool:
        """Whether nothing was sampled from it yet, or what it attends to is tainted."""
        return self.tainted or self.num_generated == 0

    @property
    def attends_elsewhere(self) -> bool:
        """Whether it shares columns with others, or others attend to its own."""
        return self.is_trunk or bool(self.segments)

    @property
    def in_prefill(self) -> bool:
        """Whether prompt tokens are still to be computed."""
        return self.num_computed < self.num_prompt - self.joined

    @property
    def must_not_end(self) -> bool:
        """Whether the end-of-text token is barred from the next sample."""
        return self.num_generated < self.request.sampling.min_tokens

    @property
    def forced_token(self) -> int | None:
        """The next token, if the model does not choose it."""
        num_generated = self.num_generated
        if self.forced_last is not None and num_generated == self.request.sampling.max_tokens - 1:
            return self.forced_last
        return self.forced_first if num_generated == 0 else None

    def become(self, other: TokenSequence) -> None:
        """Take over the tokens of another sequence of the request."""
        self.token_ids = list(other.token_ids)
        self.num_computed = other.num_computed
        self.history = None if other.history is None else other.history.copy()


def _end_of(stop: str, text: str, num_seen: int) -> float:
    """Where `stop` first ends in `text` after its first `num_seen` characters; infinity if not."""
    start = text.find(stop, max(0, num_seen - len(stop) + 1))
    return math.inf if start < 0 else start + len(stop)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
