"""The plan of a rectangular batch whose rows have prefixes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.model.attention import DensePlan
from app.prefix.prefix import KeyValues

Spans = Mapping[str, Sequence[range]]
"""By role, the positions of each sequence's prefix among the keys and values of all prefixes."""


class RowPrefixPlan(DensePlan):
    """As `DensePlan`, but each row attends to [its own prefix | itself].

    `modules` holds the prefixes of all rows one after another, and `spans` says where each row's
    lies. Shorter prefixes are padded, and the padding is masked.
    """

    def __init__(
        self,
        modules: Mapping[str, KeyValues],
        spans: Spans,
        source_mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(modules, source_mask, dropout)
        self._places = {
            role: _padded(found, modules[role].keys.device)
            for role, found in spans.items()
            if role in modules
        }
        self._visible: dict[tuple[str, int], Tensor] = {}

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `AttentionPlan`."""
        prefix = self._modules.get(role)
        if prefix is None:
            return super().attend(role, layer, query, key, value, scaling)
        places, _ = self._places[role]
        before = (part[layer][:, places].transpose(0, 1) for part in (prefix.keys, prefix.values))
        keys, values = (
            torch.cat([own, part], dim=2) for own, part in zip(before, (key, value), strict=True)
        )
        output = scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=self._mask_of_rows(role, query, key.shape[2]),
            dropout_p=self._dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)

    def _mask_of_rows(self, role: str, query: Tensor, columns: int) -> Tensor:
        """True at what each query sees, [rows, 1, queries, longest prefix + columns]."""
        queries = query.shape[2]
        if (role, queries) not in self._visible:
            _, real = self._places[role]
            own = torch.ones(queries, columns, dtype=torch.bool, device=query.device)
            if role == "decoder":
                own = own.tril()
            rows = own.expand(len(real), 1, -1, -1)
            if role != "decoder" and self._source_mask is not None:
                rows = rows & self._source_mask[:, None, None]
            before = real[:, None, None].expand(-1, 1, queries, -1)
            self._visible[role, queries] = torch.cat([before, rows], dim=3)
        return self._visible[role, queries]


def _padded(spans: Sequence[range], device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of each row's prefix, [rows, longest], padded with 0; and which are real."""
    longest = max(len(span) for span in spans)
    places = [[*span, *[0] * (longest - len(span))] for span in spans]
    real = [[place < len(span) for place in range(longest)] for span in spans]
    shape = (len(spans), longest)
    return (
        torch.tensor(places, dtype=torch.long, device=device).view(shape),
        torch.tensor(real, dtype=torch.bool, device=device).view(shape),
    )
