"""Token ids to text, piece by piece: what a reply adds to the text of its prompt.

How a token is spelled depends on what precedes it, so a detokenizer starts from the last tokens of
the prompt. It shows no half character, and it holds back no more than what may still change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenizers import Tokenizer

BROKEN = "\ufffd"
"""The text of bytes that are no character."""

_CONTEXT = 5
"""Tokens before a token that decide how it is spelled."""

_WINDOW = 10
"""Tokens that are decoded together at most, but for a run of bytes."""

_MAX_RUN = 32
"""Bytes that are held back at most until their run ends; one bad byte makes all of it bad."""

_ANCHORS = 1000
"""Tokens among which one of plain text is looked for."""

_CLEANED = 64
"""Characters that are cleaned together."""

_UNSETTLED = 8
"""Characters at the end from which on a blank may still be taken out."""

MAX_BROKEN = 3
"""Characters at the end that a byte to come may turn into one."""


class Detokenizer(Protocol):
    """Turns a row's tokens into text piece by piece."""

    start: int
    """Where the text of the token that was pushed last begins, in characters of the row's text."""

    def push(self, token_id: int) -> str:
        """The text that is certain now; may be empty while a character is incomplete."""

    def flush(self) -> str:
        """What remains at the row's end; incomplete characters become U+FFFD."""


class Vocabulary:
    """What detokenizers of other kinds share: how a few tokens are decoded together.

    `bytes_of` maps the tokens that stand for a byte (`<0x0A>`) to it; `anchor` is a token of plain
    text behind which others are spelled as within a text.
    """

    def __init__(self, tokenizer: Tokenizer, bytes_of: Mapping[int, int]) -> None:
        self.bytes_of = bytes_of
        self._tokenizer = tokenizer
        self._has_text: dict[int, bool] = {}
        self.anchor = self._find_anchor()

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens at the beginning of a text; special ones are left out."""
        return self._tokenizer.decode(list(token_ids))

    def has_text(self, token_id: int) -> bool:
        """Whether a decoder looks at the token: it exists, and is not special."""
        known = self._has_text.get(token_id)
        if known is None:
            known = bool(self._tokenizer.decode([token_id, token_id]))
            self._has_text[token_id] = known
        return known

    def text_within(self, token_id: int) -> str:
        """The text that a token adds behind a word."""
        before = self.decode(self.anchor)
        return _added(before, self.decode([*self.anchor, token_id]))

    def _find_anchor(self) -> tuple[int, ...]:
        usual = [self._tokenizer.encode(word, add_special_tokens=False).ids[-1:] for word in "ae0"]
        first = range(min(_ANCHORS, self._tokenizer.get_vocab_size()))
        for token_id in [*(token_id for ids in usual for token_id in ids), *first]:
            if token_id not in self.bytes_of and self.decode([token_id]).strip().isalnum():
                return (token_id,)
        return ()


class WindowDetokenizer:
    """Other vocabularies: decode the last tokens together and show what no longer changes."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int] = ()) -> None:
        self.start = 0
        self._vocabulary = vocabulary
        self._length = 0
        self._ids = self._end_of(context)
        self._shown = vocabulary.decode(self._ids)
        self._text = self._shown
        self._run = bytearray()
        for token_id in self._ids:
            value = vocabulary.bytes_of.get(token_id)
            self._run = bytearray() if value is None else self._run + bytes([value])
        self._run_is_bad = False

    def push(self, token_id: int) -> str:
        self.start = max(self.start, self._length)
        value = self._vocabulary.bytes_of.get(token_id)
        if value is not None:
            return self._push_byte(token_id, value)
        if not self._vocabulary.has_text(token_id):
            return ""
        text = self._end_run()
        before = self._text
        self._ids.append(token_id)
        self._text = self._vocabulary.decode(self._ids)
        # a text that grew left what was pending as it is, else the token is a part of that
        if len(self._text) > len(before) and self._text.startswith(before):
            self.start = max(self.start, self._length + len(before) - len(self._shown))
        text += self._show(len(self._text) - _broken_end(self._text))
        self._slide()
        return text

    def flush(self) -> str:
        return self._end_run() + self._show(len(self._text))

    def _push_byte(self, token_id: int, value: int) -> str:
        """Bytes are text once their run has ended: one that is no character spoils all of it."""
        self._ids.append(token_id)
        if self._run_is_bad:
            self._ids = self._ids[-_CONTEXT:]
            self._length += 1
            return BROKEN
        complete = len(self._run.decode("utf-8", errors="ignore"))
        self.start = max(self.start, self._length + complete)
        self._run.append(value)
        return "" if len(self._run) <= _MAX_RUN else self._cut_run()

    def _end_run(self) -> str:
        if self._run_is_bad:
            self._text = self._shown = self._vocabulary.decode(self._ids)
        if not self._run:
            self._run_is_bad = False
            return ""
        self._run.clear()
        self._text = self._vocabulary.decode(self._ids)
        text = self._show(len(self._text))
        self._slide()
        return text

    def _cut_run(self) -> str:
        """Show what there is of a long run, and begin a new one."""
        rest = _incomplete(self._run)
        self._run_is_bad = rest is None
        kept = len(rest or b"")
        end = len(self._ids) - kept
        self._text = self._vocabulary.decode(self._ids[:end])
        text = self._show(len(self._text))
        self._ids = [*self._vocabulary.anchor, *self._ids[end:]]
        self._text = self._shown = self._vocabulary.decode(self._vocabulary.anchor)
        self._run = bytearray(rest or b"")
        return text

    def _show(self, end: int) -> str:
        """The text up to `end` that was not shown yet."""
        text = _added(self._shown, self._text[:end])
        if len(self._text[:end]) >= len(self._shown) or text:
            self._shown = self._text[:end]
        self._length += len(text)
        return text

    def _slide(self) -> None:
        """Forget tokens that no longer decide how others are spelled."""
        if len(self._ids) <= _WINDOW:
            return
        held = self._text[len(self._shown) :]
        self._ids = self._ids[-_CONTEXT:]
        self._text = self._vocabulary.decode(self._ids)
        self._shown = self._text[: len(self._text) - len(held)]

    def _end_of(self, token_ids: Sequence[int]) -> list[int]:
        """The last tokens of a prompt, with the whole of a run of bytes at its end."""
        bytes_of = self._vocabulary.bytes_of
        kept: list[int] = []
        for token_id in reversed(token_ids):
            if len(kept) >= _MAX_RUN or (len(kept) >= _CONTEXT and kept[-1] not in bytes_of):
                break
            if self._vocabulary.has_text(token_id):
                kept.append(token_id)
        while len(kept) >= _MAX_RUN and 0x80 <= bytes_of.get(kept[-1], 0) < 0xC0:
            kept.pop()  # not to begin within a character
        return kept[::-1]


class CleanedDetokenizer:
    """Takes blanks before punctuation out of another's text, as `clean_up` does with a whole."""

    def __init__(self, plain: Detokenizer, prompt: str) -> None:
        self.start = 0
        self._plain = plain
        self._raw = prompt[-_CLEANED:]
        self._shown = clean_up(self._raw)
        self._length = 0

    def push(self, token_id: int) -> str:
        held = len(clean_up(self._raw)) - len(self._shown)
        self.start = max(self.start, self._length + held)
        self._raw += self._plain.push(token_id)
        text = self._show(_settled(self._raw))
        if len(self._raw) > 4 * _CLEANED:
            self._raw = self._raw[-_CLEANED:]
            self._shown = clean_up(self._raw[: _settled(self._raw)])
        return text

    def flush(self) -> str:
        self._raw += self._plain.flush()
        return self._show(len(self._raw))

    def _show(self, end: int) -> str:
        text = clean_up(self._raw[:end])
        added = _added(self._shown, text)
        if added or len(text) >= len(self._shown):
            self._shown = text
        self._length += len(added)
        return added


def clean_up(text: str) -> str:
    """The text as `clean_up_tokenization_spaces` of transformers leaves it."""
    for spaced in (" .", " ?", " !", " ,"):
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text


def _settled(text: str) -> int:
    """How much of a text is cleaned as it is, whatever follows: up to a blank near its end."""
    end = text.find(" ", max(0, len(text) - _UNSETTLED))
    end = len(text) if end < 0 else end
    while text[:end].endswith(" '"):
        end -= 2
    return end


def _added(before: str, after: str) -> str:
    """What `after` has that `before` has not."""
    if after.startswith(before):
        return after[len(before) :]
    return after[len(os.path.commonprefix((before, after))) :]


def _broken_end(text: str) -> int:
    """How many characters at the end may be parts of one that is incomplete."""
    end = text[-MAX_BROKEN:]
    return len(end) - len(end.rstrip(BROKEN))


def _incomplete(data: bytes | bytearray) -> bytes | None:
    """The bytes at the end that begin a character; None if the data is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        is_cut = error.end == len(data) and error.reason == "unexpected end of data"
        return bytes(data[error.start :]) if is_cut else None
    return b""
