"""K/V memory as the scheduler sees it: slots, reservations, and long prefixes that are shared.

A short prefix is copied to the front of every slot that needs it; one of `SHARED_LENGTH` columns
or more stands once, in a slot of its own, for all requests that hold it. Knows nothing about
queues or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.engine.kv_cache.slots import SlotTable
from app.engine.request import GenerationRequest
from app.engine.sequence import SharedPrefix
from app.errors import InvalidRequest
from app.prefix.prefix import Prefix

SHARED_LENGTH = 64
"""Columns from which attending to a shared segment costs less than reading a copy per row."""


@dataclass(frozen=True)
class KVReservation:
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

    def hold(self, request: GenerationRequest, slots: Sequence[int]) -> KVReservation:
        """Reserve it, and place the shared prefix unless it stands already."""
        columns = self._reservation(slots)
        self.table.reserve(columns)
        if request.columns_of(self._role) < SHARED_LENGTH:
            return KVReservation(columns)
        segment = self._shared.get(_key(request.prefixes))
        if segment is None:
            segment = self._shared[_key(request.prefixes)] = SharedPrefix(
                request.prefixes, self._role
            )
            self.table.reserve(self.table.reservation(segment.num_cached))
            self.table.place_with_prefixes(segment, segment.num_cached)
        segment.num_users += 1
        return KVReservation(columns, (segment,))

    def let_go(self, holding: KVReservation) -> None:
        """Give a holding back; a shared prefix goes with its last user, a suspect one is no longer
        shared with anybody new."""
        self.table.unreserve(holding.columns)
        for segment in holding.segments:
            segment.num_users -= 1
            if segment.tainted:
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
        first = self._prompt_columns(request)
        new = request.sampling.max_tokens
        if request.sampling.beam is None:
            return [first + new] * request.n
        return [first, *[new] * request.num_rows]

    def fits(self, request: GenerationRequest) -> bool:
        """Whether what the request needs to begin is free now: with beams all, else one row."""
        begin = [*self._kept_slots(request), *self._row_slot(request)]
        return all(memory.fits(request, slots) for memory, slots in self._needs(request, begin))

    def fits_row(self, request: GenerationRequest, spare: int = 0) -> bool:
        """Whether one more row fits once `spare` columns are given back."""
        return self.rows.table.can_reserve(self.row_columns(request) - spare)

    def row_columns(self, request: GenerationRequest) -> int:
        """Columns that each row of a request without beams sets aside for itself."""
        return sum(map(self.rows.table.reservation, self._row_slot(request)))

    def columns(self, request: GenerationRequest) -> tuple[int, ...]:
        """Columns of each memory that the request sets aside when it begins."""
        begin = [*self._kept_slots(request), *self._row_slot(request)]
        return tuple(memory.most(request, slots) for memory, slots in self._needs(request, begin))

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest for what would not even fit alone."""
        for memory, slots in self._needs(request, self.row_slots(request)):
            limit = memory.table.max_columns
            if memory.most(request, slots) <= limit:
                continue
            what, param = f"{len(slots)} rows of up to {max(slots)} columns", "n"
            if memory is self.sources:
                what, param = f"the {slots[0]} columns of the encoded prompt", "prompt"
            raise InvalidRequest(f"{what} exceed the K/V memory of {limit} columns", param=param)

    def hold(self, request: GenerationRequest) -> tuple[KVReservation, ...]:
        """Reserve what it holds beside its rows: of the rows' memory and then of the sources'.

        With beams that is all; of several rows it is a place for their prompt.
        """
        needs = self._needs(request, self._kept_slots(request))
        return tuple(memory.hold(request, slots) for memory, slots in needs)

    def hold_row(self, request: GenerationRequest) -> None:
        """Reserve what one row may come to use."""
        self.rows.table.reserve(self.row_columns(request))

    def let_rows_go(self, request: GenerationRequest, count: int) -> None:
        """Give the reservations of `count` rows back."""
        self.rows.table.unreserve(count * self.row_columns(request))

    def let_prompt_go(self, holdings: Sequence[KVReservation]) -> tuple[KVReservation, ...]:
        """Every row has begun: give the prompt's place back. What is still held."""
        rows, *others = holdings
        self.rows.table.unreserve(rows.columns)
        return (replace(rows, columns=0), *others)

    def let_go(self, holdings: Sequence[KVReservation]) -> None:
        """Give the holdings back."""
        memories = [self.rows] if self.sources is None else [self.rows, self.sources]
        for memory, holding in zip(memories, holdings, strict=True):
            memory.let_go(holding)

    def _prompt_columns(self, request: GenerationRequest) -> int:
        """Columns of prefix and prompt in a slot of the rows' memory."""
        num_prompt = len(request.prompt_ids) if self.sources is None else 1
        return self.rows.own_prefix(request) + num_prompt

    def _row_slot(self, request: GenerationRequest) -> list[int]:
        """The slot of a row that comes and goes by itself; beams come and go together."""
        return self.row_slots(request)[:1] if request.sampling.beam is None else []

    def _kept_slots(self, request: GenerationRequest) -> list[int]:
        """Slots of the rows' memory that it holds beside such rows."""
        if request.sampling.beam is not None:
            return self.row_slots(request)
        return [self._prompt_columns(request)] if request.n > 1 else []

    def _needs(
        self, request: GenerationRequest, row_slots: list[int]
    ) -> list[tuple[Memory, list[int]]]:
        """Each memory with the slots that the request wants of it, in columns at most."""
        needs = [(self.rows, row_slots)]
        if self.sources is not None:
            columns = self.sources.own_prefix(request) + len(request.prompt_ids)
            needs.append((self.sources, [columns]))
        return needs


def _key(prefixes: Sequence[Prefix]) -> tuple[int, ...]:
    """Prefixes are told apart as objects: a row keeps the one that it was admitted with."""
    return tuple(map(id, prefixes))
