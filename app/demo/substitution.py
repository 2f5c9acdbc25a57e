"""Entity substitution: other names in the same sentences, so that the model must copy them.

A model that sees an entity a hundred times remembers it. A model that meets a new entity in every
document must copy. Always true: source and target are changed together.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from app.demo.records import Fact, surface

_NUMBER = re.compile(r"[\d][\d.,/-]*")


class NamePool:
    """Replacement names: entities of the data, and new ones made of words."""

    def __init__(self, entities: Iterable[str], words: Iterable[str]) -> None:
        self._entities = sorted({entity for entity in entities if 2 <= len(entity) <= 40})
        self._words = sorted({word for word in words if word.isalpha() and 3 <= len(word) <= 11})
        if not self._entities or not self._words:
            raise ValueError("a name pool needs at least one entity and one word")

    def name(self, rng: random.Random) -> str:
        """A name: an existing one half of the time, otherwise one to four capitalised words."""
        if rng.random() < 0.4:
            return rng.choice(self._entities)
        count = rng.choice((1, 1, 2, 2, 2, 3, 3, 4))
        words = [self.word(rng).capitalize() for _ in range(count)]
        if rng.random() < 0.25:
            words.insert(0, "The")
        elif count > 2 and rng.random() < 0.2:
            words[1] = rng.choice(("of", "and", "de", "in"))
        return " ".join(words)

    def word(self, rng: random.Random) -> str:
        """A word in lower case."""
        return rng.choice(self._words)

    def phrase(self, rng: random.Random) -> str:
        """One to three words in lower case."""
        return " ".join(self.word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3))))

    def like(self, text: str, rng: random.Random) -> str:
        """A replacement of the same kind as `text`: a number, a phrase or a name."""
        if _NUMBER.fullmatch(text):
            return re.sub(r"\d", lambda _: str(rng.randrange(10)), text)
        if text.islower():
            return self.phrase(rng)
        return self.name(rng)


def substitute(
    facts: Sequence[Fact],
    target: str,
    pool: NamePool,
    rng: random.Random,
    *,
    share: float = 1.0,
    underscores: bool = False,
) -> tuple[tuple[Fact, ...], str]:
    """Replace entities that `target` mentions, both in the facts and in the target.

    Each is replaced with probability `share`. Entities whose mentions overlap, or that the target
    does not mention word for word, stay as they are.
    """
    entities = sorted({name for fact in facts for name in (fact.subject, fact.value)})
    mentions = {entity: surface(entity) for entity in entities}
    found = [e for e in entities if _replaceable(mentions[e], target)]
    chosen = [
        entity
        for entity in found
        if rng.random() < share and not _overlaps(entity, mentions, entities)
    ]
    if not chosen:
        return tuple(facts), target
    new = {entity: pool.like(mentions[entity], rng) for entity in chosen}
    by_mention = {mentions[entity].lower(): new[entity] for entity in chosen}
    longest_first = sorted(by_mention, key=len, reverse=True)
    pattern = re.compile(
        r"(?<!\w)(" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE
    )
    changed = tuple(
        Fact(
            _spell(fact.subject, new, underscores),
            fact.relation,
            _spell(fact.value, new, underscores),
        )
        for fact in facts
    )
    return changed, pattern.sub(lambda match: by_mention[match[1].lower()], target)


def _replaceable(mention: str, target: str) -> bool:
    if len(mention) < 2 and not mention.isdigit():
        return False
    return re.search(rf"(?<!\w){re.escape(mention)}(?!\w)", target, re.IGNORECASE) is not None


def _overlaps(entity: str, mentions: dict[str, str], entities: Sequence[str]) -> bool:
    """Whether another entity's mention contains this one, so that a change would affect both."""
    own = mentions[entity].lower()
    return any(other != entity and own in mentions[other].lower() for other in entities)


def _spell(entity: str, new: dict[str, str], underscores: bool) -> str:
    """The replacement in the spelling of the data set: underscores, quotes around literals."""
    if entity not in new:
        return entity
    if entity.startswith('"'):
        return f'"{new[entity]}"'
    return new[entity].replace(" ", "_") if underscores else new[entity]
