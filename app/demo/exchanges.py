"""Texts for an encoder and a decoder: an endless, reproducible stream made from the sources.

More than a third of the tokens are infilling; the rest are tasks on facts and on passages, whose
first words decide the task.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app.demo.corpus import Corpus
from app.demo.passages import ask, sentences
from app.demo.records import Sources
from app.demo.substitution import substitute
from app.demo.synthetic import invent

_SUMMARY_PHRASES = ("summary :", "summarize :", "in one sentence :")
_SUMMARY_SHARE = 0.35
_SHORT_PASSAGE = 700
"""Maximal characters of most infilling passages; one in six is left whole."""
_LONG_PASSAGE = 2400


@dataclass(frozen=True)
class Exchange:
    """What the encoder reads and what the decoder writes; `restore` means infilling."""

    source: str
    target: str
    restore: bool = False


class Exchanges:
    """Exchanges drawn from `sources`; the same seed gives the same exchange."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._corpus = Corpus(sources)

    def exchange(self, seed: int, *, practice: bool = False) -> Exchange:
        """The exchange number `seed`; with `practice` facts are mostly copied."""
        rng = random.Random(seed)
        makers: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
            (partial(self._task, self._corpus.facts, practice), 35),
            (partial(self._task, self._corpus.invented, practice), 14),
            (self._passage, 15),
            (self._sentence, 14),
            (self._prose, 9),
            (self._abstract, 9),
            (self._dialogue, 4),
        )
        maker = rng.choices([m for m, _ in makers], [weight for _, weight in makers])[0]
        return maker(rng)

    def _task(
        self,
        make: Callable[..., tuple[str, str]],
        practice: bool,
        rng: random.Random,
    ) -> Exchange:
        source, answer = make(rng, practice=practice)
        return Exchange(source.strip(), answer)

    def _passage(self, rng: random.Random) -> Exchange:
        """A task that asks for a summary or a sentence of an abstract, sometimes of prose."""
        text, summary = rng.choice(self._sources.summaries)
        if rng.random() < _SUMMARY_SHARE:
            return Exchange(f"{rng.choice(_SUMMARY_PHRASES)} {text}", summary)
        if rng.random() < 0.25:
            text = self._paragraph(rng)
        asked = ask(text, rng)
        return Exchange(*asked) if asked else _restored(text)

    def _sentence(self, rng: random.Random) -> Exchange:
        """A sentence about facts, mostly with other names."""
        if rng.random() < 0.3:
            return _restored(invent(self._corpus.pool, rng).text)
        pair = rng.choice(self._sources.pairs)
        target = rng.choice(pair.targets)
        if rng.random() < 0.75:
            _, target = substitute(pair.facts, target, self._corpus.pool, rng)
        return _restored(target)

    def _prose(self, rng: random.Random) -> Exchange:
        return _restored(_excerpt(self._paragraph(rng), rng))

    def _abstract(self, rng: random.Random) -> Exchange:
        """An abstract, a part of one, or a summary alone."""
        text, summary = rng.choice(self._sources.summaries)
        return _restored(summary if rng.random() < 0.25 else _excerpt(text, rng))

    def _dialogue(self, rng: random.Random) -> Exchange:
        text, summary = rng.choice(self._sources.dialogues)
        return _restored(summary if rng.random() < 0.25 else _excerpt(text, rng))

    def _paragraph(self, rng: random.Random) -> str:
        return rng.choice(self._sources.paragraphs)[:_LONG_PASSAGE]


def _restored(text: str) -> Exchange:
    return Exchange(text, text, restore=True)


def _excerpt(text: str, rng: random.Random) -> str:
    """Consecutive sentences of at most about `_SHORT_PASSAGE` characters, or sometimes all."""
    if rng.random() < 1 / 6:
        return text
    parts = sentences(text)
    start = rng.randrange(len(parts))
    excerpt = parts[start]
    for part in parts[start + 1 :]:
        if len(excerpt) + len(part) > _SHORT_PASSAGE:
            break
        excerpt += " " + part
    return excerpt[: 2 * _SHORT_PASSAGE]
