"""What a slot of K/V memory holds: a sequence, or what sequences share because none writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

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
