"""Tasks on a passage of several sentences; every answer consists of its own words."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[A-Z#\"“(])")
_WORD = re.compile(r"\w+")
_SHORT_SENTENCE = 4
"""Sentences with fewer words are too short for a task."""

Exchange = tuple[str, str]
"""(source, answer)"""


def sentences(text: str) -> list[str]:
    """The sentences of a passage, unchanged. Abbreviations count as ends of sentences."""
    return [sentence for sentence in _BOUNDARY.split(text) if sentence]


def central(parts: Sequence[str]) -> int:
    """The index of the sentence that shares most words with the others.

    The measure is the F1 of distinct words, by which PEGASUS (Zhang et al. 2020) picks sentences.
    """
    words = [set(_words(part)) for part in parts]
    holders = Counter(word for own in words for word in own)

    def score(index: int) -> float:
        own = words[index]
        rest = sum(1 for word, count in holders.items() if count > 1 or word not in own)
        shared = sum(1 for word in own if holders[word] > 1)
        return 2 * shared / (len(own) + rest) if len(own) >= _SHORT_SENTENCE else 0.0

    return max(range(len(parts)), key=score)


def gap_sentence(parts: Sequence[str], rng: random.Random) -> Exchange:
    """Ask for the most central sentence; two times out of three the passage lacks it."""
    chosen = central(parts)
    left = [part for index, part in enumerate(parts) if index != chosen]
    source = left if rng.random() < 2 / 3 else parts
    return " ".join(source), parts[chosen]


def first_sentence(parts: Sequence[str], _rng: random.Random) -> Exchange:
    """Ask for the first sentence."""
    return " ".join(parts), parts[0]


def last_sentence(parts: Sequence[str], _rng: random.Random) -> Exchange:
    """Ask for the last sentence."""
    return " ".join(parts), parts[-1]


def sentence_with(parts: Sequence[str], rng: random.Random) -> Exchange:
    """Ask for the sentence with a word that occurs only there."""
    holders = Counter(word for part in parts for word in set(_words(part)))
    index = rng.randrange(len(parts))
    rare = [word for word in _words(parts[index]) if holders[word] == 1 and len(word) > 3]
    if not rare:
        return first_sentence(parts, rng)
    return f"{rng.choice(rare)} ? {' '.join(parts)}", parts[index]


def in_order(parts: Sequence[str], rng: random.Random) -> Exchange:
    """Ask to put two to four shuffled sentences back in order."""
    start = rng.randrange(len(parts) - 1)
    run = list(parts[start : start + rng.randint(2, 4)])
    shuffled = rng.sample(run, len(run))
    return " ".join(shuffled), " ".join(run)


_TASKS: tuple[tuple[tuple[str, ...], Callable[[Sequence[str], random.Random], Exchange], int], ...]
_TASKS = (
    (("main point :", "most important sentence :"), gap_sentence, 44),
    (("first sentence :", "how it begins :"), first_sentence, 14),
    (("last sentence :", "how it ends :"), last_sentence, 14),
    (("find :", "sentence with"), sentence_with, 16),
    (("in order :", "sort :"), in_order, 12),
)


def ask(text: str, rng: random.Random) -> Exchange | None:
    """A task on a passage, with its name first; None if it has fewer than two sentences."""
    parts = sentences(text)
    if len(parts) < 2:
        return None
    phrases, make, _ = rng.choices(_TASKS, [weight for *_, weight in _TASKS])[0]
    source, answer = make(parts, rng)
    return f"{rng.choice(phrases)} {source}", answer


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
