"""How E2E's texts say the values of a restaurant's fields.

The idea of matching slots by patterns is Dušek et al.'s (2019); the phrases were collected from the
development references.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

_KIDS = r"(?:kids?|child(?:ren)?s?|famil(?:y|ies))(?:'s)?"
_FRIENDLY = rf"{_KIDS}[- ]*(?:friendly|oriented|orientated)"
_RATING = r"(?:rat(?:ings?|ed)|reviews?|stars?|scores?)"
_WORDS = r"(?:[- ](?!and\b|with\b|but\b|has\b|have\b)\w+){0,3}"
"""Some words of the same phrase."""
_NOT = r"(?:not|non|isn'?t|no|never|un|doesn'?t|does not|don'?t|aren'?t|nor|without)"

NAMES = ("name", "near")
"""Fields whose values are names, which texts repeat to the letter."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "Type": "eatType",
        "price": "priceRange",
        "rating": "customer rating",
        "family friendly": "familyFriendly",
    }
)
"""The authors' names of fields, and the challenge's."""

NOT_FAMILY = (
    rf"{_NOT}[- ](?:\w+[- ]){{0,4}}{_FRIENDLY}",
    rf"{_KIDS}[- ]unfriendly",
    rf"{_NOT} (?:\w+ ){{0,4}}{_KIDS}",
    rf"{_KIDS} (?:\w+ ){{0,2}}(?:not|aren'?t|isn'?t)",
    r"adults?[- ]only|only (?:for )?adults|adults? (?:establish\w*|venue|place|restaurant|area)",
)
FAMILY = (
    _FRIENDLY,
    rf"friendly (?:\w+ ){{0,3}}{_KIDS}",
    rf"(?:for|welcom\w*|allow\w*|accept\w*|bring|suit\w*|good|great|caters?)"
    rf" (?:\w+ ){{0,4}}{_KIDS}",
    rf"{_KIDS} (?:are |is )?(?:welcome|allowed|place|restaurant|environment|atmosphere|venue)",
)

_PRICE = r"(?:price[ds]?|pricing|costs?)"


def _rated(words: str) -> tuple[str, ...]:
    return (
        rf"(?:{words})(?:ly)?{_WORDS}[- ]{_RATING}",
        rf"{_RATING}{_WORDS} (?:{words})",
    )


def _priced(words: str) -> tuple[str, ...]:
    return (rf"(?:{words})[- ](?:\w+[- ])?pric\w+", rf"{_PRICE}{_WORDS} (?:{words})")


_LOW, _AVERAGE = _rated("low|poor|bad"), _rated("average|moderate|decent")
_HIGH = _rated("high|highly|excellent|great|good|well|top")
_CHEAP = (r"cheap\w*", r"inexpensive\w*", r"affordabl\w+", r"low[- ]*cost", *_priced("low"))
_MIDDLE = (
    *_priced(r"moderate|moderately|average|averagely|reasonable|reasonably|mid|middle|medium"),
    r"mid(?:dle)?[- ]*range",
)
_DEAR = (r"expensive", "pricey", r"high[- ]end", *_priced("high|highly"))


def _stars(number: str, word: str) -> tuple[str, ...]:
    either = rf"(?:{number}|{word})"
    return (
        rf"{either}(?: stars?)?(?: out)?[- ]of[- ](?:5|five)",
        rf"(?<!of ){either}[- ]*stars?",
        rf"{either} ?/ ?5",
    )


PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "eatType": {
            "coffee shop": (r"coffee[- ]*shops?", r"caf[eé]s?", "coffee"),
            "pub": (r"pubs?",),
            "restaurant": (r"restaurants?",),
        },
        "food": {
            "Chinese": (r"chine?se?",),
            "English": ("english", "british", "full breakfast"),
            "Fast food": (r"fast[- ]?food",),
            "French": ("french",),
            "Indian": ("indian",),
            "Italian": ("italian",),
            "Japanese": ("japanese", "sushi"),
        },
        "area": {
            "city centre": (
                r"(?:city|town)(?:'s)?[- ]*cent(?:re|er)",
                r"cent(?:re|er) of (?:the )?(?:city|town)",
                r"in the cent(?:re|er)",
                r"cent(?:re|er) city|inner city|heart of the city",
            ),
            "riverside": (r"river[- ]*side", r"rivers?(?:[- ](?:front|bank|area))?", "riverbank"),
        },
        "priceRange": {
            "cheap": _CHEAP,
            "less than £20": (*_CHEAP, r"(?:less than|under|below|lower than|up to) ?[£$]? ?20"),
            "moderate": _MIDDLE,
            "£20-25": (*_MIDDLE, r"[£$]? ?20 ?(?:-|–|to|and)+ ?[£$]? ?25"),
            "high": _DEAR,
            "more than £30": (*_DEAR, r"(?:more than|over|above|higher than|at least) ?[£$]? ?30"),
        },
        "customer rating": {
            "1 out of 5": (*_stars("1", "one"), *_LOW),
            "low": (*_LOW, *_stars("1", "one")),
            "3 out of 5": (*_stars("3", "three"), *_AVERAGE),
            "average": (*_AVERAGE, *_stars("3", "three")),
            "5 out of 5": (*_stars("5", "five"), *_HIGH),
            "high": (*_HIGH, *_stars("5", "five")),
        },
        "familyFriendly": {"yes": FAMILY, "no": NOT_FAMILY},
    }
)
"""Field → value → patterns of whole words, any of which says the value."""

SAME: tuple[frozenset[str], ...] = (
    frozenset({"cheap", "less than £20"}),
    frozenset({"moderate", "£20-25"}),
    frozenset({"high", "more than £30"}),
    frozenset({"1 out of 5", "low"}),
    frozenset({"3 out of 5", "average"}),
    frozenset({"5 out of 5", "high"}),
)
"""Values that one phrase may say both of."""


@cache
def pattern(field: str, value: str) -> re.Pattern[str] | None:
    """What says a value; None if the field or the value is not one of E2E's."""
    phrases = PHRASES.get(field, {}).get(value)
    if phrases is None:
        return None
    return re.compile("|".join(rf"(?<!\w)(?:{each})(?!\w)" for each in phrases), re.IGNORECASE)
