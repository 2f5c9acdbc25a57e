"""A request's beams as rows: what the search decides, carried out in slots.

The row that computed the prompt becomes the trunk that all beams attend to; a beam's own slot holds
only what it generated. When beams are reordered, rows are renamed where they can be, and only a
beam that goes on twice is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from app.engine.decoding.beam_search import BeamSearch, Hypothesis
from app.engine.kv_cache.slots import SlotTable
from app.engine.request import Event, TextDelta, TokenScore
from app.engine.sequence import OutputText, TokenSequence
from app.model.text import Text

_FIRST_ROOM = 16
"""Columns of a new beam's slot."""


class BeamSequences:
    """The search of one request; `rows` are those whose candidates it takes next, in order."""

    def __init__(self, trunk: TokenSequence, text: Text) -> None:
        sampling = trunk.request.sampling
        if sampling.beam is None:
            raise ValueError("the request does not search by beams")
        eos: Collection[int] = () if sampling.ignore_eos else text.eos_token_ids
        self.rows: list[TokenSequence] = [trunk]
        self._trunk = trunk
        self._text = text
        self._search = BeamSearch(sampling.beam, sampling.max_tokens, eos, trunk.request.n)

    def advance(
        self, candidates: Mapping[TokenSequence, Sequence[tuple[int, float]]], table: SlotTable
    ) -> bool:
        """Take a step's candidates of all `rows`; False when the search is done."""
        following = self._search.advance([candidates[row] for row in self.rows])
        if following is None:
            return False
        if self.rows == [self._trunk]:
            self.rows = [self._branch(index, table) for index in range(len(following.tokens))]
            self._trunk.is_trunk = True
        else:
            self._reorder(following.parents, table)
        for row, token in zip(self.rows, following.tokens, strict=True):
            row.token_ids.append(token)
        return True

    def results(self) -> list[Event]:
        """The events of a search that is done: text and end of each result, best first."""
        events: list[Event] = []
        for index, hypothesis in enumerate(self._search.results()):
            events.extend(self._spell(index, hypothesis))
        return events

    def _branch(self, index: int, table: SlotTable) -> TokenSequence:
        """A beam that attends to the trunk and has no columns of its own yet."""
        trunk = self._trunk
        row = replace(
            trunk,
            index=index,
            token_ids=list(trunk.token_ids),
            max_columns=trunk.request.sampling.max_tokens,
            slot=None,
            num_elsewhere=trunk.num_computed,
            segments=(*trunk.segments, trunk),
            history=None,
        )
        table.place(row, min(_FIRST_ROOM, row.max_columns))
        return row

    def _reorder(self, parents: Sequence[int], table: SlotTable) -> None:
        """Let beam i go on from beam `parents[i]`: the first takes its row, the next a copy."""
        spare = [row for index, row in enumerate(self.rows) if index not in parents]
        taken: set[int] = set()
        rows = []
        for parent in parents:
            row = self.rows[parent]
            if parent in taken:
                row = spare.pop()
                table.overwrite(row, self.rows[parent])
                row.become(self.rows[parent])
            taken.add(parent)
            rows.append(row)
        self.rows = rows

    def _spell(self, index: int, hypothesis: Hypothesis) -> list[Event]:
        """A result as text: stop strings end it here, since no beam can know them."""
        sampling = self._trunk.request.sampling
        trunk = self._trunk
        told = trunk.request.prompt_ids if trunk.source is None else ()
        output = OutputText(index, sampling, self._text, trunk.forced_last, prompt_ids=told)
        text, tokens = "", list[TokenScore]()
        for token, logprob in zip(hypothesis.token_ids, hypothesis.logprobs, strict=True):
            scored = None if sampling.logprobs is None else logprob
            delta = output.push(token, scored, ())
            if delta is not None:
                text += delta.text
                tokens.extend(delta.tokens)
            if output.finish_reason is not None:
                break
        return [TextDelta(index, text, tuple(tokens)), output.finished(hypothesis.score)]
