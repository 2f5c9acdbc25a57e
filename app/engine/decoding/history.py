"""The tokens of one sequence, counted as they come: what bans and penalties look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

TokenIds: TypeAlias = NDArray[np.int64]


class TokenHistory:
    """A sequence of prompt and generated tokens that only grows.

    `num_prompt` tokens come before the first generated one. Each new token costs the same, however
    long the sequence is.
    """

    def __init__(self, num_prompt: int) -> None:
        self._num_prompt = num_prompt
        self._tokens, self._distinct, self._counts = (np.zeros(16, np.int64) for _ in range(3))
        self._num_tokens = 0
        self._places: dict[int, int] = {}

    @property
    def tokens(self) -> TokenIds:
        return self._tokens[: self._num_tokens]

    @property
    def distinct(self) -> TokenIds:
        """Every token that occurs, once."""
        return self._distinct[: len(self._places)]

    @property
    def counts(self) -> TokenIds:
        """How often each token of `distinct` was generated; 0 if it is only in the prompt."""
        return self._counts[: len(self._places)]

    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Take in what `token_ids`, the whole sequence, has gained since the last call."""
        room = len(token_ids)
        if room > len(self._tokens):
            self._tokens, self._distinct, self._counts = (
                np.concatenate([kept, np.zeros(room, np.int64)])
                for kept in (self._tokens, self._distinct, self._counts)
            )
        for token in token_ids[self._num_tokens :]:
            place = self._places.setdefault(token, len(self._places))
            self._distinct[place] = token
            self._counts[place] += self._num_tokens >= self._num_prompt
            self._tokens[self._num_tokens] = token
            self._num_tokens += 1

    def copy(self) -> TokenHistory:
        """One that goes on by itself, for a beam that branches."""
        other = TokenHistory(self._num_prompt)
        other._tokens, other._distinct, other._counts = (
            kept.copy() for kept in (self._tokens, self._distinct, self._counts)
        )
        other._num_tokens = self._num_tokens
        other._places = dict(self._places)
        return other


def banned_by_ngrams(tokens: TokenIds, size: int) -> TokenIds:
    """Tokens that would complete an n-gram of `size` tokens that `tokens` already has.

    As `NoRepeatNGramLogitsProcessor` of transformers: `tokens` is prompt and generated tokens of a
    decoder-only model, the decoder's tokens (its start token included) of an encoder-decoder one.
    """
    if size < 1 or len(tokens) < size:
        return tokens[:0]
    ends = np.arange(size - 1, len(tokens))  # where an n-gram ends
    for back in range(1, size):
        ends = ends[tokens[ends - back] == tokens[-back]]
    return tokens[ends]
