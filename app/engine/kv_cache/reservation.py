"""What requests hold of the engine: rows, slots and K/V memory, taken as their rows enter.

The rows of a request enter one by one. The first computes the prompt; those that enter later begin
with a copy of its columns, which are kept until the last row has entered.
"""

from __future__ import annotations

import math

from app.engine.config import EngineConfig
from app.engine.fairness.reserve import Stock, reserve_of
from app.engine.fairness.tenant_share import WHOLE
from app.engine.kv_cache.memory import Memories
from app.engine.kv_cache.slots import SlotTable
from app.engine.request_state import ActiveRequest, ReplyFrame, first_room
from app.engine.sequence import Source, TokenSequence
from app.model.text import Text


class Reservations:
    """Rows and memories of one engine; `sources` is for a model with an encoder."""

    def __init__(
        self,
        config: EngineConfig,
        table: SlotTable,
        text: Text,
        sources: SlotTable | None,
        frame: ReplyFrame,
    ) -> None:
        self._config, self._text, self._frame = config, text, frame
        self._table, self._source_table = table, sources
        self.memories = Memories(table, sources)
        self.num_rows = 0

    def measure(self, entry: ActiveRequest) -> None:
        """Note what the request's rows need to enter."""
        first = self.memories.columns(entry.request)
        others = (self.memories.row_columns(entry.request), *(0 for _ in first[1:]))
        entry.first_needs = (entry.rows_at_once, *first)
        entry.needs = (entry.rows_at_once, *others)
        parts = zip(entry.first_needs, self.stocks(), strict=True)
        entry.share = math.ceil(max(need / stock.whole for need, stock in parts) * WHOLE)

    def stocks(self) -> list[Stock]:
        """What tenants share: rows, and the columns of each memory."""
        config, tables = self._config, [self._table]
        if self._source_table is not None:
            tables.append(self._source_table)
        stocks = [(config.max_rows, self.num_rows)]
        stocks.extend((table.max_columns, table.reserved_columns) for table in tables)
        return [
            Stock(whole, reserve_of(whole, config.reserve), whole - used) for whole, used in stocks
        ]

    def fits(self, entry: ActiveRequest) -> bool:
        """Whether its next rows can enter now."""
        if self.num_rows + entry.rows_at_once > self._config.max_rows:
            return False
        if not entry.has_begun:
            return self.memories.fits(entry.request)
        spare = entry.holdings[0].columns if entry.num_unstarted == 1 else 0
        return self.memories.fits_row(entry.request, spare)

    def begin(self, entry: ActiveRequest) -> None:
        """Take what a request holds beside its rows, before the first of them enters."""
        entry.holdings = self.memories.hold(entry.request)
        if self._source_table is not None:
            entry.source = Source(entry.request, entry.holdings[1].segments)

    def enter(self, entry: ActiveRequest) -> None:
        """One more row of a request enters, or all its beams do."""
        entry.num_rows += entry.rows_at_once
        self.num_rows += entry.rows_at_once
        if entry.num_made:
            self._join(entry)
        if entry.request.sampling.beam is None:
            self.memories.hold_row(entry.request)
            if not entry.num_unstarted:
                self._let_prompt_go(entry)

    def start_prompt(self, entry: ActiveRequest) -> TokenSequence:
        """Make the rows that have entered; the first, which is returned, computes the prompt."""
        leader = self._make_row(entry)
        self._table.place_with_prefixes(leader, first_room(leader))
        if entry.beams is None:
            for _ in range(entry.num_rows - 1):
                self._join(entry)
        return leader

    def fork(
        self, entry: ActiveRequest, leader: TokenSequence, others: tuple[TokenSequence, ...]
    ) -> None:
        """`leader` has computed the prompt: copy it for `others`, and for those that come later."""
        for row in others:
            row.num_computed = leader.num_computed
            self._table.fork(leader, row, leader.num_cached, first_room(row))
        if entry.num_unstarted:
            prompt = entry.keep_prompt(leader)
            self._table.fork(leader, prompt, leader.num_cached, prompt.num_cached)

    def end_row(self, entry: ActiveRequest, row: TokenSequence) -> None:
        """One row is done; its slot and its part of the memory are free."""
        self._table.release(row)
        entry.rows.remove(row)
        entry.num_rows -= 1
        self.num_rows -= 1
        self.memories.let_rows_go(entry.request, 1)

    def end(self, entry: ActiveRequest) -> None:
        """Free everything that the request holds."""
        for row in entry.rows:
            self._table.release(row)
        if entry.prompt is not None:
            self._table.release(entry.prompt)
        if entry.source is not None and self._source_table is not None:
            self._source_table.release(entry.source)
        self.num_rows -= entry.num_rows
        self.memories.let_rows_go(entry.request, entry.num_rows)
        self.memories.let_go(entry.holdings)
        entry.rows, entry.prompt = [], None

    def _join(self, entry: ActiveRequest) -> None:
        """A row comes behind the first: it begins with that one's prompt, or waits for it."""
        row = self._make_row(entry)
        if entry.prompt is not None:
            row.joined, row.num_computed = True, row.num_prompt - 1
            self._table.fork(entry.prompt, row, entry.prompt.num_cached, first_room(row))

    def _let_prompt_go(self, entry: ActiveRequest) -> None:
        """Every row has entered."""
        if entry.prompt is not None:
            self._table.release(entry.prompt)
            entry.prompt = None
        entry.holdings = self.memories.let_prompt_go(entry.holdings)

    def _make_row(self, entry: ActiveRequest) -> TokenSequence:
        columns = self.memories.row_slots(entry.request)[0]
        return entry.make_row(columns, self._text, self._frame)
