"""The vocabulary of invented things: domains, attributes, and phrases for them.

`{v}` is the place of the attribute's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Forms = Mapping[str, Sequence[str]]
"""Slot → phrasings. Slots: adjective (before the noun), place, with (a noun phrase), clause."""


@dataclass(frozen=True)
class Attribute:
    """A property: its keys, example values (none: a name) and its phrases.

    `special` has other phrases for single values (yes, no). `closed` values are never replaced
    by invented ones.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    usual: Forms = field(default_factory=dict)
    special: Mapping[str, Forms] = field(default_factory=dict)
    closed: bool = False

    def forms(self, value: str) -> Forms:
        """The phrases for one value."""
        return self.special.get(value, self.usual)


@dataclass(frozen=True)
class Domain:
    """A kind of things: their names and their possible attributes."""

    kinds: tuple[str, ...]
    plain_noun: str
    kind_keys: tuple[str, ...]
    attributes: tuple[Attribute, ...]


OPENERS = (
    "{name} is {noun}{places}{tail}",
    "{name} is {noun}{places}{tail}",
    "{name} is {noun}{tail}{places}",
    "there is {noun}{places} called {name}{tail}",
    "there is {noun} called {name}{places}{tail}",
    "{noun}{places} is {name}{tail}",
    "{name} is the name of {noun}{places}{tail}",
)


def _flag(keys: tuple[str, ...], adjective: str, having: str) -> Attribute:
    """A yes/no property: an adjective, or something that a thing has or lacks."""
    yes: dict[str, Sequence[str]] = {}
    no: dict[str, Sequence[str]] = {}
    if adjective:
        yes = {
            "adjective": (adjective,),
            "clause": (f"is {adjective}", f"is also {adjective}"),
        }
        no = {
            "adjective": (f"non {adjective}",),
            "clause": (f"is not {adjective}", f"isn't {adjective}", f"is not very {adjective}"),
        }
    if having:
        yes = {
            **yes,
            "with": (having,),
            "clause": (*yes.get("clause", ()), f"has {having}", f"offers {having}"),
        }
        no = {
            **no,
            "with": (f"no {having}",),
            "clause": (*no.get("clause", ()), f"has no {having}", f"does not have {having}"),
        }
    return Attribute(keys, ("yes", "no"), special={"yes": yes, "no": no}, closed=True)


def _scale(keys: tuple[str, ...], noun: str, levels: tuple[str, ...]) -> Attribute:
    """A graded property, for example `low`, `average` or `4 out of 5`."""
    usual: Forms = {
        "with": (f"a {{v}} {noun}", f"{{v}} {noun}s", f"a {noun} of {{v}}"),
        "adjective": (f"{{v}} {noun}",),
        "clause": (
            f"has a {{v}} {noun}",
            f"has a {noun} of {{v}}",
            f"is known for {{v}} {noun}",
            f"its {noun} is {{v}}".replace("its", "is one whose"),
        ),
    }
    return Attribute(keys, levels, usual)


_RATING = _scale(
    ("score", "visitor score", "user grade", "marks", "stars"),
    "score",
    ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5", "excellent", "poor"),
)
_REVIEW = _scale(
    ("reviews", "review level", "opinion"),
    "review",
    ("bad", "mixed", "good", "2 of 10", "7 of 10", "9 of 10", "fair", "great", "average"),
)
_COST = _scale(
    ("cost", "fee", "entry cost", "ticket cost", "price level"),
    "price",
    ("cheap", "moderate", "high", "low", "less than $10", "more than £30", "£20-25", "$5-15"),
)
_QUALITY = _scale(("quality", "build quality"), "quality", ("high", "low", "average", "superb"))
_SIZE = Attribute(
    ("size", "format"),
    ("small", "large", "tiny", "huge", "medium", "compact"),
    {"adjective": ("{v}", "{v}", "{v}-sized"), "clause": ("is {v}", "is {v} in size")},
)
_STYLE = Attribute(
    ("style", "origin", "tradition", "nationality"),
    ("French", "English", "Italian", "Chinese", "Indian", "Japanese", "Greek", "Dutch", "Irish"),
    {
        "adjective": ("{v}", "{v}", "{v} style"),
        "with": ("{v} style",),
        "clause": ("is {v}", "is of {v} origin", "follows the {v} tradition"),
    },
)
_DISTRICT = Attribute(
    ("district", "quarter", "location", "part of town", "zone"),
    ("old town", "harbour", "city park", "north side", "centre of town", "hills", "seaside"),
    {
        "place": ("in the {v}", "in the {v}", "in the {v} area", "by the {v}", "at the {v}"),
        "clause": ("is in the {v}", "is located in the {v}", "lies in the {v} area"),
    },
)
_CITY = Attribute(
    ("city", "town", "place", "municipality"),
    (),
    {"place": ("in {v}", "in {v}", "of {v}"), "clause": ("is in {v}", "is located in {v}")},
)
_NEAR = Attribute(
    ("next to", "close to", "neighbour", "nearest landmark", "opposite"),
    (),
    {
        "place": ("near {v}", "near {v}", "near the {v}", "close to {v}", "next to {v}"),
        "clause": ("is near {v}", "is located near {v}", "is close to {v}", "stands next to {v}"),
    },
)
_OWNER = Attribute(
    ("owner", "maker", "manufacturer", "author", "founder", "operator"),
    (),
    {"place": ("by {v}",), "clause": ("belongs to {v}", "was made by {v}", "is run by {v}")},
)
_COLOUR = Attribute(
    ("colour", "color", "finish"),
    ("red", "green", "dark blue", "white", "silver", "yellow"),
    {"adjective": ("{v}",), "with": ("a {v} finish",), "clause": ("is {v}", "comes in {v}")},
)
_YEAR = Attribute(
    ("year", "founded", "opened", "release year"),
    ("1987", "2003", "1845", "1999", "2011"),
    {"place": ("from {v}",), "clause": ("dates from {v}", "has existed since {v}")},
)
_SPECIALITY = Attribute(
    ("speciality", "theme", "subject", "focus", "offer"),
    ("modern art", "old maps", "steam engines", "roses", "chess", "water sports", "local history"),
    {
        "with": ("{v}", "a focus on {v}"),
        "clause": ("is known for {v}", "offers {v}", "specialises in {v}", "provides {v}"),
    },
)
_DOGS = _flag(("dogs allowed", "dog friendly", "pets welcome"), "dog friendly", "")
_WHEELCHAIR = _flag(("step free", "accessible", "wheelchair access"), "accessible", "")
_PARKING = _flag(("parking", "car park"), "", "parking")
_WIFI = _flag(("wifi", "free wifi"), "", "free wifi")
_STUDENTS = _flag(("student friendly", "students welcome"), "student-friendly", "")
_WATER = _flag(("waterproof", "water resistant"), "waterproof", "")
_QUIET = _flag(("quiet", "silent"), "quiet", "")
_TOUR = _flag(("guided tours", "tours"), "", "guided tours")
_BEGINNER = _flag(("beginner friendly", "easy"), "beginner friendly", "")

_VISIT = (
    *(_RATING, _REVIEW, _COST, _STYLE, _DISTRICT, _CITY, _NEAR, _NEAR, _SPECIALITY),
    *(_DOGS, _WHEELCHAIR, _PARKING, _WIFI, _STUDENTS, _QUIET, _TOUR, _YEAR),
)
_GOODS = (_RATING, _REVIEW, _COST, _QUALITY, _SIZE, _STYLE, _OWNER, _COLOUR, _YEAR, _WATER, _QUIET)
_LEARN = (_RATING, _REVIEW, _COST, _STYLE, _CITY, _OWNER, _SPECIALITY, _BEGINNER, _STUDENTS)
_TYPE_KEYS = ("type", "kind", "category", "sort", "is a")

DOMAINS = (
    Domain(("museum", "art gallery", "library", "theatre"), "place", _TYPE_KEYS, _VISIT),
    Domain(("gym", "swimming pool", "sports club", "bowling alley"), "venue", _TYPE_KEYS, _VISIT),
    Domain(("hostel", "camp site", "guest house"), "place", _TYPE_KEYS, _VISIT),
    Domain(("bookshop", "flower shop", "toy shop", "market"), "shop", _TYPE_KEYS, _VISIT),
    Domain(("park", "botanical garden", "zoo", "castle"), "sight", _TYPE_KEYS, _VISIT),
    Domain(("phone", "laptop", "camera", "watch", "radio"), "device", _TYPE_KEYS, _GOODS),
    Domain(("chair", "lamp", "bicycle", "tent", "guitar"), "product", _TYPE_KEYS, _GOODS),
    Domain(("course", "choir", "evening class", "dance school"), "course", _TYPE_KEYS, _LEARN),
)
