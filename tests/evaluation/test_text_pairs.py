"""Examples become token ids as the authors write them; one that does not fit is named."""

from __future__ import annotations

import pytest

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.text_pairs import token_pairs
from app.model.frozen import FrozenModel

TEMPLATE = " {input} <|endoftext|>"


def test_pairs_have_the_authors_form(trainable: FrozenModel) -> None:
    text = trainable.text
    end = min(text.eos_token_ids)
    (pair,) = token_pairs([Example("a : b", ("B.",), 1)], text, TEMPLATE, room=50, source="")
    assert list(pair.prompt_ids) == [*text.encode(" a : b "), end]
    assert list(pair.target_ids) == [*text.encode(" B. "), end]


def test_special_tokens_in_the_data_stay_text(trainable: FrozenModel) -> None:
    example = Example("x", ("y <|endoftext|> z",), 1)
    (pair,) = token_pairs([example], trainable.text, TEMPLATE, room=50, source="")
    assert pair.target_ids.count(min(trainable.text.eos_token_ids)) == 1


def test_an_example_that_does_not_fit_is_named(trainable: FrozenModel) -> None:
    with pytest.raises(InvalidRequest, match=r"d\.jsonl:7: .* room for 3"):
        token_pairs(
            [Example("long input", ("t",), 7)],
            trainable.text,
            TEMPLATE,
            room=3,
            source="d.jsonl",
        )
