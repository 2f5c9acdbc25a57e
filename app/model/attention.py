"""The one way in which a prefix enters a model: an attention function that asks a plan.

transformers lets a model's attention be named; under our name every attention layer calls
`prefix_attention`, which hands queries, keys and values to the plan that travelled through the
model's keyword arguments. The plan decides what each token attends to. Knows nothing about
requests, pools or training: those are plans.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from app.errors import UnsupportedModel
from app.prefix.prefix import KeyValues

ATTENTION_NAME = "polyprefix"

_UNSERVED_OPTIONS = ("softcap", "sliding_window", "s_aux")
"""What some layers pass to their attention function and a plan does not do."""


class AttentionPlan(Protocol):
    """Decides what the tokens of one forward pass attend to."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention output [batch, tokens, heads, head_dim].

        `query` is [batch, heads, tokens, head_dim]; `key` and `value` are
        [batch, kv_heads, tokens, head_dim], after any rotary embedding.
        """


def prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    plan: AttentionPlan | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function (transformers' AttentionInterface signature).

    Raises UnsupportedModel when a layer asks for something that a plan cannot express.
    """
    for option in _UNSERVED_OPTIONS:
        if options.get(option) is not None:
            raise UnsupportedModel(f"{type(module).__name__} needs {option} in its attention")
    if plan is None or attention_mask is not None:
        raise UnsupportedModel(
            f"{type(module).__name__} did not pass the plan on to its attention function"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plan.attend(int(module.layer_idx), query, key, value, scale), None  # type: ignore[arg-type]


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers. No mask function is registered on purpose:

    with one, transformers would look for packed sequences, a device synchronisation per step.
    """
    AttentionInterface.register(ATTENTION_NAME, prefix_attention)


class DensePlan:
    """A rectangular batch after an optional prefix: each row attends to [prefix | itself], causal.

    Rows are right-padded, so causality alone keeps padding out of every real token. The prefix,
    [layers, kv_heads, length, head_dim], is shared by the rows and may require gradients.
    """

    def __init__(self, num_tokens: int, prefix: KeyValues | None, device: torch.device) -> None:
        self._prefix = prefix
        length = prefix.length if prefix is not None else 0
        visible = torch.ones(num_tokens, length + num_tokens, dtype=torch.bool, device=device)
        self._mask = visible.tril(diagonal=length) if length else None  # [T, P + T]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`."""
        if self._prefix is not None:
            rows = key.shape[0]
            key = torch.cat([self._prefix.keys[layer].expand(rows, -1, -1, -1), key], dim=2)
            value = torch.cat([self._prefix.values[layer].expand(rows, -1, -1, -1), value], dim=2)
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)


class RecordingPlan(DensePlan):
    """A `DensePlan` without prefix that keeps the keys and values of one row, layer by layer."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        super().__init__(num_tokens, None, device)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`."""
        self._layers[layer] = (key[0], value[0])
        return super().attend(layer, query, key, value, scaling)

    def recorded(self) -> KeyValues:
        """What the layers saw: each [layers, kv_heads, tokens, head_dim]."""
        if not self._layers:
            raise UnsupportedModel("no attention layer calls transformers' attention interface")
        pairs = [self._layers[layer] for layer in sorted(self._layers)]
        return KeyValues(
            torch.stack([key for key, _ in pairs]), torch.stack([value for _, value in pairs])
        )
