"""Losses on right-padded rectangles, for methods that train weights inside the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from app.evaluation.text_pairs import TokenPair
from app.model.dense import dense_logits, dense_pair_logits
from app.model.frozen import FrozenModel
from app.training.objective import Loss

IGNORED_LABEL = -100


def padded_loss(
    model: FrozenModel, pairs: Sequence[TokenPair], *, label_smoothing: float = 0.0
) -> Loss:
    """The loss of `pairs` with gradients into the model's own weights.

    As in `app.training.objective`: summed over a sentence's tokens for a decoder alone, a mean
    over tokens with an encoder.
    """
    start = model.generation.frame.start
    targets = [torch.tensor(pair.target_ids) for pair in pairs]
    if start is None:
        rows = [torch.tensor(pair.prompt_ids + pair.target_ids) for pair in pairs]
        ids = padded([row[:-1] for row in rows], 0).to(model.device)
        labels = padded(
            [
                torch.cat([torch.full((len(pair.prompt_ids) - 1,), IGNORED_LABEL), target])
                for pair, target in zip(pairs, targets, strict=True)
            ],
            IGNORED_LABEL,
        )
        logits = dense_logits(model, ids)
        return Loss(token_loss(logits, labels, len(pairs), label_smoothing), len(pairs))
    sources = padded([torch.tensor(pair.prompt_ids) for pair in pairs], 0).to(model.device)
    lengths = torch.tensor([len(pair.prompt_ids) for pair in pairs], device=model.device)
    mask = torch.arange(sources.shape[1], device=model.device) < lengths[:, None]
    before = [torch.cat([torch.tensor([start]), target[:-1]]) for target in targets]
    labels = padded(targets, IGNORED_LABEL)
    logits = dense_pair_logits(model, sources, mask, padded(before, start).to(model.device), {})
    count = sum(len(target) for target in targets)
    return Loss(token_loss(logits, labels, count, label_smoothing), count)


def padded(rows: Sequence[torch.Tensor], filler: int) -> torch.Tensor:
    """One rectangle [rows, longest]: each row, then `filler`."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filler)


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, divisor: int, label_smoothing: float
) -> torch.Tensor:
    """The summed cross-entropy over `divisor`; logits [rows, tokens, vocabulary]."""
    labels = labels.to(logits.device)
    chosen = labels != IGNORED_LABEL
    summed = cross_entropy(
        logits[chosen].float(), labels[chosen], reduction="sum", label_smoothing=label_smoothing
    )
    return summed / divisor
