"""What a user would do without a model: a template for E2E, a regular expression for abstracts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from app.errors import InvalidRequest
from app.evaluation.e2e_phrases import ALIASES, NAMES, PHRASES
from app.evaluation.fields import read_fields
from app.prefix.strict_json import printable

_CONTRIBUTION = re.compile(
    r"\b(?:we|this (?:paper|work|article))\s+(?:\w+\s+)?"
    r"(?:propos|present|show|introduc)(?:e|es|s)?\b",
    re.IGNORECASE,
)
_E2E_FIELDS = frozenset({*NAMES, *PHRASES})
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")


def e2e_template(source: str) -> str:
    """A restaurant's description that says every field of a linearised input.

    Fields may have the challenge's names or the authors'. InvalidRequest if it is no such table.
    """
    given = {ALIASES.get(name, name): value for name, value in read_fields(source)}
    if not given or not set(given) <= _E2E_FIELDS:
        unknown = [name for name in given if name not in _E2E_FIELDS]
        why = f"it has a field {printable(unknown[0])}" if unknown else "it is no table"
        raise InvalidRequest(
            "the baseline e2e-template describes E2E's restaurants, such as `name : Aromi | food :"
            f" Italian`, and not {printable(source)}: {why}. Leave the baseline out"
        )
    kind = given.get("eatType", "place")
    sentence = f"{given.get('name', 'It')} is a {given.get('food', '')} {kind}".replace("  ", " ")
    sentence += f" in the {given['area']} area" if "area" in given else ""
    sentence += f" near {given['near']}" if "near" in given else ""
    more = []
    if "priceRange" in given:
        more.append(f"has a price range of {given['priceRange']}")
    if "customer rating" in given:
        more.append(f"has a customer rating of {given['customer rating']}")
    if "familyFriendly" in given:
        more.append(f"is {'' if given['familyFriendly'] == 'yes' else 'not '}family friendly")
    return f"{sentence}." + (f" It {' and '.join(more)}." if more else "")


def contribution_sentence(source: str) -> str:
    """The first sentence where the authors propose, present, show or introduce; else the first."""
    sentences = _SENTENCE_END.split(" ".join(source.split()))
    return next((each for each in sentences if _CONTRIBUTION.search(each)), sentences[0])


BASELINES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"e2e-template": e2e_template, "summary-regex": contribution_sentence}
)
"""The names on the command line."""
