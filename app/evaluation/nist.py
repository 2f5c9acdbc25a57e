"""NIST as the E2E challenge's scorer computes it; nltk's definition is another one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from app.evaluation.statistics import Floats, Statistics

_ORDER = 5
_BETA = -math.log(0.5) / math.log(1.5) ** 2
"""The penalty is a half where the output is two thirds as long as the references."""

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_Ngram = tuple[str, ...]


def nist_statistics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """NIST with n-grams of up to 5 lower-cased words and any number of references.

    The definition is that of `pymteval` (Dušek's e2e-metrics, after NIST's mteval-v13a): hits are
    clipped by the reference that has most of an n-gram, an n-gram's information is counted over
    all references, and the length penalty compares with the mean length of an input's references.

    A row has, for each order, information of hits and number of n-grams; then the mean length.
    """
    tokens = [_tokens(text) for text in texts]
    accepted = [[_tokens(text) for text in of_text] for of_text in references]
    seen = _reference_counts(accepted)
    rows = []
    for words, of_text in zip(tokens, accepted, strict=True):
        information = [_hit_information(words, of_text, order, seen) for order in _ORDERS]
        lengths = [len(words) - order + 1 for order in _ORDERS]
        rows.append([*information, *lengths, sum(map(len, of_text)) / len(of_text)])
    return Statistics(np.array(rows, dtype=np.float64), _combined)


_ORDERS = range(1, _ORDER + 1)


def _combined(sums: Floats) -> Floats:
    information, lengths = sums[:, :_ORDER], sums[:, _ORDER : 2 * _ORDER]
    # texts of fewer than five words have no 5-grams, and so no hits either
    gained = (information / np.where(lengths > 0, lengths, 1)).sum(axis=1)
    ratio = np.clip(lengths[:, 0] / sums[:, 2 * _ORDER], 1e-9, 1)
    return np.asarray(gained * np.exp(-_BETA * np.log(ratio) ** 2))


def _reference_counts(accepted: Sequence[Sequence[Sequence[str]]]) -> Counter[_Ngram]:
    """How often each n-gram is in the references; of the empty one, how many words there are."""
    counts: Counter[_Ngram] = Counter()
    for of_text in accepted:
        for words in of_text:
            counts[()] += len(words)
            for order in _ORDERS:
                counts.update(_ngrams(words, order))
    return counts


def _hit_information(
    words: Sequence[str], of_text: Sequence[Sequence[str]], order: int, seen: Counter[_Ngram]
) -> float:
    most: Counter[_Ngram] = Counter()
    for reference in of_text:
        most |= Counter(_ngrams(reference, order))
    hits = Counter(_ngrams(words, order)) & most
    return sum(count * math.log2(seen[ngram[:-1]] / seen[ngram]) for ngram, count in hits.items())


def _ngrams(words: Sequence[str], order: int) -> list[_Ngram]:
    return [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]


def _tokens(text: str) -> list[str]:
    """Words and marks as mteval-v13a splits Western languages, lower-cased."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for rule, replacement in _RULES:
        text = rule.sub(replacement, text)
    return text.lower().split() or [""]
