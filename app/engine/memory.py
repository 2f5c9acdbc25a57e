"""K/V memory as the scheduler sees it: slots, reservations, and long prefixes that are shared.

A short prefix is copied to the front of every slot that needs it; one of `SHARED_LENGTH` columns
or more stands once, in a slot of its own, for all requests that hold it. Knows nothing about
queues or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.request import GenerationRequest
from app.engine.row import SharedPrefix
from app.engine.slots import SlotTable
from app.errors import InvalidRequest
from app.prefix.prefix import Prefix

SHARED_LENGTH = 64
"""Columns from which attending to a shared segment costs less than reading a copy per row."""


@dataclass(frozen=True)
class Holding:
    """What one request holds of a memory: reserved columns and shared prefixes."""

    columns: int = 0
    segments: tuple[SharedPrefix, ...] = ()


class Memory:
    """One K/V memory: that of rows (`role` decoder) or that of sources (cross)."""

    def __init__(self, table: SlotTable, role: str) -> None:
        self.table = table
        self._role = role
        self._shared: dict[tuple[int, ...], SharedPrefix] = {}

    def own_prefix(self, request: GenerationRequest) -> int:
        """Columns of the request's prefixes that each of its slots begins with."""
        columns = request.columns_of(self._role)
        return 0 if columns >= SHARED_LENGTH else columns

    def most(self, request: GenerationRequest, slots: Sequence[int]) -> int:
        """Columns that `request` needs at most, for slots of up to so many columns each."""
        shared = request.columns_of(self._role) - self.own_prefix(request)
        return self._reservation(slots) + (self.table.reservation(shared) if shared else 0)

    def fits(self, request: GenerationRequest, slots: Sequence[int]) -> bool:
        """Whether that can be reserved now."""
        found = self._shared.get(_key(request.prefixes))
        needed = self.most(request, slots) if found is None else self._reservation(slots)
        return self.table.can_reserve(needed)

    def hold(self, request: GenerationRequest, slots: Sequence[int]) -> Holding:
        """Reserve it, and place the shared prefix unless it stands already."""
        columns = self._reservation(slots)
        self.table.reserve(columns)
        if request.columns_of(self._role) < SHARED_LENGTH:
            return Holding(columns)
        segment = self._shared.get(_key(request.prefixes))
        if segment is None:
            segment = self._shared[_key(request.prefixes)] = SharedPrefix(
                request.prefixes, self._role
            )
            self.table.reserve(self.table.reservation(segment.num_cached))
            self.table.place_with_prefixes(segment, segment.num_cached)
        segment.num_users += 1
        return Holding(columns, (segment,))

    def let_go(self, holding: Holding) -> None:
        """Give a holding back; a shared prefix goes with its last user, a suspect one is no longer
        shared with anybody new."""
        self.table.unreserve(holding.columns)
        for segment in holding.segments:
            segment.num_users -= 1
            if segment.suspect:
                self._forget(segment)
            if segment.num_users == 0:
                self._forget(segment)
                self.table.unreserve(self.table.reservation(segment.num_cached))
                self.table.release(segment)

    def _forget(self, segment: SharedPrefix) -> None:
        """Nobody new shares it."""
        if self._shared.get(_key(segment.prefixes)) is segment:
            del self._shared[_key(segment.prefixes)]

    def _reservation(self, slots: Sequence[int]) -> int:
        return sum(map(self.table.reservation, slots))


class Memories:
    """The memory of rows and, with an encoder, that of sources; a request needs both or waits."""

    def __init__(self, table: SlotTable, sources: SlotTable | None = None) -> None:
        self.rows = Memory(table, "decoder")
        self.sources = None if sources is None else Memory(sources, "cross")

    def row_slots(self, request: GenerationRequest) -> list[int]:
        """Columns of each of a request's slots at most.

        With beams one slot holds the prompt, and each beam only what it generates.
        """
        num_prompt = len(request.prompt_ids) if self.sources is None else 1
        first = self.rows.own_prefix(request) + num_prompt
        new = request.sampling.max_tokens
        if request.sampling.beam is None:
            return [first + new] * request.n
        return [first, *[new] * request.num_rows]

    def fits(self, request: GenerationRequest) -> bool:
        """Whether all that the request may come to use is free now."""
        return all(memory.fits(request, slots) for memory, slots in self._needs(request))

    def fraction(self, request: GenerationRequest) -> float:
        """The part that the request needs at most, of the memory of which it needs most."""
        return max(
            memory.most(request, slots) / memory.table.max_columns
            for memory, slots in self._needs(request)
        )

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest for what would not even fit alone."""
        for memory, slots in self._needs(request):
            limit = memory.table.max_columns
            if memory.most(request, slots) <= limit:
                continue
            what, param = f"{len(slots)} rows of up to {max(slots)} columns", "n"
            if memory is self.sources:
                what, param = f"the {slots[0]} columns of the encoded prompt", "prompt"
            raise InvalidRequest(f"{what} exceed the K/V memory of {limit} columns", param=param)

    def hold(self, request: GenerationRequest) -> tuple[Holding, ...]:
        """Reserve all of that: what is held of the rows' memory and then of the sources'."""
        return tuple(memory.hold(request, slots) for memory, slots in self._needs(request))

    def let_go(self, holdings: Sequence[Holding]) -> None:
        """Give the holdings back."""
        memories = [self.rows] if self.sources is None else [self.rows, self.sources]
        for memory, holding in zip(memories, holdings, strict=True):
            memory.let_go(holding)

    def _needs(self, request: GenerationRequest) -> list[tuple[Memory, list[int]]]:
        """Each memory with the slots that the request wants of it, in columns at most."""
        needs = [(self.rows, self.row_slots(request))]
        if self.sources is not None:
            columns = self.sources.own_prefix(request) + len(request.prompt_ids)
            needs.append((self.sources, [columns]))
        return needs


def _key(prefixes: Sequence[Prefix]) -> tuple[int, ...]:
    """Prefixes are told apart as objects: a row keeps the one that it was admitted with."""
    return tuple(map(id, prefixes))
