"""The text that the demo base model may see, read from the data folder, and spellings of facts.

E2E is never read. Lines of DART that come from E2E or WebNLG are dropped; a part of the others is
held out for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DART_EXCLUDED = frozenset({"e2e", "webnlg"})
HELD_OUT_SHARE = 0.15
"""Share of DART's own lines that is held out, chosen by a hash of the input."""
NAME_KEYS = ("name", "name", "name", "title", "subject", "entity", "id", "Name", "item", "object")


@dataclass(frozen=True)
class Fact:
    """One triple, with entities as the data set spells them."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class Pair:
    """Facts, and sentences that people wrote about them."""

    facts: tuple[Fact, ...]
    targets: tuple[str, ...]
    origin: str
    """"webnlg" or "dart": the spelling of the source."""


@dataclass(frozen=True)
class Sources:
    """All text of a data folder that pretraining may use."""

    pairs: tuple[Pair, ...]
    summaries: tuple[tuple[str, str], ...]
    """(long text, summary): SciTLDR's abstracts."""
    dialogues: tuple[tuple[str, str], ...]
    """(dialogue, summary): DialogSum."""
    paragraphs: tuple[str, ...]
    """Plain prose."""


def read_sources(folder: Path) -> Sources:
    """Read WebNLG train, DART, SciTLDR train, DialogSum and prose under `folder`."""
    pairs = [*_webnlg(folder), *_dart(folder)]
    return Sources(
        pairs=tuple(pairs),
        summaries=tuple(_summaries(folder / "scitldr" / "train.jsonl")),
        dialogues=tuple(_summaries(folder / "dialogsum" / "dev.jsonl")),
        paragraphs=tuple(_paragraphs(folder / "prose" / "speeches.txt")),
    )


def parse_facts(source: str) -> tuple[Fact, ...] | None:
    """The triples of a linearised input `S : p : O | …`; None for any other form."""
    facts = []
    for triple in source.split(" | "):
        parts = triple.split(" : ")
        if len(parts) != 3:
            return None
        facts.append(Fact(*(part.strip() for part in parts)))
    return tuple(facts)


def is_held_out(source: str) -> bool:
    """Whether a DART input is held out for evaluation."""
    value = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4])
    return value < HELD_OUT_SHARE * 2**32


def clean(text: str) -> str:
    """One line, single spaces, without WebNLG's stray ` @ ` marks."""
    return re.sub(r"\s+", " ", text.replace(" @ ", " ")).strip()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _webnlg(folder: Path) -> Iterator[Pair]:
    for record in read_lines(folder / "webnlg" / "train.jsonl"):
        facts = parse_facts(record["input"])
        if facts:
            yield Pair(facts, tuple(map(clean, record["targets"])), "webnlg")


def _dart(folder: Path) -> Iterator[Pair]:
    for record in read_lines(folder / "dart" / "dev.jsonl"):
        if DART_EXCLUDED & set(record["source"]) or is_held_out(record["input"]):
            continue
        facts = parse_facts(record["input"])
        if facts:
            yield Pair(facts, tuple(map(clean, record["targets"])), "dart")


def _summaries(path: Path) -> Iterator[tuple[str, str]]:
    for record in read_lines(path):
        for target in record["targets"]:
            yield clean(record["input"]), clean(target)


def _paragraphs(path: Path) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        text = clean(paragraph)
        if len(text) >= 80:
            yield text


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
