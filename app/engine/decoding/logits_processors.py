"""Bans, biases and penalties for a batch of rows at once, in the order of transformers.

Every processor becomes one list of (row, token) places and one operation on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.decoding.history import TokenHistory, TokenIds, banned_by_ngrams
from app.engine.sequence import TokenSequence

_Values = NDArray[np.float32]


class _Item(NamedTuple):
    """Tokens of the row at `place` in the batch, and a number for each of them."""

    place: int
    tokens: TokenIds
    values: _Values


def is_processed(row: TokenSequence) -> bool:
    """Whether the row's logits change before its next token is chosen."""
    return row.must_not_end or row.request.sampling.changes_logits


def process(
    logits: torch.Tensor, rows: Sequence[TokenSequence], eos_token_ids: Collection[int]
) -> None:
    """Change the rows' logits (or log-probabilities) [rows, vocabulary] in place.

    They are contiguous, and no two rows share them. Tokens that the model does not have are left
    out: nothing has to keep it from them.
    """
    indexed = [(index, row) for index, row in enumerate(rows) if is_processed(row)]
    banned = _Places(logits, _bans(indexed, eos_token_ids))
    if banned:
        banned.set(banned.values)
    biased = _Places(logits, _biases(indexed))
    if biased:
        biased.set(biased.get() + biased.values)
    repeated = _Places(logits, _repetitions(indexed))
    if repeated:
        values, penalty = repeated.get(), repeated.values
        repeated.set(torch.where(values > 0, values / penalty, values * penalty))
    counted = _Places(logits, _counts(indexed))
    if counted:
        counted.set(counted.get() - counted.values)


class _Places:
    """Places in logits [rows, vocabulary], each once for any row but for bans."""

    def __init__(self, logits: torch.Tensor, items: Iterable[_Item]) -> None:
        vocabulary = logits.shape[1]
        places: list[TokenIds] = []
        values: list[_Values] = []
        for item in items:
            known = (item.tokens >= 0) & (item.tokens < vocabulary)
            places.append(item.tokens[known] + item.place * vocabulary)
            values.append(item.values[known])
        self._flat = logits.view(-1)
        joined = np.concatenate(places) if places else np.zeros(0, np.int64)
        self._at = torch.from_numpy(joined).to(logits.device)
        self.values = torch.from_numpy(
            np.concatenate(values) if values else np.zeros(0, np.float32)
        ).to(logits.device)

    def __bool__(self) -> bool:
        return len(self._at) > 0

    def get(self) -> torch.Tensor:
        return self._flat[self._at]

    def set(self, values: torch.Tensor) -> None:
        self._flat[self._at] = values


def _bans(
    rows: Iterable[tuple[int, TokenSequence]], eos_token_ids: Collection[int]
) -> Iterable[_Item]:
    """Tokens that would repeat an n-gram, and the end where it is too early for it."""
    for index, row in rows:
        size = row.request.sampling.no_repeat_ngram_size
        if size:
            yield _item(index, banned_by_ngrams(_history(row).tokens, size), -math.inf)
        if row.must_not_end:
            yield _item(index, np.array(sorted(eos_token_ids), np.int64), -math.inf)


def _biases(rows: Iterable[tuple[int, TokenSequence]]) -> Iterable[_Item]:
    for index, row in rows:
        if row.request.sampling.logit_bias:
            yield _Item(index, *row.request.sampling.bias)


def _repetitions(rows: Iterable[tuple[int, TokenSequence]]) -> Iterable[_Item]:
    for index, row in rows:
        penalty = row.request.sampling.repetition_penalty
        if penalty != 1:
            yield _item(index, _history(row).distinct, penalty)


def _counts(rows: Iterable[tuple[int, TokenSequence]]) -> Iterable[_Item]:
    """Presence and frequency penalties of generated tokens."""
    for index, row in rows:
        sampling = row.request.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            history = _history(row)
            generated = history.counts > 0
            penalties = sampling.presence_penalty + (
                sampling.frequency_penalty * history.counts[generated]
            )
            yield _Item(index, history.distinct[generated], penalties.astype(np.float32))


def _item(index: int, tokens: TokenIds, value: float) -> _Item:
    return _Item(index, tokens, np.full(len(tokens), value, np.float32))


def _history(row: TokenSequence) -> TokenHistory:
    """The row's tokens up to now."""
    if row.history is None:
        row.history = TokenHistory(row.num_prompt)
    row.history.catch_up(row.token_ids)
    return row.history
