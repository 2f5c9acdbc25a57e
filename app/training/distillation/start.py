"""Where a distilled prefix starts: the keys and values of tokens of its own text."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import InvalidRequest
from app.model.text import Text
from app.training.distillation.framing import Framing

STARTS = ("first", "spread")
_CHUNK = 8
"""Tokens of a piece of the text in a spread start."""


def start_ids(
    framing: Framing, encoder: Text, token_ids: Sequence[int], length: int, kind: str
) -> tuple[int, ...]:
    """The `length` tokens whose keys and values a prefix starts from.

    They are the framed beginning of the text (`first`) or framed pieces from all over the text
    (`spread`). A prefix that is too short for the frame gets tokens of the text alone. The text
    must have at least `length` tokens.
    """
    if kind not in STARTS:
        raise InvalidRequest(f"start: there is no {kind!r}; choose one of {', '.join(STARTS)}")
    before, after = framing.frame_ids(encoder)
    if len(before) + len(after) + _CHUNK > length:
        before, after = [], []
    room = length - len(before) - len(after)
    chosen = token_ids[:room] if kind == "first" else _spread(token_ids, room)
    return (*before, *chosen, *after)


def _spread(token_ids: Sequence[int], room: int) -> list[int]:
    """`room` tokens in pieces of about `_CHUNK` neighbours, at equal distances; at least two."""
    pieces = max(min(2, room), room // _CHUNK)
    sizes = [room // pieces + (index < room % pieces) for index in range(pieces)]
    gap = (len(token_ids) - room) / max(1, pieces - 1)
    chosen: list[int] = []
    for index, size in enumerate(sizes):
        start = len(chosen) + round(index * gap)
        chosen += token_ids[start : start + size]
    return chosen
