"""What K/V memory holds: token sequences, and what sequences share because none of them writes it.

A sequence attends to the segments that it shares with others (a long prefix; with beams its
request's prompt; an encoded source) and to its own columns. Only the scheduler and the slot tables
change these objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from app.engine.decoding.history import TokenHistory
from app.engine.output_text import OutputText
from app.engine.request import GenerationRequest, columns_of
from app.prefix.prefix import Prefix


@dataclass(frozen=True, slots=True, order=True)
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
        """Prefixes whose columns are at the front of the slot."""

    @property
    def num_cached(self) -> int:
        """Columns in use."""

    @property
    def may_hold_nan(self) -> bool:
        """Whether the columns may hold NaN: tainted, or no finite logits came of them yet."""

    @property
    def attends_elsewhere(self) -> bool:
        """Whether what attends to it also attends to other columns of the same memory."""


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
        """Prefixes are checked before they are loaded."""
        return self.tainted

    @property
    def attends_elsewhere(self) -> bool:
        """Always true: who attends to a shared prefix also attends to columns of its own."""
        return True


@dataclass(eq=False, slots=True)
class Source:
    """What an encoder reads: the prompt of a request, encoded once for all its rows.

    Its columns are the cross prefix, unless that is shared, and then one for every token.
    """

    role: ClassVar[str] = "cross"

    request: GenerationRequest
    segments: tuple[SharedPrefix, ...] = ()
    slot: Slot | None = None
    proven: bool = False
    tainted: bool = False

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
        """Whether its cross prefix is in another slot."""
        return bool(self.segments)


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
        """Tokens sampled so far."""
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
