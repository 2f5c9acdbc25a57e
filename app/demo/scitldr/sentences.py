"""The sentences of an abstract, and how one reads when it is alone."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_ABBREVIATION = re.compile(r"(?:\b(?:al|e\.g|i\.e|cf|vs|resp|Fig|Eq|Sec)\.|\b[A-Z]\.)$")
_FEWEST_WORDS = 5
_OPENING = re.compile(
    r"(?:In (?:this|the present) (?:paper|work|article|study|report)|Here)(?:,\s*|\s+(?=we\b))"
    r"|(?:To this end|To address (?:this|these) \w+|Specifically|More specifically|In particular"
    r"|Furthermore|Moreover|Additionally|In addition|Finally|However|Therefore|Thus|Hence|Also"
    r"|Then|First|As a result|Consequently|(?:Motivated|Inspired) by [^,()]+|Based on [^,()]+),\s*"
)
_FEWEST_WORDS_LEFT = 8


def whole_sentences(abstract: str) -> list[str]:
    """Its sentences of five words or more that begin and end as sentences do.

    An abbreviation such as "et al." does not end a sentence. The whole abstract if none is left.
    """
    parts: list[str] = []
    for part in _END.split(" ".join(abstract.split())):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    whole = [part for part in parts if len(part.split()) >= _FEWEST_WORDS and is_whole(part)]
    return whole or [abstract]


def is_whole(text: str) -> bool:
    """Whether the text begins with a capital letter and ends with a full stop, ? or !."""
    return text[:1].isupper() and text[-1:] in tuple(".?!")


def without_opening(sentence: str) -> str:
    """The sentence without "In this paper," and the like, as long as eight words remain."""
    left = sentence
    while (opening := _OPENING.match(left)) and _long_enough(left[opening.end() :]):
        left = left[opening.end() :]
    return left[:1].upper() + left[1:]


def _long_enough(text: str) -> bool:
    return len(text.split()) >= _FEWEST_WORDS_LEFT
