"""BLEU is sacrebleu's with any number of references; texts come from the engine."""

from __future__ import annotations

import pytest
import torch

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.training.data import Example
from app.training.evaluation import corpus_bleu, evaluate, running_engine


def test_bleu_is_lower_cased_and_takes_any_number_of_references() -> None:
    texts = ["The Mill is a pub near the river .", "It is cheap and family friendly ."]
    references = [
        ["the mill is a pub near the river."],
        ["No.", "It is cheap and Family friendly."],
    ]
    score, signature = corpus_bleu(texts, references)
    assert score == pytest.approx(100.0)
    assert "case:lc" in signature
    assert "tok:13a" in signature


def test_bleu_falls_with_wrong_words() -> None:
    reference = [["the mill is a cheap pub near the river and it is family friendly"]]
    score, _ = corpus_bleu(["the mill is a cheap pub by the river and it is nice"], reference)
    assert 20 < score < 80


def test_bleu_without_texts_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        corpus_bleu([], [])
    with pytest.raises(InvalidRequest):
        corpus_bleu(["a"], [["a"], ["b"]])


def test_evaluation_uses_the_prefix_its_template_and_its_limit(tiny_gpt2: FrozenModel) -> None:
    shape = tiny_gpt2.spec.decoder
    generator = torch.Generator().manual_seed(1)
    size = (shape.layers, shape.kv_heads, 4, shape.head_dim)
    keys, values = (torch.randn(size, generator=generator) for _ in range(2))
    metadata = PrefixMetadata(4, input_template="{input} ?", decoding={"max_tokens": 3})
    prefix = Prefix({"decoder": KeyValues(keys, values)}, metadata)
    examples = [Example("the fox", ("the dog",), 1), Example("a cat", ("the mat", "a mat"), 2)]
    with running_engine(tiny_gpt2) as engine:
        tuned = evaluate(engine, examples, prefix=prefix)
        longer = evaluate(engine, examples, prefix=prefix, decoding={"max_tokens": 12})
        base = evaluate(engine, examples, decoding={"max_tokens": 5})
        other = evaluate(engine, examples, prefix=prefix, template="{input} !")
    assert len(tuned.texts) == 2
    for short, long in zip(tuned.texts, longer.texts, strict=True):
        assert len(short) < len(long)
        assert long.startswith(short.rstrip("\ufffd"))
    assert tuned.texts != base.texts
    assert tuned.texts != other.texts
    assert 0 <= tuned.bleu <= 100
