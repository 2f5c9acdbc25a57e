"""What a prefix is trained for, by the model's family: the loss of a batch, and where tokens stand.

GPT-2 continues an input after the prefix's positions; BART reads it with its encoder and writes the
target, positions from 0 on both sides (Li & Liang 2021, and their code). Knows nothing about
optimisers, files or recipes.
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
    """A mean with gradients, and over how many sentences (GPT-2) or tokens (BART) it is one."""

    mean: torch.Tensor
    count: int


def loss_of(
    model: FrozenModel, prefix: Mapping[str, KeyValues], pairs: Sequence[TokenPair]
) -> Loss:
    """The loss of `pairs` after `prefix` (module → keys and values; none: the base model alone).

    Gradients flow into the prefix.
    """
    if model.start_tokens is not None:
        return _answer_loss(model, prefix, pairs, model.start_tokens.start)
    batch = collate(pairs, model.device)
    decoder = prefix.get("decoder")
    offset = position_offset(model, decoder.length) if decoder is not None else 0
    logits = dense_logits(model, batch.input_ids, decoder, position_offset=offset)
    return Loss(summed_loss(logits, batch.labels), len(pairs))


def position_offset(model: FrozenModel, length: int) -> int:
    """By how many positions a prefix of `length` shifts the tokens, as in the authors' code."""
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
