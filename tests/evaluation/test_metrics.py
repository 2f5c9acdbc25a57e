"""BLEU is sacrebleu's and ROUGE rouge-score's, each with any number of references."""

from __future__ import annotations

import pytest

from app.errors import InvalidRequest
from app.evaluation.metrics import corpus_bleu, mean_rouge


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
    with pytest.raises(InvalidRequest):
        mean_rouge([], [])


def test_rouge_is_the_mean_f1_of_stemmed_words_against_the_best_reference() -> None:
    texts = ["The fox jumped.", "a b c d"]
    references = [["nothing at all", "the fox jumping"], ["a c x y"]]
    rouge = mean_rouge(texts, references)
    assert rouge.rouge1 == pytest.approx(100 * (1 + 0.5) / 2)
    assert rouge.rouge2 == pytest.approx(100 * (1 + 0) / 2)
    assert rouge.rougeL == pytest.approx(100 * (1 + 0.5) / 2)
    assert rouge.rounded() == {"rouge1": 75.0, "rouge2": 50.0, "rougeL": 75.0}


def test_rouge_of_an_empty_text_is_zero() -> None:
    assert mean_rouge([""], [["a word"]]).rouge1 == 0
