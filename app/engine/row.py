"""One row of the continuous batch: a sequence being computed, and where it lives.

Knows nothing about tensors. The scheduler and the slot table alone change it.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.request import GenerationRequest
from app.engine.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the K/V pool: the index of the length class and of the slot in it."""

    length_class: int
    index: int


@dataclass(eq=False, slots=True)
class Row:
    """Sequence `index` of a request.

    `token_ids` is prompt then generated tokens; the first `num_computed` of them have their keys
    and values in the pool. `max_columns` is the row's worst case of pool columns, `seed` the key
    of its noise.
    """

    request: GenerationRequest
    index: int
    token_ids: list[int]
    max_columns: int
    seed: int
    transcript: Transcript
    num_computed: int = 0
    slot: Slot | None = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_cached(self) -> int:
        """Columns in use: the prefixes and the computed tokens."""
        return self.request.prefix_length + self.num_computed

    @property
    def in_prefill(self) -> bool:
        """Whether prompt tokens are still to be computed."""
        return self.num_computed < self.num_prompt

    @property
    def must_not_end(self) -> bool:
        """Whether the end-of-text token is barred from the next sample."""
        return self.num_generated < self.request.sampling.min_tokens
