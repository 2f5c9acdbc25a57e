"""The spellings of facts in sources and in sentences."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from app.demo.records import Fact

NAME_KEYS = ("name", "name", "name", "title", "subject", "entity", "id", "Name", "item", "object")


def surface(entity: str) -> str:
    """The entity as a sentence mentions it: without underscores, quotes and qualifiers."""
    text = entity.strip().strip('"').replace("_", " ")
    return re.sub(r"\s*\([^)]*\)$", "", text).strip()


def words_of(relation: str) -> list[str]:
    """The words of a relation in camelCase, snake_case or plain text."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", relation.replace("_", " "))
    return [word.lower() for word in spaced.split()]


def respell_relation(relation: str, style: str) -> str:
    """A relation as camelCase, words, Words, snake_case, or raw (unchanged)."""
    words = words_of(relation)
    if style == "raw" or not words:
        return relation
    if style == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    if style == "snake":
        return "_".join(words)
    text = " ".join(words)
    return text.capitalize() if style == "title" else text


def triples(facts: Sequence[Fact], *, spaces: bool, relation_style: str) -> str:
    """`S : p : O | …`, with underscores and quotes as in the data set or as plain words."""
    return " | ".join(
        f"{surface(fact.subject) if spaces else fact.subject} : "
        f"{respell_relation(fact.relation, relation_style)} : "
        f"{surface(fact.value) if spaces else fact.value}"
        for fact in facts
    )


def attributes(facts: Sequence[Fact], rng: random.Random, *, name_key: str | None = None) -> str:
    """`name : S | p : o | …` for facts about one subject, with one style of keys."""
    style = rng.choice(("camel", "camel", "words", "words", "title", "snake", "raw"))
    key = name_key or rng.choice(NAME_KEYS)
    fields = [f"{respell_relation(fact.relation, style)} : {surface(fact.value)}" for fact in facts]
    head = f"{key} : {surface(facts[0].subject)}"
    if rng.random() < 0.8:
        return " | ".join([head, *fields])
    fields.insert(rng.randrange(len(fields) + 1), head)
    return " | ".join(fields)


def single_subject(facts: Sequence[Fact]) -> bool:
    """Whether all facts are about one subject, with distinct relations."""
    relations = {fact.relation for fact in facts}
    return len({fact.subject for fact in facts}) == 1 and len(relations) == len(facts)


def pre_tokenised(text: str) -> str:
    """Text with spaces around punctuation, as several data-to-text sets have it."""
    spaced = re.sub(r"([.,;:!?()'\"-])", r" \1 ", text)
    return re.sub(r"\s+", " ", spaced).strip()
