"""What the engine is asked and what it answers: plain immutable values.

A request holds its `Prefix` objects; they are never looked up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.engine.decoding.beam_search import BeamParams
from app.errors import PolyprefixError
from app.prefix.prefix import Prefix


class FinishReason(StrEnum):
    """Why a sequence ended. `stop` covers the end-of-text token and stop strings."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `logprobs` is the number of alternatives to report with each token (0: the chosen one alone;
    None: nothing). `stop` strings end a row and are not part of its text. `eos_token_ids` end a
    row unless `min_tokens` is not reached or `ignore_eos` is set. No n-gram of
    `no_repeat_ngram_size` tokens (0: off) comes twice. With `beam` the most probable sequences are
    searched for instead of drawn: no temperature, no filters, and text only when it is final.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    no_repeat_ngram_size: int = 0
    beam: BeamParams | None = None

    @cached_property
    def changes_logits(self) -> bool:
        """Whether biases, penalties or bans change logits before a token is chosen."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.no_repeat_ngram_size
        )

    @cached_property
    def bias(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens of `logit_bias` and their biases: made once for all rows and steps."""
        count = len(self.logit_bias)
        tokens = np.fromiter(self.logit_bias.keys(), np.int64, count)
        return tokens, np.fromiter(self.logit_bias.values(), np.float32, count)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt for the engine; `n` rows, or the `n` best beams, share its prompt and prefixes.

    For a model with an encoder the prompt is what the encoder reads.
    `id` is made by the server and unique. `prefixes` are on the engine's device in the serving
    dtype, in the order of composition. `deadline` is on the clock of `time.monotonic`.
    With `whole` a row's text comes in one piece when the row has ended, which spares its reader a
    wake-up per token. With `echo` and `logprobs` the prompt's tokens are scored as well. Row `i` of
    the request draws its noise from (seed, i, position).

    The last four are the tenant's limits: `weight` is its share compared with other tenants (twice
    the weight, twice the tokens), `row_cap` limits its rows at the same time, `queue_cap` its
    waiting requests. Of the waiting requests the one with the highest `priority` is next.
    """

    id: str
    tenant: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    prefixes: tuple[Prefix, ...] = ()
    n: int = 1
    echo: bool = False
    deadline: float | None = None
    whole: bool = False
    weight: float = 1.0
    priority: int = 0
    row_cap: int | None = None
    queue_cap: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows that decode at the same time."""
        beam = self.sampling.beam
        return self.n if beam is None else beam.num_beams

    @property
    def scores_prompt(self) -> bool:
        """Whether every token of the prompt costs a row of logits, as a new one does."""
        return self.echo and self.sampling.logprobs is not None

    @property
    def position_offset(self) -> int:
        """Position of the prompt's first token."""
        offset = 0
        for prefix in self.prefixes:
            offset += prefix.metadata.position_offset
        return offset


def columns_of(prefixes: Sequence[Prefix], role: str) -> int:
    """Columns of K/V memory that prefixes take in one kind of attention."""
    columns = 0
    for prefix in prefixes:
        columns += prefix.lengths.get(role, 0)
    return columns


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token with its log-probability under the unmodified model (None: nothing before it).

    `text` is what the token adds to a text, `bytes:\\xf0` for one that is no whole character; `top`
    holds the most probable alternatives as (token id, text, logprob), best first. `start` is where
    its part of the row's text begins, in characters: at the end of that, if it has none.
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, str, float], ...] = ()
    start: int = 0


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The scores of the prompt's tokens; sent once, before any text, for `echo` with `logprobs`."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of row `index`: never a broken character, never part of a stop string.

    `tokens` are the tokens sampled since the last delta of this row (text may lag behind them);
    scores are given when the request asked for `logprobs`, else `logprob` is None.
    """

    index: int
    text: str
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class RowFinished:
    """Row `index` has ended, with its totals. `cumulative_logprob` needs `logprobs`.

    `score` is what a beam's result was ranked by; None without beams.
    """

    index: int
    reason: FinishReason
    num_tokens: int
    cumulative_logprob: float | None
    stop_string: str | None = None
    """The stop string that ended the row, if one did."""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a request has cost: prompt tokens that were computed (once for all its rows), and tokens
    that were sampled in all its rows (with beams one per beam and step)."""

    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """Terminal: all rows have ended. Times in seconds since submission."""

    queue_time: float
    time_to_first_token: float | None
    total_time: float
    work: Work = Work()


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """Terminal: the request ended with an error; its rows are free."""

    error: PolyprefixError
    work: Work = Work()


End = RequestFinished | RequestFailed
"""The last event of a request."""

Event = PromptScored | TextDelta | RowFinished | RequestFinished | RequestFailed
"""A request's stream: any number of the first three, then exactly one of the last two."""
