"""Batches of token pairs as tensors.

Step `n` of a run always sees the same pairs, so a resumed run continues exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair, source_pairs, token_pairs
from app.model.frozen import FrozenModel
from app.model.packed import padded_rows
from app.model.sequences.packed_tokens import PackedTokens, pack_tokens

Item = TypeVar("Item")

IGNORED = -100
"""The label of a token that does not count."""
_BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, and the targets among their tokens.

    `keep` [kept] holds the indices of the tokens that are followed by a target token (including the
    end-of-text token), and `labels` [kept] that target token. The last few may be `IGNORED`: they
    keep the number of row counts small. `sources` is for a model with an encoder.
    """

    tokens: PackedTokens
    keep: torch.Tensor
    labels: torch.Tensor
    sources: PackedTokens | None = None


def pairs_behind(
    model: FrozenModel,
    examples: Sequence[Example],
    template: str,
    *,
    offset: int,
    source_room: int | None,
    source: str,
) -> list[TokenPair]:
    """The pairs of examples as tokens, behind prefixes of `offset` positions.

    `source_room` is how many tokens of an input an encoder reads; None without an encoder.
    InvalidRequest names `source` and the line of an example that does not fit.
    """
    room = model.spec.context_limit - offset
    if room < 2:
        raise InvalidRequest(
            f"prefixes of {offset} positions leave no room for text in a model with"
            f" {model.spec.context_limit} positions"
        )
    if source_room is None:
        return token_pairs(examples, model.text, template, room=room, source=source)
    return source_pairs(
        examples,
        model.text,
        template,
        source_room=source_room,
        target_room=room,
        first=model.generation.frame.forced_first,
        source=source,
    )


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


def sample(items: Sequence[Item], size: int, seed: int) -> list[Item]:
    """Up to `size` random items, pairs for example; the same seed gives the same ones."""
    return random.Random(f"{seed}:sample").sample(list(items), min(size, len(items)))


def by_length(pair: TokenPair) -> tuple[int, ...]:
    """The key that sorts the rows of a decoder alone, so that equally long rows are neighbours."""
    return (len(pair),)


def by_source_length(pair: TokenPair) -> tuple[int, ...]:
    """The same for an encoder and a decoder."""
    return len(pair.prompt_ids), len(pair.target_ids)


def collate(
    pairs: Sequence[TokenPair],
    *,
    position_offset: int | Sequence[int] = 0,
    device: torch.device | None = None,
) -> Batch:
    """Lay pairs end to end for a decoder alone. A row's last token is only a label.

    Positions count from `position_offset`: one number, or one for each pair.
    """
    rows = [(*pair.prompt_ids, *pair.target_ids) for pair in pairs]
    tokens = pack_tokens([row[:-1] for row in rows], position_offset=position_offset, device=device)
    starts = accumulate((len(row) - 1 for row in rows), initial=0)
    keep = [
        start + place
        for start, row, pair in zip(starts, rows, pairs, strict=False)
        for place in range(len(pair.prompt_ids) - 1, len(row) - 1)
    ]
    labels = [token for pair in pairs for token in pair.target_ids]
    return Batch(tokens, *_kept(keep, labels, device))


def collate_sources(
    pairs: Sequence[TokenPair],
    start: int,
    *,
    position_offset: int | Sequence[int] = 0,
    device: torch.device | None = None,
) -> Batch:
    """Lay pairs end to end for an encoder and a decoder, whose input begins with token `start`.

    The decoder's positions count from `position_offset`, as in `collate`; the encoder's from 0.
    """
    written = [(start, *pair.target_ids[:-1]) for pair in pairs]
    tokens = pack_tokens(written, position_offset=position_offset, device=device)
    labels = [token for pair in pairs for token in pair.target_ids]
    sources = pack_tokens([pair.prompt_ids for pair in pairs], device=device)
    return Batch(tokens, *_kept(list(range(len(labels))), labels, device), sources)


def _kept(
    keep: list[int], labels: list[int], device: torch.device | None
) -> tuple[torch.Tensor, torch.Tensor]:
    extra = padded_rows(len(keep)) - len(keep)
    made = torch.tensor([keep + [0] * extra, labels + [IGNORED] * extra], device=device)
    return made[0], made[1]
