"""The training objective by model family: the loss of a batch, and the positions of its tokens.

GPT-2 continues the input, at positions after the prefix. BART reads the input with its encoder and
writes the target, with positions from 0 on both sides (Li & Liang 2021, and their code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.model.sequences.packed_tokens import packed_logits
from app.prefix.composition import compose_modules
from app.prefix.prefix import KeyValues, Prefix
from app.training.batches import IGNORED, collate, collate_sources
from app.training.cross_entropy import summed_cross_entropy


@dataclass(frozen=True)
class Loss:
    """A mean loss with gradients, and how many sentences (GPT-2) or tokens (BART) it covers."""

    mean: torch.Tensor
    count: int


def loss_of(
    model: FrozenModel,
    prefix: Mapping[str, KeyValues],
    pairs: Sequence[TokenPair],
    *,
    on: Prefix | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """The loss of `pairs` behind `prefix`, with gradients into the prefix.

    `prefix` maps modules to keys and values of any dtype, best fp32; an empty one means the base
    model alone. `on` is a frozen prefix on the model's device that stands before it, as in a
    composition. Logits are computed at target tokens only. `label_smoothing` is the share of a
    target that is spread over the vocabulary.
    """
    offset = offset_behind(model, on, prefix["decoder"].length if "decoder" in prefix else 0)
    modules = prefix if on is None else compose_modules(on.modules, prefix)
    if (start := model.generation.frame.start) is not None:
        batch = collate_sources(pairs, start, position_offset=offset, device=model.device)
        count = sum(len(pair.target_ids) for pair in pairs)
    else:
        batch = collate(pairs, position_offset=offset, device=model.device)
        count = len(pairs)
    logits = packed_logits(model, batch.tokens, modules, batch.keep, sources=batch.sources)
    loss = summed_cross_entropy(
        logits[0], batch.labels, divisor=count, label_smoothing=label_smoothing, ignored=IGNORED
    )
    return Loss(loss, count)


def position_offset(model: FrozenModel, length: int) -> int:
    """How many positions a prefix of `length` shifts the tokens, as in the authors' code."""
    return length if model.encoder_decoder is None else 0


def offset_behind(model: FrozenModel, on: Prefix | None, length: int) -> int:
    """Position of the first token behind the prefix `on`, if any, and a prefix of `length`."""
    return position_offset(model, length) + (0 if on is None else on.metadata.position_offset)
