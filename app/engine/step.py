"""What one step does, and what came of it: plain values between scheduler and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.engine.kv_cache.entries import KVEntry, Source
from app.engine.kv_cache.slots import PoolOperation
from app.engine.sequence import TokenSequence
from app.errors import PolyprefixError


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` pending tokens of `row`, to be computed in this step.

    `samplers` are the rows that draw their next token from the last of them: the row itself, after
    a prompt also the request's other rows, none while prompt tokens remain. With `scores` the
    log-probabilities of the prompt tokens that follow the chunk's tokens are wanted.
    """

    row: TokenSequence
    count: int
    samplers: tuple[TokenSequence, ...]
    scores: bool = False


@dataclass(frozen=True)
class Encoding:
    """What a step does for an encoder: operations on the memory of sources, then part of a pass.

    `num_sources` counts the occupants of each length class once the operations are done. `begin`
    are sources whose pass begins with this step; a pass, begun now or earlier, may take `seconds`
    (None: there is none).
    """

    operations: tuple[PoolOperation, ...] = ()
    num_sources: tuple[int, ...] = ()
    begin: tuple[Source, ...] = ()
    seconds: float | None = None

    @property
    def is_empty(self) -> bool:
        return self.seconds is None and not self.operations


NO_ENCODING = Encoding()


@dataclass(frozen=True)
class StepPlan:
    """Pool operations, then some of the encoder's pass, then one forward pass over `chunks`.

    Rows that decode come first, in the order of their slots, then the chunks of prompts, which have
    `num_prefill_tokens` together. `num_rows` counts the occupants of each length class once the
    operations are done.
    """

    operations: tuple[PoolOperation, ...]
    chunks: tuple[Chunk, ...]
    num_decode: int
    num_prefill_tokens: int
    num_rows: tuple[int, ...]
    encoding: Encoding = NO_ENCODING


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token drawn for `row`; `logprob` and `top` (id, logprob) only if the request asks."""

    row: TokenSequence
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class StepResult:
    """What a step produced; the runner fills it in.

    A row is in `faults` or in what was sampled, never in both.

    `scored` maps rows to (logprob, top) of the prompt tokens that follow their chunk's tokens,
    `candidates` rows that search by beams to the best (token, processed logprob), best first.
    `encoded` holds what the encoder made of the sources whose pass is done. A fault of what rows
    share is theirs. `encoder_seconds` is the part of `seconds` that the encoder took.
    """

    sampled: list[Sampled] = field(default_factory=list)
    scored: dict[TokenSequence, Sequence[Sampled]] = field(default_factory=dict)
    candidates: dict[TokenSequence, Sequence[tuple[int, float]]] = field(default_factory=dict)
    encoded: Mapping[Source, object] = field(default_factory=dict)
    faults: dict[KVEntry, PolyprefixError] = field(default_factory=dict)
    seconds: float = 0.0
    encoder_seconds: float = 0.0
