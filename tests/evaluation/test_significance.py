"""The paired bootstrap is sacrebleu's, for any metric, with an interval of the difference."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from app.errors import InvalidRequest
from app.evaluation.scores import bleu_statistics
from app.evaluation.significance import paired_bootstrap
from app.evaluation.statistics import mean_of

WORDS = [
    "the",
    "mill",
    "is",
    "a",
    "cheap",
    "pub",
    "near",
    "the",
    "river",
    "and",
    "it",
    "is",
    "family",
    "friendly",
]


def systems() -> tuple[list[str], list[str], list[str]]:
    """References, and the outputs of two systems that make different mistakes."""
    generator = np.random.default_rng(5)
    references = [" ".join(generator.permutation(WORDS)) for _ in range(30)]

    def spoilt(share: float) -> list[str]:
        return [
            " ".join("x" if generator.random() < share else word for word in each.split())
            for each in references
        ]

    return references, spoilt(0.2), spoilt(0.24)


def test_the_p_value_is_sacrebleus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    references, better, worse = systems()
    ours = paired_bootstrap(
        *(bleu_statistics(texts, [[each] for each in references]) for texts in (better, worse)),
        samples=200,
    )
    metric = BLEU(lowercase=True, references=[references])
    theirs = PairedTest(
        [("worse", worse), ("better", better)], {"BLEU": metric}, None, "bs", n_samples=200
    )
    _, results = theirs()
    (other, system) = next(scores for name, scores in results.items() if name != "System")
    assert ours.difference == pytest.approx(system.score - other.score)
    assert ours.p_value == pytest.approx(system.p_value)
    assert ours.low < ours.difference < ours.high


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    good, bad = (
        mean_of([80.0 + n % 3 for n in range(50)]),
        mean_of([70.0 + n % 5 for n in range(50)]),
    )
    clear = paired_bootstrap(good, bad)
    assert clear.p_value < 0.01
    assert 0 < clear.low < clear.difference < clear.high
    none = paired_bootstrap(good, good)
    assert (none.difference, none.low, none.high) == (0, 0, 0)
    assert paired_bootstrap(bad, good).difference == -clear.difference


def test_the_seed_decides() -> None:
    one, two = mean_of([1.0, 2.0, 4.0, 8.0]), mean_of([2.0, 2.0, 3.0, 5.0])
    assert paired_bootstrap(one, two, seed=1) == paired_bootstrap(one, two, seed=1)
    assert paired_bootstrap(one, two, seed=1) != paired_bootstrap(one, two, seed=2)


def test_other_inputs_cannot_be_compared() -> None:
    with pytest.raises(InvalidRequest, match="same inputs"):
        paired_bootstrap(mean_of([1.0]), mean_of([1.0, 2.0]))
