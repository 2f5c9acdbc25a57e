"""Rectangular forward passes: training, scoring and the keys and values of real words.

The same model code and the same attention function as serving, with another plan. Knows nothing
about optimisers, data or the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.model.attention import DensePlan, RecordingPlan
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues


def dense_logits(
    model: FrozenModel,
    input_ids: torch.Tensor,
    prefix: KeyValues | None = None,
    *,
    position_offset: int = 0,
) -> torch.Tensor:
    """Logits [rows, tokens, vocabulary] of right-padded `input_ids` [rows, tokens].

    `prefix` [layers, kv_heads, length, head_dim] is attended to by every row; gradients flow into
    it. Tokens stand at positions `position_offset`, `position_offset + 1`, …
    """
    rows, num_tokens = input_ids.shape
    positions = torch.arange(num_tokens, device=input_ids.device) + position_offset
    plan = DensePlan(num_tokens, prefix, input_ids.device)
    return model.forward(input_ids, positions.expand(rows, -1), plan)


@torch.inference_mode()
def keys_values_of(model: FrozenModel, token_ids: Sequence[int]) -> KeyValues:
    """The model's own keys and values for `token_ids` at positions 0, 1, …

    As a prefix with `position_offset` = their number they act exactly as if the tokens were
    prepended to the prompt (Li & Liang 2021, initialisation by real words).
    """
    input_ids = torch.tensor([list(token_ids)], device=model.device)
    positions = torch.arange(input_ids.shape[1], device=model.device)[None]
    plan = RecordingPlan(input_ids.shape[1], model.device)
    model.forward(input_ids, positions, plan)
    recorded = plan.recorded()
    # clones made outside inference mode may take part in training
    with torch.inference_mode(False):
        return KeyValues(recorded.keys.clone(), recorded.values.clone())
