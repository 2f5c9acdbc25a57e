"""Log-probabilities under the unmodified model, of tokens that were sampled or given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from app.engine.decoding.reductions import top
from app.engine.sequence import TokenSequence
from app.engine.step import Sampled

TokenScores = tuple[float, tuple[tuple[int, float], ...]]
"""A token's log-probability, then (token, log-probability) of the best ones."""


class Scores:
    """Log-probabilities of one token per row of [rows, vocabulary] logits, and of the best ones.

    They stay on the device until they are listed. `num_top` is the number of alternatives.
    """

    def __init__(self, logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> None:
        logprobs = torch.log_softmax(logits, dim=-1)
        self._values = logprobs.gather(1, tokens[:, None])[:, 0]
        self._tops = top(logprobs, min(num_top, logprobs.shape[1])) if num_top else None

    def __iter__(self) -> Iterator[TokenScores]:
        """Those of each row."""
        values = self._values.tolist()
        if self._tops is None:
            yield from ((value, ()) for value in values)
            return
        top_values, top_tokens = (tensor.tolist() for tensor in self._tops)
        for value, others, logprobs in zip(values, top_tokens, top_values, strict=True):
            yield value, tuple(zip(others, logprobs, strict=True))


def score_tokens(
    logits: torch.Tensor, row: TokenSequence, token_ids: Sequence[int], num_top: int
) -> list[Sampled]:
    """Log-probabilities of given tokens under `logits` [tokens, vocabulary], with alternatives."""
    scores = Scores(logits, torch.tensor(token_ids, device=logits.device), num_top)
    return [
        Sampled(row, token, value, others)
        for token, (value, others) in zip(token_ids, scores, strict=True)
    ]
