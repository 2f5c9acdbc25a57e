"""Which values of a table its description leaves out, and which it makes up."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.evaluation.e2e_phrases import ALIASES, NAMES, PHRASES, SAME, pattern
from app.evaluation.fields import read_fields, read_triples

_E2E_FIELDS = frozenset({*NAMES, *PHRASES})
_UNTOLD = frozenset({("eatType", "restaurant")})
"""What texts say without meaning the field: a coffee shop may be called a restaurant."""

_MIN_NAME = 4
"""Characters of another input's value that its appearance in a text is no accident."""

Slot = tuple[str, str]
"""A field and a value; of a triple its subject or its object."""


@dataclass(frozen=True)
class SlotCounts:
    """Of one field: values in the inputs, those missing in the outputs, and those made up."""

    total: int
    missing: int
    invented: int


@dataclass(frozen=True)
class SlotReport:
    """Slot errors of all outputs; `all_right` outputs have none."""

    fields: Mapping[str, SlotCounts]
    num_outputs: int
    all_right: int

    @property
    def error_rate(self) -> float:
        """Missing and invented values in percent of the inputs' values (Wen et al. 2015)."""
        counts = self.fields.values()
        wrong = sum(each.missing + each.invented for each in counts)
        return 100 * wrong / max(1, sum(each.total for each in counts))

    @property
    def share_all_right(self) -> float:
        """Outputs without an error, in percent."""
        return 100 * self.all_right / self.num_outputs

    def as_dict(self) -> dict[str, object]:
        """The numbers for reports."""
        return {
            "error_rate": round(self.error_rate, 2),
            "all_right": round(self.share_all_right, 2),
            "fields": {name: vars(counts) for name, counts in self.fields.items()},
        }


def slot_errors(inputs: Sequence[str], texts: Sequence[str]) -> SlotReport | None:
    """Slot errors of `texts`; None if an input is neither fields with values nor triples.

    E2E's values are found by the usual phrases ("kid friendly"), others by their own words. A value
    is made up if a text says another of the same field: for E2E any value that phrases are known
    for, for names and other data any value that another input has.
    """
    tables = [_slots(each) for each in inputs]
    if not all(tables):
        return None
    known: dict[str, set[str]] = {}
    for slot in {slot for table in tables for slot in table}:
        known.setdefault(slot[0], set()).add(slot[1])
    names = {field: {v: _plain(v) for v in sorted(values)} for field, values in known.items()}
    totals, missing, invented = Counter[str](), Counter[str](), Counter[str]()
    all_right = 0
    for table, text in zip(tables, texts, strict=True):
        lost, added = _wrong(table, text, names)
        totals.update(field for field, _ in table)
        missing.update(lost)
        invented.update(added)
        all_right += not lost and not added
    fields = {
        field: SlotCounts(totals[field], missing[field], invented[field])
        for field in dict.fromkeys([*totals, *invented])
    }
    return SlotReport(fields, len(inputs), all_right)


def has_slots(source: str) -> bool:
    """Whether an input is fields with values or triples, whose slots `slot_errors` counts."""
    return bool(_slots(source))


def _slots(source: str) -> list[Slot]:
    """The slots of an input, each once."""
    fields = [(ALIASES.get(name, name), value) for name, value in read_fields(source)]
    entities = [
        slot for s, _, o in read_triples(source) for slot in (("subject", s), ("object", o))
    ]
    known: dict[str, Slot] = {}
    for slot in entities:
        known.setdefault(_plain(slot[1]), slot)  # the object of one may be the subject of another
    return list(dict.fromkeys(fields)) or list(known.values())


def _wrong(
    table: list[Slot], text: str, names: Mapping[str, Mapping[str, str]]
) -> tuple[list[str], list[str]]:
    """The fields whose value is missing, and those that are made up, each once for a value."""
    is_e2e = all(field in _E2E_FIELDS for field, _ in table)
    said, own = _plain(text), {_plain(value) for _, value in table}
    by_name = NAMES if is_e2e else tuple(names)
    lost = [f for f, v in table if _is_name(f, v, is_e2e) and not _has(said, _plain(v))]
    added = [
        field
        for field in by_name
        for plain in names.get(field, {}).values()
        if len(plain) >= _MIN_NAME
        and re.search("[a-z]", plain)
        and not any(_has(each, plain) for each in own)
        and _has(said, plain)
    ]
    if not is_e2e:
        return lost, sorted(set(added))
    phrases = _without_names(said, names)
    told = _told(phrases)
    lost += [f for f, v in table if not _is_name(f, v, is_e2e) and (f, v) not in told]
    own_values = dict(table)
    for field in PHRASES:
        others = {v for f, v in told if f == field} - _same(own_values.get(field))
        if any((field, value) not in _UNTOLD for value in others):
            added.append(field)
    return lost, sorted(set(added))


def _is_name(field: str, value: str, is_e2e: bool) -> bool:
    """Whether a text must have the very words of the value."""
    return not is_e2e or field in NAMES or pattern(field, value) is None


def _told(text: str) -> set[Slot]:
    """All of E2E's values that a text says."""
    told = set()
    negative = pattern("familyFriendly", "no")
    for field, values in PHRASES.items():
        for value in values:
            searched = text
            if (field, value) == ("familyFriendly", "yes") and negative is not None:
                searched = negative.sub(" ", text)  # "not family friendly" has "family friendly"
            found = pattern(field, value)
            if found is not None and found.search(searched):
                told.add((field, value))
    return told


def _same(value: str | None) -> set[str]:
    """Values that a phrase for `value` may also stand for."""
    if value is None:
        return set()
    return {value}.union(*(group for group in SAME if value in group))


def _without_names(text: str, names: Mapping[str, Mapping[str, str]]) -> str:
    """A text without proper names, as "Raja Indian Cuisine" says nothing of food."""
    padded = f" {text} "
    for field in NAMES:
        for plain in names.get(field, {}).values():
            padded = padded.replace(f" {plain} ", " it ")
    return padded.strip()


def _has(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def _plain(text: str) -> str:
    """Lower case without accents, quotes and punctuation; `25.0` as `25`, `A_b_(c)` as `a b c`."""
    letters = unicodedata.normalize("NFKD", text.replace("_", " ")).casefold()
    letters = "".join(each for each in letters if not unicodedata.combining(each))
    letters = re.sub(r"(\d)[.,]0+(?!\d)", r"\1", letters).replace("'", "").replace("’", "")
    return " ".join(re.sub(r"[^\w£$/.-]+|\.(?!\d)|(?<!\w)-|-(?!\w)", " ", letters).split())
