"""Suggestions about training data."""

from __future__ import annotations

from app.datasets.example import Example
from app.evaluation.text_pairs import TokenPair
from app.training.data_advice import FEW_PAIRS, data_advice

MANY = [Example(f"input {n}", (f"target {n}",), n + 1) for n in range(FEW_PAIRS)]
HELD = [Example("another input", ("another target",), 1)]


def pairs(count: int = FEW_PAIRS, source: int = 4, target: int = 4) -> list[TokenPair]:
    return [TokenPair((1,) * source, (2,) * target) for _ in range(count)]


def test_good_data_give_no_advice() -> None:
    assert data_advice(MANY, pairs(), HELD, {"max_tokens": 16}, source_room=10) == []


def test_each_weakness_is_named() -> None:
    same = [Example(f"input {n}", ("yes",), n + 1) for n in range(FEW_PAIRS)]
    twice = [Example("input", ("a", "a"), 1), *MANY]
    shared = [*HELD, Example("input 7", ("x",), 2)]
    for examples, token_pairs, held, room, said in (
        (MANY[:3], pairs(3), HELD, None, "only 3 pairs"),
        (MANY, pairs(), [], None, "no validation data"),
        (twice, pairs(), HELD, None, "1 pairs of input and target are given more than once"),
        (same, pairs(), HELD, None, "All targets are the same"),
        (MANY, pairs(), shared, None, "1 of 2 validation inputs are in the training data too"),
        (MANY, pairs(source=9), HELD, 9, "50 of 50 inputs fill all 9 tokens"),
        (MANY, pairs(target=17), HELD, None, "end after 16 tokens"),
    ):
        (advice,) = data_advice(examples, token_pairs, held, {"max_tokens": 16}, source_room=room)
        assert said in advice


def test_the_advice_on_shared_inputs_names_both_lines() -> None:
    (advice,) = data_advice(MANY, pairs(), [Example("input 7", ("x",), 3)], {})
    assert "line 3" in advice
    assert "line 8 there" in advice
