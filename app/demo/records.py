"""The text that the demo base model may see, read from the data folder.

E2E is never read. Lines of DART that come from E2E or WebNLG are dropped; a part of the others is
held out for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DART_EXCLUDED = frozenset({"e2e", "webnlg"})
HELD_OUT_SHARE = 0.15
"""Share of DART's own lines that is held out, chosen by a hash of the input."""


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
