"""The plan of sequences that lie end to end: each token attends to its prefix and its sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from app.model.attention import DensePlan
from app.model.sequences.row_prefix_plan import RowPrefixPlan, Spans
from app.model.sequences.sequence_attention import Mask, attend_in_sequences, equal_neighbours
from app.prefix.prefix import KeyValues


class SequencePlan:
    """Sequences end to end: each token attends to [prefix | its own sequence].

    `lengths` are those of the decoder's sequences, `source_lengths` those of the encoder's. All
    sequences attend to all of `modules`, or, with `spans`, each to its own positions of them:
    `spans` has a range for each sequence and role. On a CPU no padding is computed. Elsewhere, and
    while attention weights are dropped, attention alone sees a padded rectangle.
    """

    def __init__(
        self,
        modules: Mapping[str, KeyValues],
        lengths: Sequence[int],
        source_lengths: Sequence[int] = (),
        *,
        spans: Spans | None = None,
        dropout: float = 0.0,
        padded: bool = False,
    ) -> None:
        self._modules, self._spans = modules, spans
        # one gradient for all layers; `keys[layer]` would make one of full size for each
        self._layers = {
            role: (part.keys.unbind(), part.values.unbind()) for role, part in modules.items()
        }
        self._queries = {"decoder": lengths, "cross": lengths, "encoder": source_lengths}
        self._keys = {"decoder": lengths, "cross": source_lengths, "encoder": source_lengths}
        self._groups = {
            role: equal_neighbours(
                self._queries[role], self._keys[role], None if spans is None else spans.get(role)
            )
            for role in (("decoder", "cross", "encoder") if source_lengths else ("decoder",))
        }
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._padded = padded or dropout > 0
        self._dropout = dropout
        self._rectangle: DensePlan | None = None
        self._places: dict[Sequence[int], torch.Tensor] = {}

    def attend(
        self,
        role: str,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`; batch is 1."""
        if self._padded or query.device.type != "cpu":
            return self._attend_padded(role, layer, query, key, value, scaling)
        found = self._layers.get(role)
        prefix = None if found is None else (found[0][layer], found[1][layer])
        groups = self._groups[role]
        mask = self._causal(query.dtype) if role == "decoder" else _no_mask
        return attend_in_sequences(query, key, value, prefix, groups, mask, scaling)

    def _causal(self, dtype: torch.dtype) -> Mask:
        def mask(queries: int, columns: int) -> torch.Tensor:
            if (queries, columns) not in self._masks:
                hidden = torch.ones(queries, columns, dtype=torch.bool).triu(columns - queries + 1)
                made = torch.zeros(queries, columns, dtype=dtype)
                self._masks[queries, columns] = made.masked_fill_(hidden, float("-inf"))
            return self._masks[queries, columns]

        return mask

    def _attend_padded(
        self,
        role: str,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        own, columns = (self._index(of[role], query.device) for of in (self._queries, self._keys))
        if self._rectangle is None:
            self._rectangle = self._make_rectangle(query.dtype, query.device)
        rows = [
            part[0][:, index].transpose(0, 1)
            for part, index in ((query, own), (key, columns), (value, columns))
        ]
        made = self._rectangle.attend(role, layer, rows[0], rows[1], rows[2], scaling)
        real = _real(self._queries[role], query.device)
        output = made.new_zeros(query.shape[2], *made.shape[2:])
        return output.index_put((own[real],), made[real])[None]

    def _make_rectangle(self, dtype: torch.dtype, device: torch.device) -> DensePlan:
        modules = {
            role: KeyValues(part.keys.to(dtype), part.values.to(dtype))
            for role, part in self._modules.items()
        }
        sources = self._keys["cross"]
        mask = _real(sources, device) if sources else None
        if self._spans is None:
            return DensePlan(modules, mask, self._dropout)
        return RowPrefixPlan(modules, self._spans, mask, self._dropout)

    def _index(self, lengths: Sequence[int], device: torch.device) -> torch.Tensor:
        """Where the tokens of each row lie, [sequences, longest]; 0 behind a row's end."""
        lengths = tuple(lengths)
        if lengths not in self._places:
            real = _real(lengths, device)
            index = torch.zeros(real.shape, dtype=torch.long, device=device)
            index[real] = torch.arange(sum(lengths), device=device)
            self._places[lengths] = index
        return self._places[lengths]


def _real(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """True at real tokens, [sequences, longest]."""
    places = torch.arange(max(lengths), device=device)
    return places < torch.tensor(list(lengths), device=device)[:, None]


def _no_mask(_queries: int, _columns: int) -> None:
    return None
