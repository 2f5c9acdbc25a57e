"""The training objective by model family: the loss of a batch, and the positions of its tokens.

GPT-2 continues the input, at positions after the prefix. BART reads the input with its encoder and
writes the target, with positions from 0 on both sides (Li & Liang 2021, and their code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from app.evaluation.text_pairs import TokenPair
from app.model.dense import dense_logits, dense_pair_logits
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.batches import collate, collate_sources, mean_loss, summed_loss


@dataclass(frozen=True)
class Loss:
    """A mean loss with gradients, and how many sentences (GPT-2) or tokens (BART) it covers."""

    mean: torch.Tensor
    count: int


def loss_of(
    model: FrozenModel, prefix: Mapping[str, KeyValues], pairs: Sequence[TokenPair]
) -> Loss:
    """The loss of `pairs` behind `prefix`, with gradients into the prefix.

    `prefix` maps modules to keys and values; an empty one means the base model alone.
    """
    if (start := model.generation.frame.start) is not None:
        return _answer_loss(model, prefix, pairs, start)
    batch = collate(pairs, model.device)
    decoder = prefix.get("decoder")
    offset = position_offset(model, decoder.length) if decoder is not None else 0
    logits = dense_logits(model, batch.input_ids, decoder, position_offset=offset)
    return Loss(summed_loss(logits, batch.labels), len(pairs))


def position_offset(model: FrozenModel, length: int) -> int:
    """How many positions a prefix of `length` shifts the tokens, as in the authors' code."""
    return length if model.encoder_decoder is None else 0


def _answer_loss(
    model: FrozenModel, prefix: Mapping[str, KeyValues], pairs: Sequence[TokenPair], start: int
) -> Loss:
    batch = collate_sources(pairs, start, model.device)
    logits = dense_pair_logits(
        model, batch.source_ids, batch.source_mask, batch.decoder_ids, prefix
    )
    count = sum(len(pair.target_ids) for pair in pairs)
    return Loss(mean_loss(logits, batch.labels), count)
