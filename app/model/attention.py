"""Plans: what the tokens of a forward pass attend to.

`app.model.frozen.prefix_attention` asks the plan that travelled through the model's keyword
arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.errors import InvalidPrefix, UnsupportedModel
from app.prefix.prefix import KeyValues
from app.prefix.spec import MODULES


class AttentionPlan(Protocol):
    """Decides what the tokens of one forward pass attend to."""

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention output [batch, tokens, heads, head_dim].

        `role` is the kind of attention, named as in `app.prefix.spec.MODULES`; `layer` counts
        within the encoder or the decoder. `query` is [batch, heads, tokens, head_dim]; `key` and
        `value` are [batch, kv_heads, tokens, head_dim], after any rotary embedding.
        """


class DensePlan:
    """A rectangular batch after an optional prefix: each row attends to [prefix | itself].

    Rows are right-padded: in a decoder causality alone keeps padding out of every real token; for
    an encoder and for what attends to it, `source_mask` [rows, source tokens] is True at real
    tokens. `modules` maps roles to prefixes, each [layers, kv_heads, length, head_dim], that are
    shared by the rows and may require gradients. `dropout` is the share of attention weights that
    are dropped.
    """

    def __init__(
        self,
        modules: Mapping[str, KeyValues],
        source_mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        self._dropout = dropout
        self._modules = modules
        self._source_mask = source_mask
        self._masks: dict[tuple[str, int], Tensor | None] = {}

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        prefix = self._modules.get(role)
        if prefix is not None:
            rows = key.shape[0]
            key = torch.cat([prefix.keys[layer].expand(rows, -1, -1, -1), key], dim=2)
            value = torch.cat([prefix.values[layer].expand(rows, -1, -1, -1), value], dim=2)
        mask = self._mask(role, query, prefix.length if prefix is not None else 0)
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self._dropout,
            is_causal=role == "decoder" and mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)

    def _mask(self, role: str, query: Tensor, length: int) -> Tensor | None:
        """What is visible, broadcast to [rows, heads, tokens, length + tokens]; None: the rule.

        The rule is causality in a decoder, and everything elsewhere.
        """
        found = (role, query.shape[2])
        if found not in self._masks:
            self._masks[found] = self._make_mask(role, query, length)
        return self._masks[found]

    def _make_mask(self, role: str, query: Tensor, length: int) -> Tensor | None:
        tokens = query.shape[2]
        if role == "decoder":
            visible = torch.ones(tokens, length + tokens, dtype=torch.bool, device=query.device)
            return visible.tril(diagonal=length) if length else None
        if self._source_mask is None:
            return None
        before = self._source_mask.new_ones(len(self._source_mask), length)
        return torch.cat([before, self._source_mask], dim=1)[:, None, None]


class OverflowPlan(DensePlan):
    """A `DensePlan` that raises InvalidPrefix where a prefix makes some kernel's sums overflow.

    Kernels add in different orders and scale earlier or later, so the sums are taken of absolute
    values, in fp32 and unscaled: what is finite here is finite in every order.
    """

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        prefix = self._modules.get(role)
        if prefix is not None:
            grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1]).float().abs()
            scores = grouped @ prefix.keys[layer].float().abs().transpose(-1, -2)
            scores = scores * max(1.0, scaling)
            values = prefix.values[layer].float().abs().sum(dim=-2)
            for part, sums in (("keys", scores), ("values", values)):
                if not bool(torch.isfinite(sums).all()):
                    raise InvalidPrefix(
                        "not a usable prefix: with it the model's next-token logits are not finite "
                        f"on every machine: the sums over {role}.{part} overflow in layer {layer}"
                    )
        return super().attend(role, layer, query, key, value, scaling)


class RecordingPlan(DensePlan):
    """A `DensePlan` that keeps the keys and values of one row's own tokens, layer by layer.

    The row attends to the prefixes in `modules`, if there are any.
    """

    def __init__(self, modules: Mapping[str, KeyValues] | None = None) -> None:
        super().__init__(modules or {})
        self._layers: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self._layers[role, layer] = (key[0], value[0])
        return super().attend(role, layer, query, key, value, scaling)

    def recorded(self) -> dict[str, KeyValues]:
        """What the layers of each role saw: each [layers, kv_heads, tokens, head_dim]."""
        if not self._layers:
            raise UnsupportedModel("no attention layer calls transformers' attention interface")
        return {
            role: KeyValues(*(torch.stack(part) for part in zip(*layers, strict=True)))
            for role in MODULES
            if (layers := [self._layers[at] for at in sorted(self._layers) if at[0] == role])
        }
