"""One wording for the slots of an E2E input: what the prefix of the small demo model learns.

People say the slots in any order, and many references leave some out. A model of 6 million
parameters learns to say all of them from texts that have one order, that of the input. The phrases
are those that agree most with the references of the training inputs.
"""

from __future__ import annotations

from app.demo.e2e.slots import Slots

_LEVELS = ("low", "average", "high")
"""Ratings that are words; the others are "3 out of 5" and the like."""


def told(slots: Slots) -> str:
    """Two to four sentences that say every slot, in the order of the input."""
    sentences = [_lead(slots)]
    if "customer rating" in slots:
        sentences.append(f"It has {_rating(slots['customer rating'])}")
    clauses = []
    if "area" in slots:
        clauses.append(f"is located in the {_area(slots['area'])}")
    if "familyFriendly" in slots:
        negation = "" if slots["familyFriendly"] == "yes" else "not "
        clauses.append(f"is {negation}family friendly")
    if clauses:
        sentences.append(f"It {' and '.join(clauses)}")
    if "near" in slots:
        sentences.append(f"It is near {slots['near']}")
    return "".join(f"{sentence}. " for sentence in sentences).rstrip()


def _lead(slots: Slots) -> str:
    """The name, the kind of place, food and prices."""
    kind = slots.get("eatType", "place")
    food = f" that serves {slots['food']} food" if "food" in slots else ""
    price = f" in the {slots['priceRange']} price range" if "priceRange" in slots else ""
    return f"{slots['name']} is a {kind}{food}{price}"


def _rating(value: str) -> str:
    if value not in _LEVELS:
        return f"a customer rating of {value}"
    return f"{'an' if value == 'average' else 'a'} {value} customer rating"


def _area(value: str) -> str:
    return "riverside area" if value == "riverside" else value
