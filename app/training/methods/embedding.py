"""Embedding-only tuning: trained virtual tokens in front of the input (Li & Liang 2021, §7.2).

Their keys and values do not depend on the input, so the result is an ordinary prefix.
"""

from __future__ import annotations

import torch
from torch import nn

from app.model.attention import RecordingPlan
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix


class VirtualTokens(nn.Module):
    """Input embeddings of `length` virtual tokens, made by Embedding → Linear → Tanh → Linear.

    `forward` runs them through the model, at positions 0, 1, …: the authors' `PrefixEmbTuning`.
    With the frozen prefix `on` the model reads them behind it.
    """

    def __init__(
        self, model: FrozenModel, *, length: int, hidden: int, on: Prefix | None = None
    ) -> None:
        super().__init__()
        width = int(model.hf.get_input_embeddings().weight.shape[1])
        # a tuple keeps the base model's weights out of this module's parameters
        self._model, self._on = (model,), on
        self.embedding = nn.Embedding(length, width)
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def embeddings(self) -> torch.Tensor:
        """The virtual tokens' embeddings, [length, width]."""
        made: torch.Tensor = self.network(self.embedding.weight)
        return made

    def forward(self) -> dict[str, KeyValues]:
        """The keys and values that the model gives the virtual tokens, with gradients."""
        return {"decoder": keys_values_of_embeddings(self._model[0], self.embeddings(), self._on)}


def keys_values_of_embeddings(
    model: FrozenModel, embeddings: torch.Tensor, on: Prefix | None = None
) -> KeyValues:
    """The model's keys and values for input embeddings [tokens, width] at positions 0, 1, …

    With the prefix `on` they are read behind it. Gradients flow into the embeddings.
    """
    plan = RecordingPlan() if on is None else RecordingPlan(on.modules)
    offset = 0 if on is None else on.metadata.position_offset
    positions = torch.arange(len(embeddings), device=model.device)[None] + offset
    model.hf(
        inputs_embeds=embeddings[None].to(model.dtype),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=1,
        plan=plan,
    )
    return plan.recorded()["decoder"]
