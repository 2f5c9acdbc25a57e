"""What the owner of training data should know before a run: nothing of it is an error."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from app.datasets.example import Example
from app.evaluation.text_pairs import TokenPair
from app.model.text import Text

_log = logging.getLogger(__name__)

FEW_PAIRS = 50
"""With fewer pairs, a prefix learns little beyond the form of the answers (Li & Liang 2021, §6.3,
have 50 as their smallest set)."""


def data_advice(
    examples: Sequence[Example],
    pairs: Sequence[TokenPair],
    validation: Sequence[Example],
    decoding: Mapping[str, Any],
    *,
    source_room: int | None = None,
) -> list[str]:
    """Sentences about the data, each with what can be done about it; empty if all is well.

    `pairs` are the tokens of `examples`. `source_room` is how many tokens of an input an encoder
    reads; None without an encoder.
    """
    found = [
        _few(pairs),
        _repeated(examples),
        _same_targets(examples),
        _shared(examples, validation),
        _cut_sources(pairs, source_room),
        _cut_answers(pairs, decoding),
    ]
    if not validation:
        found.append(
            "There is no validation data: the last state is kept and nothing is scored. Give a"
            " validation file of 50 or more examples that are not in the training file."
        )
    return [sentence for sentence in found if sentence is not None]


def _few(pairs: Sequence[TokenPair]) -> str | None:
    if len(pairs) >= FEW_PAIRS:
        return None
    return (
        f"There are only {len(pairs)} pairs of input and target. Give {FEW_PAIRS} or more, or start"
        " from words that describe the task (initial_words)."
    )


def _repeated(examples: Sequence[Example]) -> str | None:
    repeated = sum(len(example.targets) - len(set(example.targets)) for example in examples)
    if not repeated:
        return None
    return f"{repeated} pairs of input and target are given more than once; they count as often."


def _same_targets(examples: Sequence[Example]) -> str | None:
    if len(examples) < 2 or len({target for each in examples for target in each.targets}) > 1:
        return None
    return "All targets are the same text, so the prefix learns to ignore the input."


def _shared(examples: Sequence[Example], validation: Sequence[Example]) -> str | None:
    known = {example.input: example.line for example in examples}
    shared = [example for example in validation if example.input in known]
    if not shared:
        return None
    first = shared[0]
    return (
        f"{len(shared)} of {len(validation)} validation inputs are in the training data too, first"
        f" that of line {first.line} (line {known[first.input]} there). The scores are therefore"
        " too good; remove these inputs from one of the files."
    )


def _cut_sources(pairs: Sequence[TokenPair], room: int | None) -> str | None:
    if room is None:
        return None
    full = sum(len(pair.prompt_ids) >= room for pair in pairs)
    if not full:
        return None
    return (
        f"{full} of {len(pairs)} inputs fill all {room} tokens that the encoder reads; what is"
        " longer is cut at its end. Put what matters first."
    )


def _cut_answers(pairs: Sequence[TokenPair], decoding: Mapping[str, Any]) -> str | None:
    most = decoding.get("max_tokens")
    if most is None:
        return None
    long = [len(pair.target_ids) for pair in pairs if len(pair.target_ids) > most]
    if not long:
        return None
    return (
        f"{len(long)} of {len(pairs)} targets are longer than the prefix's answers, which end after"
        f" {most} tokens (max_tokens); the longest target has {max(long)}."
    )


def warn_of_specials(text: Text, template: str) -> None:
    """Log what looks like a special token in a template and is none of the tokenizer."""
    for part in text.unknown_specials(template):
        _log.warning(
            "the template's %s is not a special token of this tokenizer, so the model reads it"
            " letter by letter",
            part,
        )
