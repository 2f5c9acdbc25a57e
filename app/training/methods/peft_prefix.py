"""PEFT's own prefix encoder, with its start and its loss: the baseline for a prefix of ours."""

from __future__ import annotations

import torch
from torch import nn

from app.errors import InvalidRequest
from app.prefix.formats.tensors import keys_values, width
from app.prefix.prefix import KeyValues
from app.prefix.spec import ModuleShape


class PeftKeyValues(nn.Module):
    """PEFT's `PrefixEncoder`, whose output is the keys and values of the decoder.

    `projection` puts PEFT's network behind the embedding, with `hidden` units; without it the
    embedding is the prefix. The start is PEFT's in both cases.
    """

    def __init__(
        self,
        shape: ModuleShape,
        *,
        length: int,
        hidden: int,
        projection: bool,
    ) -> None:
        """Raises InvalidRequest if PEFT is not installed."""
        super().__init__()
        try:
            from peft import PrefixEncoder, PrefixTuningConfig
        except ModuleNotFoundError as error:
            raise InvalidRequest(
                "method: this needs PEFT; install it with `pip install 'polyprefix[train]'`"
            ) from error
        self._shape = shape
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=length,
            num_layers=shape.layers,
            num_attention_heads=shape.kv_heads,
            token_dim=width(shape) // (2 * shape.layers),
            encoder_hidden_size=hidden,
            prefix_projection=projection,
        )
        self.encoder = PrefixEncoder(config)
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self) -> dict[str, KeyValues]:
        """Keys and values of the decoder, with gradients."""
        return {"decoder": keys_values(self.encoder(self.get_buffer("places")), self._shape)}
