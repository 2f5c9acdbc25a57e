"""Batches of token pairs as tensors, and the losses on their targets.

Step `n` of a run always sees the same pairs, so a resumed run continues exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from app.evaluation.text_pairs import TokenPair

IGNORED = -100
_BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: `input_ids` and `labels`, [rows, tokens].

    `labels[r, t]` is the token after token t of row r if it belongs to the target (including the
    end-of-text token), and `IGNORED` otherwise.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class SourceBatch:
    """Right-padded rows for an encoder and a decoder.

    `source_ids` and `source_mask` (True at real tokens) are [rows, source tokens]. `decoder_ids`
    and `labels` are [rows, target tokens]; `decoder_ids` are the labels, shifted right behind the
    start token.
    """

    source_ids: torch.Tensor
    source_mask: torch.Tensor
    decoder_ids: torch.Tensor
    labels: torch.Tensor


class Batches:
    """The order of a data set: shuffled in every epoch, with rows of similar length together."""

    def __init__(self, pairs: Sequence[TokenPair], batch_size: int, seed: int) -> None:
        self._pairs = pairs
        self._size = batch_size
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def at(self, step: int) -> list[TokenPair]:
        """The pairs of step `step`, counted from 0 over all epochs."""
        per_epoch = -(-len(self._pairs) // self._size)
        epoch, index = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._batches = self._shuffled(epoch)
            self._epoch = epoch
        return [self._pairs[pair] for pair in self._batches[index]]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}:{epoch}")
        order = list(range(len(self._pairs)))
        rng.shuffle(order)
        batches = []
        chunk = self._size * _BATCHES_SORTED_TOGETHER
        for start in range(0, len(order), chunk):
            near = sorted(order[start : start + chunk], key=lambda pair: len(self._pairs[pair]))
            batches += [near[i : i + self._size] for i in range(0, len(near), self._size)]
        rng.shuffle(batches)
        return batches


def sample(pairs: Sequence[TokenPair], size: int, seed: int) -> list[TokenPair]:
    """Up to `size` random pairs; the same seed gives the same pairs."""
    return random.Random(f"{seed}:sample").sample(list(pairs), min(size, len(pairs)))


def collate(pairs: Sequence[TokenPair], device: torch.device | None = None) -> Batch:
    """Pad pairs to one rectangle. The last token of a row is only a label, never an input."""
    width = max(len(pair) for pair in pairs) - 1
    input_ids = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full((len(pairs), width), IGNORED, dtype=torch.long)
    for row, pair in enumerate(pairs):
        tokens = torch.tensor(pair.prompt_ids + pair.target_ids)
        input_ids[row, : len(pair) - 1] = tokens[:-1]
        labels[row, len(pair.prompt_ids) - 1 : len(pair) - 1] = tokens[len(pair.prompt_ids) :]
    return Batch(input_ids.to(device), labels.to(device))


def collate_sources(
    pairs: Sequence[TokenPair], start: int, device: torch.device | None = None
) -> SourceBatch:
    """Pad pairs to two rectangles. The decoder's input begins with the token `start`."""
    wide, long = max(len(pair.prompt_ids) for pair in pairs), max(len(p.target_ids) for p in pairs)
    source_ids = torch.zeros(len(pairs), wide, dtype=torch.long)
    mask = torch.zeros(len(pairs), wide, dtype=torch.bool)
    decoder_ids = torch.full((len(pairs), long), start, dtype=torch.long)
    labels = torch.full((len(pairs), long), IGNORED, dtype=torch.long)
    for row, pair in enumerate(pairs):
        source_ids[row, : len(pair.prompt_ids)] = torch.tensor(pair.prompt_ids)
        mask[row, : len(pair.prompt_ids)] = True
        target = torch.tensor(pair.target_ids)
        labels[row, : len(target)] = target
        decoder_ids[row, 1 : len(target)] = target[:-1]
    return SourceBatch(*(part.to(device) for part in (source_ids, mask, decoder_ids, labels)))


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The authors' loss on BART: the mean over all target tokens of the batch.

    `logits` is [rows, tokens, vocabulary], `labels` [rows, tokens].
    """
    chosen = labels != IGNORED
    return cross_entropy(logits[chosen].float(), labels[chosen])


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The authors' loss on GPT-2: the sum of a sentence's token losses, averaged over sentences.

    `logits` is [rows, tokens, vocabulary], `labels` [rows, tokens].
    """
    chosen = labels != IGNORED
    return cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum") / len(labels)
