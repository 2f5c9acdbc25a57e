"""Rows lie end to end, and labels cover the target alone."""

from __future__ import annotations

from collections import Counter

from app.evaluation.text_pairs import TokenPair
from app.training.batches import IGNORED, Batches, collate

SHORT = TokenPair((5, 6, 0), (7, 0))
LONG = TokenPair((1, 0), (2, 3, 4, 0))


def test_rows_lie_end_to_end_and_only_target_tokens_count() -> None:
    batch = collate([SHORT, LONG], position_offset=3)
    assert batch.tokens.ids.tolist() == [[5, 6, 0, 7, 1, 0, 2, 3, 4]]
    assert batch.tokens.positions.tolist() == [[3, 4, 5, 6, 3, 4, 5, 6, 7]]
    assert batch.tokens.lengths == (4, 5)
    assert batch.keep.tolist() == [2, 3, 5, 6, 7, 8]
    assert batch.labels.tolist() == [7, 0, 2, 3, 4, 0]
    assert batch.sources is None


def test_what_fills_a_batch_up_to_a_usual_row_count_does_not_count() -> None:
    pairs = [TokenPair((1, 2), (3,) * length) for length in range(2, 12)]
    batch = collate(pairs)
    counted = batch.labels != IGNORED
    assert int(counted.sum()) == sum(len(pair.target_ids) for pair in pairs) < len(batch.labels)
    assert sum(batch.tokens.lengths) < batch.tokens.ids.shape[1]


def test_an_epoch_sees_every_pair_once_in_an_order_that_the_seed_decides() -> None:
    data = [TokenPair((1,) * length, (2, 0)) for length in range(1, 24)]
    batches, again = Batches(data, 4, seed=1), Batches(data, 4, seed=1)
    first = [batches.at(step) for step in range(6)]
    assert Counter(pair for batch in first for pair in batch) == Counter(data)
    assert [again.at(step) for step in (3, 0)] == [first[3], first[0]]
    assert [batches.at(step) for step in range(6, 12)] != first
    assert [Batches(data, 4, seed=2).at(step) for step in range(6)] != first
