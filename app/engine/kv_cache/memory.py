"""What requests hold of the engine: rows, and columns and shared prefixes in K/V memory.

The rows of a request enter one by one. The first computes the prompt; later ones begin with a copy
of its columns, which are kept until the last row has entered. A short prefix is copied to the front
of every slot that needs it; a prefix of `SHARED_LENGTH` columns or more is stored once, in a slot
of its own, for all requests that hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from app.engine.config import EngineConfig
from app.engine.fairness.tenant_share import WHOLE, Stock
from app.engine.kv_cache.entries import SharedPrefix, Source
from app.engine.kv_cache.slots import SlotTable
from app.engine.request import GenerationRequest, columns_of
from app.engine.request_state import KVNeeds, KVReservation, RequestState
from app.engine.sequence import TokenSequence
from app.errors import InvalidRequest
from app.model.generation_defaults import ReplyFrame
from app.model.text import Text
from app.prefix.prefix import Prefix

SHARED_LENGTH = 64
"""Columns from which attending to a shared segment costs less than reading a copy per row."""


def kv_needs(
    request: GenerationRequest, table: SlotTable, sources: SlotTable | None = None
) -> tuple[KVNeeds, ...]:
    """What a request needs of the rows' memory and, with an encoder, of that of sources.

    Several rows begin with a copy of their prompt. With beams one slot holds the prompt, and each
    beam only what it generates.
    """
    size, sampling = table.reservation, request.sampling
    own, shared = _own_and_shared(request, table, "decoder")
    prompt = own + (len(request.prompt_ids) if sources is None else 1)
    row = prompt + sampling.max_tokens
    if sampling.beam is not None:
        kept = size(prompt) + request.num_rows * size(sampling.max_tokens)
        needs = KVNeeds(0, kept, shared, prompt)
    else:
        needs = KVNeeds(size(row), size(prompt) if request.n > 1 else 0, shared, row)
    if sources is None:
        return (needs,)
    own, shared = _own_and_shared(request, sources, "cross")
    columns = own + len(request.prompt_ids)
    return needs, KVNeeds(0, sources.reservation(columns), shared, columns)


def check_kv_needs(
    request: GenerationRequest, table: SlotTable, sources: SlotTable | None = None
) -> None:
    """Raise InvalidRequest for a request that would not even fit alone."""
    rows, *others = kv_needs(request, table, sources)
    # the prompt's place is free again once all rows have entered
    most = rows.shared + (rows.row * request.n or rows.kept)
    if most > table.max_columns:
        raise InvalidRequest(
            f"{request.num_rows} rows of up to {rows.slot} columns exceed the K/V memory of "
            f"{table.max_columns} columns",
            param="n",
        )
    for source in others:
        if sources is not None and source.kept + source.shared > sources.max_columns:
            raise InvalidRequest(
                f"the {source.slot} columns of the encoded prompt exceed the K/V memory of "
                f"{sources.max_columns} columns",
                param="prompt",
            )


def _own_and_shared(request: GenerationRequest, table: SlotTable, role: str) -> tuple[int, int]:
    """Columns of prefixes in each of the request's slots, and in a slot that is shared."""
    columns = columns_of(request.prefixes, role)
    return (columns, 0) if columns < SHARED_LENGTH else (0, table.reservation(columns))


class KVMemory:
    """One K/V memory: that of rows (`role` decoder) or that of sources (cross)."""

    def __init__(self, table: SlotTable, role: str) -> None:
        self.table = table
        self.role = role
        self._shared: dict[tuple[int, ...], SharedPrefix] = {}

    @property
    def shared(self) -> tuple[SharedPrefix, ...]:
        """Prefixes that new requests may share."""
        return tuple(self._shared.values())

    def fits(self, request: GenerationRequest, needs: KVNeeds) -> bool:
        """Whether the request can begin now: what it keeps, and one row if it has such."""
        columns = needs.kept + needs.row
        if needs.shared and _key(request.prefixes) not in self._shared:
            columns += needs.shared
        return self.table.can_reserve(columns)

    def hold(self, request: GenerationRequest, needs: KVNeeds) -> KVReservation:
        """Reserve what it keeps, and place the shared prefix unless it is in its slot already."""
        self.table.reserve(needs.kept)
        if not needs.shared:
            return KVReservation(needs.kept)
        key = _key(request.prefixes)
        segment = self._shared.get(key)
        if segment is None:
            segment = self._shared[key] = SharedPrefix(request.prefixes, self.role)
            self.table.reserve(needs.shared)
            self.table.place(segment, segment.num_cached, with_prefixes=True)
        segment.num_users += 1
        return KVReservation(needs.kept, (segment,))

    def let_go(self, reservation: KVReservation) -> None:
        """Give a reservation back.

        A shared prefix leaves with its last user; no new request shares a tainted one.
        """
        self.table.reserve(-reservation.columns)
        for segment in reservation.segments:
            segment.num_users -= 1
            if segment.tainted:
                self._forget(segment)
            if segment.num_users == 0:
                self._forget(segment)
                self.table.reserve(-self.table.reservation(segment.num_cached))
                self.table.release(segment)

    def let_columns_go(self, reservation: KVReservation) -> KVReservation:
        """Give the columns of a reservation back; what is still held."""
        self.table.reserve(-reservation.columns)
        return replace(reservation, columns=0)

    def _forget(self, segment: SharedPrefix) -> None:
        """No new request shares it."""
        if self._shared.get(_key(segment.prefixes)) is segment:
            del self._shared[_key(segment.prefixes)]


class Reservations:
    """Rows and memories of one engine; `sources` is for a model with an encoder."""

    def __init__(
        self,
        config: EngineConfig,
        text: Text,
        frame: ReplyFrame,
        table: SlotTable,
        sources: SlotTable | None = None,
    ) -> None:
        self._config, self._text, self._frame = config, text, frame
        self._table, self._source_table = table, sources
        self.memories = [KVMemory(table, "decoder")]
        if sources is not None:
            self.memories.append(KVMemory(sources, "cross"))
        self.num_rows = 0

    def debug_state(self) -> dict[str, Any]:
        """What is held, as plain values; of each memory how many requests share each prefix."""
        return {
            "num_rows": self.num_rows,
            "reserved_columns": [memory.table.reserved_columns for memory in self.memories],
            "shared": [[one.num_users for one in memory.shared] for memory in self.memories],
        }

    def check_integrity(self, active: Collection[RequestState]) -> None:
        """Raise RuntimeError, with what is wrong, unless this is what the `active` ones hold."""
        num_rows = sum(entry.num_rows for entry in active)
        if num_rows != self.num_rows:
            raise RuntimeError(f"{num_rows} rows run, and {self.num_rows} are counted")
        for at, memory in enumerate(self.memories):
            memory.table.check_integrity()
            held = [entry.reservations[at] for entry in active]
            columns = sum(one.columns for one in held)
            columns += sum(entry.num_rows * entry.columns[at].row for entry in active)
            shared = {segment for one in held for segment in one.segments}
            columns += sum(memory.table.reservation(one.num_cached) for one in shared)
            if columns != memory.table.reserved_columns:
                reserved = memory.table.reserved_columns
                raise RuntimeError(f"{columns} {memory.role} columns are held, {reserved} reserved")
            if not active and (memory.shared or any(memory.table.rows)):
                raise RuntimeError(f"no request runs, and the {memory.role} memory is in use")

    def measure(self, entry: RequestState) -> None:
        """Note what the request's rows need to enter."""
        entry.columns = kv_needs(entry.request, self._table, self._source_table)
        needs, row_needs = [entry.rows_at_once], [entry.rows_at_once]
        share = entry.rows_at_once / self._config.max_rows
        for columns, memory in zip(entry.columns, self.memories, strict=True):
            needs.append(columns.kept + columns.row + columns.shared)
            row_needs.append(columns.row)
            share = max(share, needs[-1] / memory.table.max_columns)
        entry.needs, entry.row_needs = tuple(needs), tuple(row_needs)
        entry.share = ceil(share * WHOLE)

    def stocks(self) -> list[Stock]:
        """What tenants share: rows, and the columns of each memory."""
        used = [(self._config.max_rows, self.num_rows)]
        for memory in self.memories:
            used.append((memory.table.max_columns, memory.table.reserved_columns))
        return [Stock(whole, self._config.reserved(whole), whole - taken) for whole, taken in used]

    def fits(self, entry: RequestState) -> bool:
        """Whether its next rows can enter now."""
        if self.num_rows + entry.rows_at_once > self._config.max_rows:
            return False
        if entry.has_begun:
            spare = entry.reservations[0].columns if entry.num_unstarted == 1 else 0
            return self._table.can_reserve(entry.columns[0].row - spare)
        for memory, needs in zip(self.memories, entry.columns, strict=True):
            if not memory.fits(entry.request, needs):
                return False
        return True

    def enter(self, entry: RequestState) -> None:
        """One more row of a request enters, or all its beams do.

        The first takes what the request holds besides its rows.
        """
        if not entry.reservations:
            for memory, needs in zip(self.memories, entry.columns, strict=True):
                entry.reservations += (memory.hold(entry.request, needs),)
            if self._source_table is not None:
                entry.source = Source(entry.request, entry.reservations[1].segments)
        entry.num_rows += entry.rows_at_once
        self.num_rows += entry.rows_at_once
        if entry.num_made:
            self._join(entry)
        if entry.request.sampling.beam is None:
            self._table.reserve(entry.columns[0].row)
            if not entry.num_unstarted and entry.request.n > 1:
                self._let_prompt_go(entry)

    def start_prompt(self, entry: RequestState) -> TokenSequence:
        """Make the rows that have entered; the first, which is returned, computes the prompt."""
        leader = entry.make_row(self._text, self._frame)
        self._table.place(leader, leader.first_room, with_prefixes=True)
        if entry.beams is None:
            for _ in range(entry.num_rows - 1):
                self._join(entry)
        return leader

    def fork(
        self, entry: RequestState, leader: TokenSequence, others: Sequence[TokenSequence]
    ) -> None:
        """`leader` has computed the prompt: copy it for `others`, and for rows that enter later."""
        for row in others:
            row.num_computed = leader.num_computed
            self._table.fork(leader, row, leader.num_cached, row.first_room)
        if entry.num_unstarted:
            prompt = entry.keep_prompt(leader)
            self._table.fork(leader, prompt, leader.num_cached, prompt.num_cached)

    def end_row(self, entry: RequestState, row: TokenSequence) -> None:
        """One row is done; its slot and its part of the memory are free."""
        self._table.release(row)
        entry.rows.remove(row)
        entry.num_rows -= 1
        self.num_rows -= 1
        self._table.reserve(-entry.columns[0].row)

    def end(self, entry: RequestState) -> None:
        """Free everything that the request holds."""
        for row in entry.rows:
            self._table.release(row)
        if entry.prompt is not None:
            self._table.release(entry.prompt)
        if entry.source is not None and self._source_table is not None:
            self._source_table.release(entry.source)
        self.num_rows -= entry.num_rows
        self._table.reserve(-entry.num_rows * entry.columns[0].row)
        for memory, reservation in zip(self.memories, entry.reservations, strict=True):
            memory.let_go(reservation)
        entry.rows, entry.prompt = [], None

    def _join(self, entry: RequestState) -> None:
        """A row comes behind the first: it begins with that one's prompt, or waits for it."""
        row = entry.make_row(self._text, self._frame)
        if entry.prompt is not None:
            row.joined, row.num_computed = True, row.num_prompt - 1
            self._table.fork(entry.prompt, row, entry.prompt.num_cached, row.first_room)

    def _let_prompt_go(self, entry: RequestState) -> None:
        """Every row has entered: the prompt's place is free."""
        if entry.prompt is not None:
            self._table.release(entry.prompt)
            entry.prompt = None
        rows, *others = entry.reservations
        entry.reservations = (self.memories[0].let_columns_go(rows), *others)


def _key(prefixes: Sequence[Prefix]) -> tuple[int, ...]:
    """Prefixes are told apart as objects: a row keeps the one that it was admitted with."""
    return tuple(map(id, prefixes))
