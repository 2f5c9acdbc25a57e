"""Labels cover the target alone, and the loss is the authors'."""

from __future__ import annotations

import math
from collections import Counter

import torch

from app.evaluation.text_pairs import TokenPair
from app.training.batches import IGNORED, Batches, collate, summed_loss

SHORT = TokenPair((5, 6, 0), (7, 0))
LONG = TokenPair((1, 0), (2, 3, 4, 0))


def test_only_target_tokens_count() -> None:
    batch = collate([SHORT, LONG])
    assert batch.input_ids.tolist() == [[5, 6, 0, 7, 0], [1, 0, 2, 3, 4]]
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, 7, 0, IGNORED],
        [IGNORED, 2, 3, 4, 0],
    ]


def test_loss_is_summed_per_sentence_and_averaged_over_sentences() -> None:
    batch = collate([SHORT, LONG])
    logits = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    by_hand = 0.0
    for row, places in ((0, (2, 3)), (1, (1, 2, 3, 4))):
        for place in places:
            scores = logits[row, place].tolist()
            normal = math.log(sum(math.exp(score) for score in scores))
            by_hand += normal - scores[int(batch.labels[row, place])]
    assert math.isclose(summed_loss(logits, batch.labels).item(), by_hand / 2, rel_tol=1e-5)


def test_an_epoch_sees_every_pair_once_in_an_order_that_the_seed_decides() -> None:
    data = [TokenPair((1,) * length, (2, 0)) for length in range(1, 24)]
    batches, again = Batches(data, 4, seed=1), Batches(data, 4, seed=1)
    first = [batches.at(step) for step in range(6)]
    assert Counter(pair for batch in first for pair in batch) == Counter(data)
    assert [again.at(step) for step in (3, 0)] == [first[3], first[0]]
    assert [batches.at(step) for step in range(6, 12)] != first
    assert [Batches(data, 4, seed=2).at(step) for step in range(6)] != first
