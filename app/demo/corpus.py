"""The pretraining documents: an endless, reproducible stream made from the sources.

Facts appear in many spellings and tasks, half of the time after a phrase that names the task. So
the beginning of a text decides the task, as a prefix will do later.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.demo import tasks
from app.demo.records import (
    Pair,
    Sources,
    attributes,
    pre_tokenised,
    single_subject,
    surface,
    triples,
)
from app.demo.substitution import NamePool, substitute
from app.demo.synthetic import invent, linearise

END = "<|endoftext|>"
SOURCE_SHARE = 0.2
"""Share of a source's tokens in the loss; most of them are names that cannot be predicted."""
PROSE_CHARACTERS = 900


@dataclass(frozen=True)
class Document:
    """A text in parts, each with the share of its tokens in the loss."""

    parts: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        """The whole document."""
        return "".join(text for text, _ in self.parts)


class Corpus:
    """Documents drawn from `sources`; the same seed gives the same document."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        entities = {
            surface(name)
            for pair in sources.pairs
            for fact in pair.facts
            for name in (fact.subject, fact.value)
            if any(character.isalpha() for character in name)
        }
        texts = (*sources.paragraphs, *(text for pair in sources.pairs for text in pair.targets))
        words = Counter(word for text in texts for word in text.lower().split())
        self.pool = NamePool(entities, (word for word, count in words.items() if count >= 3))

    def document(self, seed: int, *, practice: bool = False) -> Document:
        """The document number `seed`; with `practice` it is mostly plain copying."""
        rng = random.Random(seed)
        makers: tuple[tuple[Callable[[random.Random], Document], int], ...] = (
            (lambda rng: _document(self.facts(rng, practice=practice), rng), 60),
            (lambda rng: _document(self.invented(rng, practice=practice), rng), 28),
            (self._sentences, 5),
            (self._prose, 4),
            (self._summary, 2),
            (self._dialogue, 1),
        )
        maker = rng.choices([m for m, _ in makers], [weight for _, weight in makers])[0]
        return maker(rng)

    def documents(self, first: int, *, practice: bool = False) -> Iterator[Document]:
        """Documents `first`, `first + 1`, …, without end."""
        seed = first
        while True:
            yield self.document(seed, practice=practice)
            seed += 1

    def facts(self, rng: random.Random, *, practice: bool) -> tuple[str, str]:
        """(source, answer) of a task on facts of WebNLG or DART; most names are replaced."""
        pair = rng.choice(self._sources.pairs)
        target = rng.choice(pair.targets)
        facts = pair.facts
        if rng.random() < 0.75:
            share = rng.choice((1.0, 1.0, 0.6))
            facts, target = substitute(
                facts, target, self.pool, rng, share=share, underscores=pair.origin == "webnlg"
            )
        source = _spell(Pair(facts, (target,), pair.origin), rng)
        fields = [(" ".join((fact.subject, fact.relation)), fact.value) for fact in facts]
        if rng.random() < 0.5 and single_subject(facts):
            source = attributes(facts, rng)
            fields = [tuple(field.split(" : ", 1)) for field in source.split(" | ")]  # type: ignore[misc]
        return self._task(source, fields, target, rng, practice)

    def invented(self, rng: random.Random, *, practice: bool) -> tuple[str, str]:
        """(source, answer) of a task on an invented thing with attributes."""
        item = invent(self.pool, rng)
        return self._task(linearise(item.fields), item.fields, item.text, rng, practice)

    def _task(
        self,
        source: str,
        fields: Sequence[tuple[str, str]],
        target: str,
        rng: random.Random,
        practice: bool,
    ) -> tuple[str, str]:
        """One task on `source`; most documents name the task before the source."""
        task = tasks.choose(rng, practice=practice)
        answer = task.answer(source, fields, target, rng)
        if answer is None:
            task, answer = tasks.DESCRIBE, target
        if task.in_words and rng.random() < 0.2:
            answer = _restyle(answer, rng)
        told = rng.random() < (0.5 if task is tasks.DESCRIBE else 0.8)
        phrase = f" {rng.choice(task.phrases)}" if told else ""
        return f"{phrase} {source}", answer

    def _sentences(self, rng: random.Random) -> Document:
        """Target sentences alone, or after unrelated facts."""
        target = rng.choice(rng.choice(self._sources.pairs).targets)
        if rng.random() < 0.7:
            return Document(((f" {target} {END}", 1.0),))
        source = _spell(rng.choice(self._sources.pairs), rng)
        return framed(f" {source}", target)

    def _prose(self, rng: random.Random) -> Document:
        paragraphs = self._sources.paragraphs
        start = rng.randrange(len(paragraphs))
        text = paragraphs[start]
        while len(text) < PROSE_CHARACTERS // 2 and start + 1 < len(paragraphs):
            start += 1
            text += "\n" + paragraphs[start]
        return Document(((f" {text[:PROSE_CHARACTERS]} {END}", 1.0),))

    def _summary(self, rng: random.Random) -> Document:
        return self._shorter(self._sources.summaries, " summary :", rng)

    def _dialogue(self, rng: random.Random) -> Document:
        return self._shorter(self._sources.dialogues, " dialogue summary :", rng)

    def _shorter(
        self, pairs: Sequence[tuple[str, str]], phrase: str, rng: random.Random
    ) -> Document:
        text, summary = rng.choice(pairs)
        text = text[:PROSE_CHARACTERS]
        told = phrase if rng.random() < 0.5 else ""
        return Document(((f"{told} {text} {END}", 1.0), (f" {summary} {END}", 1.0)))


def framed(source: str, target: str) -> Document:
    """The form that prefixes are trained with: ` {source} <|endoftext|> {target} <|endoftext|>`."""
    return Document(((f"{source} {END}", SOURCE_SHARE), (f" {target} {END}", 1.0)))


def _document(exchange: tuple[str, str], rng: random.Random) -> Document:
    if rng.random() < 0.15:
        return _pair(*exchange, rng)
    return framed(*exchange)


def _pair(source: str, target: str, rng: random.Random) -> Document:
    """Other ways to put two texts into one document."""
    separator = rng.choice((" =>", "\n", " ->", " ;", " Text:", f" {END} {END}", " ||"))
    return Document(((f"{source}{separator}", SOURCE_SHARE), (f" {target} {END}", 1.0)))


def _spell(pair: Pair, rng: random.Random) -> str:
    if pair.origin == "webnlg" and rng.random() < 0.45:
        leading = "| " if rng.random() < 0.3 else ""
        return leading + triples(pair.facts, spaces=False, relation_style="raw")
    style = rng.choice(("raw", "snake", "camel", "words"))
    facts = list(pair.facts)
    if rng.random() < 0.4:
        rng.shuffle(facts)
    return triples(facts, spaces=rng.random() < 0.8, relation_style=style)


def _restyle(text: str, rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.4:
        return pre_tokenised(text)
    return pre_tokenised(text).lower() if choice < 0.7 else text.lower()
