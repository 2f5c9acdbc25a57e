"""What a text says about the slots of an E2E input: which are missing, changed or invented.

This chooses training targets, and `app.evaluation.slots` scores answers. They disagree on 597 of
the 12,120 texts that `app.demo.e2e.split` asks about. So no answer is scored by the rules that
chose what it learned from, and the files that shipped prefixes name by digest can be cut again.
"""

from __future__ import annotations

import re

AREAS = ("city centre", "riverside")
Slots = dict[str, str]

_FAMILY = r"(famil|kid|child)"
_NEGATED = r"(\bno\b|\bnot\b|n't|\bnon\b|\bnon-|unfriendly|adult|\bnor\b|without|unsuitable)"
_RATING = r"(rating|rated|rate|customer|review|star|score)"
_MENTIONS = {
    "area": r"city|centre|center|river|downtown",
    "familyFriendly": rf"{_FAMILY}|adult",
    "near": r"\b(near|nearby|close to|next to|beside|by the)\b",
    "customer rating": r"\b(rating|ratings|rated|customers?|stars?|out of)\b",
    "priceRange": r"pric|cheap|expensive|£|\bcost|inexpensive|\bbudget|affordable",
    "food": r"\bfood|cuisine|english|chinese|dishes|\bmeal",
}
"""What a text says if it states the slot at all."""
_VALUES = {
    ("area", "city centre"): r"city[ -](centre|center)|(centre|center) of the city",
    ("area", "riverside"): r"river",
    ("customer rating", "1 out of 5"): r"\b(1|one) (out )?of (5|five)|\b1/5|\b(1|one)[ -]star",
    ("customer rating", "3 out of 5"): r"\b(3|three) (out )?of (5|five)|\b3/5|\b(3|three)[ -]star",
    ("customer rating", "5 out of 5"): r"\b(5|five) (out )?of (5|five)|\b5/5|\b(5|five)[ -]star",
    ("customer rating", "average"): rf"average[a-z ,-]*{_RATING}|{_RATING}[a-z ,-]*average",
    ("customer rating", "high"): rf"high(ly)?[a-z ,-]*{_RATING}|{_RATING}[a-z ,-]*high",
    ("customer rating", "low"): rf"\blow(ly)?[a-z ,-]*{_RATING}|{_RATING}[a-z ,-]*\blow",
    ("priceRange", "cheap"): r"cheap|inexpensive|low(er)?[ -](cost|price)|pric\w* (are |is )?low",
    ("priceRange", "moderate"): r"moderate",
    ("priceRange", "high"): r"high(er|ly)?[ -]*(end |in )?pric|expensive|pric[a-z ]*\bhigh",
    ("priceRange", "£20-25"): r"£?20 ?(-|–|to|and) ?£?25",
    ("priceRange", "less than £20"): r"(less than|under|below) (£ ?20|20 pounds)",
    ("priceRange", "more than £30"): r"(more than|over|above) (£ ?30|30 pounds)",
}


def slots_of(source: str) -> Slots:
    """The slots of a linearised input `name : X | food : Y`."""
    pairs = (field.partition(" : ") for field in source.split(" | "))
    return {key: value for key, _, value in pairs}


def linearised(slots: Slots) -> str:
    """The input of some slots."""
    return " | ".join(f"{key} : {value}" for key, value in slots.items())


def says(text: str, key: str, value: str) -> bool:
    """Whether the text states this value of the slot."""
    if key == "familyFriendly":
        return _says_friendly(text, value)
    pattern = _VALUES.get((key, value)) or rf"(?<!\w){re.escape(value)}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def wrong_slots(source: str, text: str) -> tuple[list[str], list[str]]:
    """The slots of the input that the text lacks or changes, and those that it invents."""
    slots = slots_of(source)
    missing = [key for key, value in slots.items() if not says(text, key, value)]
    area = slots.get("area")
    if area and any(says(text, "area", other) for other in AREAS if other != area):
        missing.append("area")
    named = text
    for key in ("name", "near"):
        if key in slots:
            named = re.sub(re.escape(slots[key]), "X", named, flags=re.IGNORECASE)
    invented = [
        key
        for key, pattern in _MENTIONS.items()
        if key not in slots and re.search(pattern, named, re.IGNORECASE)
    ]
    return missing, invented


def _says_friendly(text: str, value: str) -> bool:
    """A negation in a clause about families means `no`, any other such clause `yes`."""
    clauses = [
        clause
        for clause in re.split(r"[.!?;,]| but | and ", text)
        if re.search(rf"{_FAMILY}|adult", clause, re.IGNORECASE)
    ]
    negated = [bool(re.search(_NEGATED, clause, re.IGNORECASE)) for clause in clauses]
    return bool(negated) and (any(negated) if value == "no" else not any(negated))
