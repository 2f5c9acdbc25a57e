"""The text to distil: read from a file, then cut into parts that fit into the context."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from app.errors import InvalidRequest
from app.model.text import INPUT_PLACEHOLDER, Text

MAX_BYTES = 16 << 20
"""Size of the largest text file."""
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]|\n+")


@dataclass(frozen=True)
class SourceText:
    """A text and the SHA-256 of its file; `name` is the file's name."""

    name: str
    text: str
    sha256: str


@dataclass(frozen=True)
class Sentence:
    """A sentence with the white space before it, and its tokens. Never without tokens."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TextPart:
    """Sentences of a text that follow each other."""

    sentences: tuple[Sentence, ...]

    @cached_property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of all sentences."""
        return tuple(token for sentence in self.sentences for token in sentence.token_ids)


def read_document(path: Path) -> SourceText:
    """Read a UTF-8 text file. A byte order mark is dropped, and line ends become `\\n`.

    Raises InvalidRequest if there is no such file, or if it is empty, binary or too large.
    """
    try:
        check_size(path, path.stat().st_size)
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    return SourceText(path.name, decode_text(path, data), hashlib.sha256(data).hexdigest())


def check_size(path: Path | str, nbytes: int) -> None:
    """Raise InvalidRequest if a text of so many bytes is too large."""
    if nbytes > MAX_BYTES:
        raise InvalidRequest(
            f"{path} has {nbytes} bytes, and a text may have {MAX_BYTES}; split it and distil"
            " each piece into a prefix of its own"
        )


def check_tokens(name: str, found: int, length: int) -> None:
    """Raise InvalidRequest if a text of `found` tokens is too short for a prefix of this length."""
    if found <= length:
        raise InvalidRequest(
            f"{name} has {found} tokens, and a prefix of {length} positions holds them all without"
            " training; give a longer text or a smaller length"
        )


def decode_text(path: Path | str, data: bytes) -> str:
    """The text of a file's bytes, as of `read_document`; InvalidRequest names it as `path`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{path} is not a text in UTF-8: byte {error.start} begins no character; convert it to"
            " plain UTF-8 text first"
        ) from error
    if "\0" in text:
        raise InvalidRequest(
            f"{path} holds a NUL character, so it is not plain text; convert it to UTF-8 text first"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise InvalidRequest(f"{path} holds no text; name a file with the text to distil")
    return text


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, in order. White space belongs to the sentence that follows it."""
    start = 0
    for found in _SENTENCE_END.finditer(text):
        # line ends belong to the next sentence, a full stop to this one
        end = found.start() if found.group().startswith("\n") else found.end()
        if text[start:end].strip():
            yield text[start:end]
            start = end
    if text[start:].strip():
        yield text[start:]


def split_document(text: str, encoder: Text, *, size: int, overlap: int) -> list[TextPart]:
    """Cut a text at the ends of sentences into parts of at most `size` tokens.

    A part repeats sentences at the end of the part before, as many as fit into `overlap` tokens.
    A sentence of more than `size` tokens is cut. `overlap` must be less than half of `size`.
    """
    sentences = list(_encoded(text, encoder, size - overlap))
    parts, start = [], 0
    while start < len(sentences):
        end, room = start, size
        while end < len(sentences) and len(sentences[end].token_ids) <= room:
            room -= len(sentences[end].token_ids)
            end += 1
        parts.append(TextPart(tuple(sentences[start:end])))
        if end == len(sentences):
            break
        start = _overlapping(sentences, start, end, overlap)
    return parts


def _overlapping(sentences: Sequence[Sentence], start: int, end: int, overlap: int) -> int:
    """Where the next part begins: as many sentences before `end` as fit, but after `start`."""
    begin, room = end, overlap
    while begin - 1 > start and len(sentences[begin - 1].token_ids) <= room:
        begin -= 1
        room -= len(sentences[begin].token_ids)
    return begin


def _encoded(text: str, encoder: Text, limit: int) -> Iterator[Sentence]:
    """The sentences with their tokens, each of at most `limit` tokens."""
    for sentence in split_sentences(text):
        spaced = sentence.lstrip() if encoder.doubles_blanks else sentence
        ids = encoder.render(INPUT_PLACEHOLDER, spaced)
        if len(ids) <= limit:
            if ids:
                yield Sentence(sentence, tuple(ids))
            continue
        for start in range(0, len(ids), limit):
            piece = tuple(ids[start : start + limit])
            yield Sentence(encoder.decode(piece), piece)
