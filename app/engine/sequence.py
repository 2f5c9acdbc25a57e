"""What lives in K/V memory: rows, and what rows share because none of them writes it.

A row attends to the segments that it shares with others (a long prefix; with beams its request's
prompt; an encoded source) and to its own columns. Knows nothing about tensors. The scheduler and
the slot tables alone change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.engine.decoding.history import TokenHistory
from app.engine.output_text import OutputText
from app.engine.request import GenerationRequest
from app.prefix.prefix import Prefix


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a K/V pool: the index of the length class and of the slot in it."""

    length_class: int
    index: int


class KVEntry(Protocol):
    """What a slot holds. `role` says to which kind of attention its columns belong."""

    slot: Slot | None
    tainted: bool
    """Whether a request that depends on it has failed."""

    @property
    def role(self) -> str:
        """One of `app.prefix.spec.MODULES`."""

    @property
    def prefixes(self) -> Sequence[Prefix]:
        """Prefixes whose columns stand at the front of the slot."""

    @property
    def num_cached(self) -> int:
        """Columns in use."""

    @property
    def may_hold_nan(self) -> bool:
        """Whether the columns may hold NaN: suspect, or no finite logits came of them yet."""

    @property
    def attends_elsewhere(self) -> bool:
        """Whether those who attend to it attend to other columns of the same memory as well."""


@dataclass(eq=False, slots=True)
class SharedPrefix:
    """Prefixes in a slot of their own; `num_users` requests hold it."""

    prefixes: tuple[Prefix, ...]
    role: str
    slot: Slot | None = None
    num_users: int = 0
    tainted: bool = False

    @property
    def num_cached(self) -> int:
        """Columns in use."""
        return columns_of(self.prefixes, self.role)

    @property
    def may_hold_nan(self) -> bool:
        """A prefix is checked before it gets here."""
        return self.tainted

    @property
    def attends_elsewhere(self) -> bool:
        """Never is there a prefix alone."""
        return True


@dataclass(eq=False, slots=True)
class Source:
    """What an encoder reads: the prompt of a request, encoded once for all its rows.

    Its columns are the cross prefix, unless that is shared, and then one for every token.
    """

    request: GenerationRequest
    segments: tuple[SharedPrefix, ...] = ()
    slot: Slot | None = None
    proven: bool = False
    tainted: bool = False

    @property
    def role(self) -> str:
        """Decoders attend to it across."""
        return "cross"

    @property
    def prefixes(self) -> Sequence[Prefix]:
        """Prefixes at the front of its own slot."""
        return () if self.segments else self.request.prefixes

    @property
    def num_tokens(self) -> int:
        """Tokens to be encoded."""
        return len(self.request.prompt_ids)

    @property
    def num_cached(self) -> int:
        """Columns in use once it is encoded."""
        return columns_of(self.prefixes, self.role) + self.num_tokens

    @property
    def may_hold_nan(self) -> bool:
        """Whether no row has sampled from it yet."""
        return self.tainted or not self.proven

    @property
    def attends_elsewhere(self) -> bool:
        """Whether its cross prefix stands elsewhere."""
        return bool(self.segments)


@dataclass(eq=False, slots=True)
class TokenSequence:
    """Sequence `index` of a request.

    `token_ids` is prompt then generated tokens; the first `num_computed` of them have their keys
    and values in the pool, the first `num_elsewhere` of those in `segments`. A row that has
    `joined` began with a copy of its prompt's columns and computes the last of them again, for its
    logits, in a step as rows that decode. `max_columns` is the
    row's worst case of pool columns, `seed` the key of its noise. `forced_first` and
    `forced_last` are what the model's generation config wants as the first token, and as the last
    of a row that reaches its limit.
    """

    request: GenerationRequest
    index: int
    token_ids: list[int]
    max_columns: int
    seed: int
    transcript: OutputText
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

    @property
    def role(self) -> str:
        """Rows attend to themselves."""
        return "decoder"

    @property
    def prefixes(self) -> Sequence[Prefix]:
        """Prefixes at the front of its own slot."""
        return () if self.segments else self.request.prefixes

    @property
    def num_prompt(self) -> int:
        """Tokens before the first generated one; with an encoder the decoder's start token."""
        return 1 if self.source is not None else len(self.request.prompt_ids)

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
        """Own columns in use: prefixes that are not shared, and the computed tokens."""
        own = self.num_computed - self.num_elsewhere
        return own + (0 if self.segments else self.request.columns_of(self.role))

    @property
    def may_hold_nan(self) -> bool:
        """Whether nothing was sampled from it yet."""
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
        """The next token, if that is not for the model to say."""
        is_last = self.num_generated == self.request.sampling.max_tokens - 1
        if is_last and self.forced_last is not None:
            return self.forced_last
        return self.forced_first if self.num_generated == 0 else None

    def become(self, other: TokenSequence) -> None:
        """Take over the tokens of another row of the request."""
        self.token_ids = list(other.token_ids)
        self.num_computed = other.num_computed
        self.history = None if other.history is None else other.history.copy()


def columns_of(prefixes: Sequence[Prefix], role: str) -> int:
    """Columns that prefixes take in one kind of attention."""
    return sum(prefix.length_of(role) for prefix in prefixes)
