"""Which sentence of an abstract is most like its summary: a linear model of words and places.

It is trained to maximise the expected ROUGE of the chosen sentence, so it prefers what is good in
most abstracts to what was best in a single one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import numpy as np

from app.demo.scitldr.sentences import whole_sentences, without_opening
from app.evaluation.baselines import contribution_sentence
from app.evaluation.metrics import mean_rouge

STEPS = 30
"""Chosen on the development part; after more steps the scores there fall."""
_RATE = 0.01
_FEWEST_SENTENCES = 20
"""Features of fewer training sentences are ignored."""
_FIRST_WORDS = 12
_WORD = re.compile(r"\w+")


class SentenceRanker:
    """One weight for each feature: the first words, pairs of them, place, length, the regex."""

    def __init__(self) -> None:
        """A ranker without training, which chooses the first sentence."""
        self._weights: dict[str, float] = {}

    def train(self, abstracts: Sequence[str], summaries: Sequence[str]) -> None:
        """Learn from abstracts and the summary of each, by Adam on all of them at once."""
        sentences = [whole_sentences(abstract) for abstract in abstracts]
        gains = [
            _mean_rouge(without_opening(sentence), summary)
            for own, summary in zip(sentences, summaries, strict=True)
            for sentence in own
        ]
        features = list(chain.from_iterable(map(_features, abstracts, sentences)))
        number = Counter(chain.from_iterable(features))
        known = [name for name, count in number.items() if count >= _FEWEST_SENTENCES]
        if known:
            starts = np.cumsum([0, *map(len, sentences)])[:-1]
            weights = _fit(_Rows(features, known), np.array(gains), starts)
            self._weights = dict(zip(known, weights.tolist(), strict=True))

    def pick(self, abstract: str) -> str:
        """The sentence with the highest score, as it is in the abstract."""
        sentences = whole_sentences(abstract)
        scores = [
            sum(self._weights.get(name, 0.0) for name in features)
            for features in _features(abstract, sentences)
        ]
        return sentences[int(np.argmax(scores))]


class _Rows:
    """A sparse matrix of zeros and ones: sentences by features."""

    def __init__(self, features: Sequence[Iterable[str]], known: Sequence[str]) -> None:
        column = {name: number for number, name in enumerate(known)}
        cells = [
            (row, column[name])
            for row, names in enumerate(features)
            for name in names
            if name in column
        ]
        self._row, self._column = np.array(cells).T
        self.shape = len(features), len(known)

    def times(self, weights: np.ndarray) -> np.ndarray:
        """The score of each sentence."""
        return np.bincount(self._row, weights[self._column], self.shape[0])

    def transposed_times(self, values: np.ndarray) -> np.ndarray:
        """For each feature, the sum over its sentences."""
        return np.bincount(self._column, values[self._row], self.shape[1])


def _fit(rows: _Rows, gains: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Weights after `STEPS` steps of Adam; `starts` are the first sentences of the abstracts."""
    weights, mean, square = np.zeros((3, rows.shape[1]))
    sizes = np.diff([*starts, rows.shape[0]])
    for step in range(1, STEPS + 1):
        scores = rows.times(weights)
        shares = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
        shares /= np.repeat(np.add.reduceat(shares, starts), sizes)
        expected = np.repeat(np.add.reduceat(shares * gains, starts), sizes)
        gradient = rows.transposed_times(shares * (gains - expected)) / len(starts)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        weights = weights + _RATE * mean / (1 - 0.9**step) / corrected
    return weights


def _features(abstract: str, sentences: Sequence[str]) -> list[list[str]]:
    by_rule = contribution_sentence(abstract)
    found = []
    for place, sentence in enumerate(sentences):
        words = [word.lower() for word in _WORD.findall(sentence)]
        first = words[:_FIRST_WORDS]
        names = {
            *(f"word {word}" for word in first),
            *(f"pair {one} {other}" for one, other in pairwise(first)),
            f"begins {first[0]}" if first else "begins",
            f"place {min(place, 5)}",
            f"from the end {min(len(sentences) - 1 - place, 3)}",
            f"length {min(len(words) // 6, 8)}",
        }
        if by_rule in sentence:
            names.add("rule")
        found.append(sorted(names))
    return found


def _mean_rouge(text: str, summary: str) -> float:
    rouge = mean_rouge([text], [[summary]])
    return (rouge.rouge1 + rouge.rouge2 + rouge.rougeL) / 300
