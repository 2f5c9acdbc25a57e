"""Invented things with attributes, and sentences about them, for practice in copying values.

The things are museums, phones, gardens and so on. There are no restaurants and no field names of
E2E, so that E2E stays an unseen domain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from app.demo.phrases import DOMAINS, OPENERS, Attribute
from app.demo.records import NAME_KEYS, respell_relation
from app.demo.substitution import NamePool


@dataclass(frozen=True)
class InventedThing:
    """An invented thing: (key, value) fields, the name first, and a text with all of them."""

    fields: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True)
class _Stated:
    """An attribute of an item, with its value."""

    attribute: Attribute
    key: str
    value: str

    def phrase(self, slot: str, rng: random.Random) -> str:
        return rng.choice(self.attribute.forms(self.value)[slot]).replace("{v}", self.value)

    def has(self, slot: str) -> bool:
        return bool(self.attribute.forms(self.value).get(slot))


def invent(pool: NamePool, rng: random.Random) -> InventedThing:
    """A random item with 1 to 7 attributes and a text about it."""
    domain = rng.choice(DOMAINS)
    name = pool.name(rng)
    kind = rng.choice(domain.kinds)
    chosen = rng.sample(domain.attributes, k=min(len(domain.attributes), rng.randint(1, 6)))
    stated = [_state(attribute, pool, rng) for attribute in chosen]
    style = rng.choice(("camel", "camel", "words", "words", "title", "snake"))
    fields = [(respell_relation(one.key, style), one.value) for one in stated]
    if rng.random() < 0.8:
        fields.insert(0, (respell_relation(rng.choice(domain.kind_keys), style), kind))
        noun = kind
    else:
        noun = domain.plain_noun
    if rng.random() < 0.3:
        rng.shuffle(fields)
    text = _tell(name, noun, stated, rng)
    return InventedThing(((rng.choice(NAME_KEYS), name), *fields), text)


def linearise(fields: Sequence[tuple[str, str]]) -> str:
    """`key : value | key : value`."""
    return " | ".join(f"{key} : {value}" for key, value in fields)


def _state(attribute: Attribute, pool: NamePool, rng: random.Random) -> _Stated:
    value = rng.choice(attribute.values) if attribute.values else pool.name(rng)
    if attribute.values and not attribute.closed and rng.random() < 0.5:
        value = pool.like(value, rng)
    return _Stated(attribute, rng.choice(attribute.keys), value)


def _tell(name: str, noun: str, stated: Sequence[_Stated], rng: random.Random) -> str:
    """One to four sentences that mention the name and every attribute once."""
    rest = list(stated)
    rng.shuffle(rest)
    before = _take(rest, "adjective", rng, limit=rng.choice((0, 1, 1, 2)))
    after = _take(rest, "place", rng, limit=rng.choice((0, 1, 1, 2)))
    having = _take(rest, "with", rng, limit=rng.choice((0, 0, 1, 2)))
    lead = _lead(name, _article(" ".join([*before, noun])), after, having, rng)
    sentences = [lead]
    while rest:
        group = [rest.pop() for _ in range(min(len(rest), rng.choice((1, 1, 2))))]
        clauses = [_clause(one, rng) for one in group]
        subject = rng.choice(("It", "It", "It", name, f"The {noun}", "This place", "This one"))
        sentences.append(f"{subject} {_join(clauses, rng)}")
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."


def _lead(
    name: str, noun: str, after: Sequence[str], having: Sequence[str], rng: random.Random
) -> str:
    places = " ".join(after)
    tail = f" with {' and '.join(having)}" if having else ""
    if after and rng.random() < 0.3:
        opener = rng.choice(("there is", "you can find", "you will find", "is"))
        link = rng.choice((" called", ", called", " named"))
        if opener == "is":
            return f"{places} is {name}, {noun}{tail}"
        return f"{places} {opener} {noun}{link} {name}{tail}"
    if after and rng.random() < 0.25:
        return f"{places}, {name} is {noun}{tail}"
    template = rng.choice(OPENERS)
    return template.format(name=name, noun=noun, places=f" {places}" if places else "", tail=tail)


def _clause(one: _Stated, rng: random.Random) -> str:
    slots = [slot for slot in ("clause", "with", "place", "adjective") if one.has(slot)]
    slot = slots[0] if rng.random() < 0.6 else rng.choice(slots)
    phrase = one.phrase(slot, rng)
    if slot == "with":
        return f"{rng.choice(('has', 'has', 'offers', 'comes with', 'boasts'))} {phrase}"
    if slot == "place":
        return f"{rng.choice(('is', 'is located', 'can be found', 'is situated'))} {phrase}"
    return f"is {phrase}" if slot == "adjective" else phrase


def _take(rest: list[_Stated], slot: str, rng: random.Random, *, limit: int) -> list[str]:
    """Remove up to `limit` attributes with `slot`; return their phrases."""
    taken = [one for one in rest if one.has(slot)][:limit]
    for one in taken:
        rest.remove(one)
    return [one.phrase(slot, rng) for one in taken]


def _join(clauses: Sequence[str], rng: random.Random) -> str:
    return rng.choice((" and ", " and ", ", and ", " but ")).join(clauses)


def _article(noun_phrase: str) -> str:
    return ("an " if noun_phrase[0].lower() in "aeiou" else "a ") + noun_phrase
