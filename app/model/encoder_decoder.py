"""Encoder-decoder models (BART): the two halves called apart, with a plan's positions.

transformers' own modules compute everything. Two things are put in their places: the embeddings of
positions, which otherwise count from 0 for all rows alike, and a cache that hands keys and values
straight to the attention function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel

from app.model.attention import AttentionPlan

_positions: ContextVar[Tensor | None] = ContextVar("positions", default=None)


class EncoderDecoder:
    """The halves of an encoder-decoder module. `register` it on the module before any call."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self._hf = hf
        self._encoder, self._decoder = hf.get_encoder(), hf.get_decoder()
        self._width = int(hf.config.d_model)
        self._cache = _PassThroughCache(self.decoder_layers)
        bias: Tensor = hf.final_logits_bias
        # in most checkpoints it is nothing, and adding it reads all the logits once more
        self._bias = bias if bool(bias.any()) else None
        for half in (self._encoder, self._decoder):
            half.embed_positions = PlannedPositions(half.embed_positions)

    @property
    def decoder_layers(self) -> int:
        """Layers that attend to the encoder's output."""
        return len(self._decoder.layers)

    def encode(self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """The encoder's output [rows, tokens, width] for ids and positions [rows, tokens]."""
        with _at(position_ids):
            return self._encoder(input_ids=input_ids, plan=plan).last_hidden_state

    def cross_keys_values(self, layer: int, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """What decoder layer `layer` attends to, [tokens, heads, head_dim] each.

        `encoded` [tokens, width] is the encoder's output.
        """
        attention = self._decoder.layers[layer].encoder_attn
        shape = (len(encoded), -1, attention.head_dim)
        return attention.k_proj(encoded).view(shape), attention.v_proj(encoded).view(shape)

    def decode(
        self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan, keep: Tensor | int = 0
    ) -> Tensor:
        """Logits of decoder tokens, as `FrozenModel.forward`; `plan` knows the encoded sources."""
        # only its being there is looked at: the cache says that cross-attention is computed
        nothing = torch.zeros(1, 1, self._width, dtype=self._hf.dtype, device=input_ids.device)
        with _at(position_ids):
            hidden = self._decoder(
                input_ids=input_ids,
                encoder_hidden_states=nothing,
                past_key_values=self._cache,
                use_cache=True,
                plan=plan,
            ).last_hidden_state
        return self._logits(hidden, keep)

    def teach(
        self,
        source_ids: Tensor,
        decoder_ids: Tensor,
        plan: AttentionPlan,
        *,
        position_offset: int = 0,
        keep: Tensor | int = 0,
    ) -> Tensor:
        """Logits [rows, kept tokens, vocabulary] of both halves in one pass, for training.

        The decoder's positions count from `position_offset`, the encoder's from 0.
        """
        places = [
            torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            for ids in (source_ids, decoder_ids)
        ]
        return self.teach_at(
            (source_ids, places[0]), (decoder_ids, places[1] + position_offset), plan, keep
        )

    def teach_at(
        self,
        source: tuple[torch.Tensor, torch.Tensor],
        target: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        keep: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """The same for given positions: `source` and `target` are ids and positions.

        They are [rows, tokens] each, with the same positions in every row.
        """
        encoded = self.encode(*source, plan)
        with _at(target[1]):
            hidden = self._decoder(
                input_ids=target[0], encoder_hidden_states=encoded, use_cache=False, plan=plan
            ).last_hidden_state
        return self._logits(hidden, keep)

    def _logits(self, hidden: Tensor, keep: Tensor | int) -> Tensor:
        kept = hidden if isinstance(keep, int) else hidden[:, keep]
        logits = self._hf.get_output_embeddings()(kept)
        return logits if self._bias is None else logits + self._bias.to(logits.dtype)


class PlannedPositions(torch.nn.Module):
    """Embeddings of positions that a caller chose for this pass; the module's own without."""

    def __init__(self, plain: torch.nn.Module) -> None:
        super().__init__()
        self._plain = plain

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Embeddings [rows, tokens, width]."""
        chosen = _positions.get()
        if chosen is None:
            return self._plain(*inputs, **options)
        return self._plain(chosen, position_ids=chosen[0])


@contextmanager
def _at(position_ids: Tensor) -> Iterator[None]:
    token = _positions.set(position_ids)
    try:
        yield
    finally:
        _positions.reset(token)


class _PassThrough:
    """A layer cache's interface over nothing: new keys and values are all that there is.

    The plan holds the keys and values of cross-attention, so `layers` have none.
    """

    def __init__(self, num_layers: int) -> None:
        nothing = SimpleNamespace(keys=torch.empty(0), values=torch.empty(0))
        self.layers = [nothing] * num_layers

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _PassThroughCache(EncoderDecoderCache):
    """Says that cross-attention has been computed, and stores nothing."""

    def __init__(self, num_layers: int) -> None:
        self.self_attention_cache = self.cross_attention_cache = _PassThrough(num_layers)
        self.is_updated = dict.fromkeys(range(num_layers), True)

    def get_seq_length(self, *_: Any) -> int:
        return 0
