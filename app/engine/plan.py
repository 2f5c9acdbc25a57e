"""What one step does, and what came of it: plain values between scheduler and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.engine.row import Row
from app.engine.slots import PoolOperation
from app.errors import PolyprefixError


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` pending tokens of `row`, to be computed in this step.

    `samplers` are the rows that draw their next token from the last of them: the row itself, after
    a prompt also the request's other rows, none while prompt tokens remain. With `scores` the
    log-probabilities of the prompt tokens that follow the chunk's tokens are wanted.
    """

    row: Row
    count: int
    samplers: tuple[Row, ...]
    scores: bool = False


@dataclass(frozen=True)
class StepPlan:
    """Pool operations, then one forward pass over `chunks`.

    Rows that decode come first, in the order of their slots, then the chunks of prompts.
    `num_rows` counts the rows in each length class once the operations are done.
    """

    operations: tuple[PoolOperation, ...]
    chunks: tuple[Chunk, ...]
    num_decode: int
    num_rows: tuple[int, ...]

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens in this step."""
        return sum(chunk.count for chunk in self.chunks[self.num_decode :])


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token drawn for `row`; `logprob` and `top` (id, logprob) only if the request asks."""

    row: Row
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a step produced. A row stands in `faults` or in `sampled`, never in both.

    `scored` maps rows to (logprob, top) of the prompt tokens that follow their chunk's tokens.
    """

    sampled: Sequence[Sampled] = ()
    scored: Mapping[Row, Sequence[Sampled]] = field(default_factory=dict)
    faults: Mapping[Row, PolyprefixError] = field(default_factory=dict)
    seconds: float = 0.0
