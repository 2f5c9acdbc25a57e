"""Text ↔ token ids: what the user wrote stays text, and no half character is ever sent.

Encoders are immutable, one per mode: switching a shared tokenizer's special-token mode per call
would be a race in which a user's `<|endoftext|>` becomes the real one. Knows nothing about models
or requests.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import Tokenizer

from app.errors import InvalidRequest

INPUT_PLACEHOLDER = "{input}"


class Detokenizer(Protocol):
    """Turns a row's tokens into text piece by piece."""

    def push(self, token_id: int) -> str:
        """The text that is certain now; may be empty while a character is incomplete."""

    def flush(self) -> str:
        """What remains at the row's end; incomplete characters become U+FFFD."""


class Text:
    """The tokenizer of a base model.

    `tokenizer_json` is the content of a `tokenizer.json`; `vocab_size` is the model's, and bounds
    the token ids that requests may name.
    """

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = _plain_tokenizer(tokenizer_json)
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self._specials = _special_tokens(self._tokenizer)
        self.special_ids = frozenset(self._specials.values())
        self._token_bytes = _byte_table(tokenizer_json, self._tokenizer, self.special_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of user text: special tokens in it are ordinary characters.

        Adds what the tokenizer adds by itself to every input (Llama's first token, for example).
        """
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def render(self, template: str, text: str) -> list[int]:
        """Token ids of `template` with `text` in the place of `{input}`.

        Special tokens of the template are parsed, those of `text` are not; what stands between two
        special tokens is encoded as one piece. Nothing is added.
        """
        if template.count(INPUT_PLACEHOLDER) != 1:
            raise InvalidRequest(f"an input template must contain {INPUT_PLACEHOLDER} exactly once")
        ids: list[int] = []
        for piece, special in self._split_specials(template):
            if special is not None:
                ids.append(special)
            elif piece:
                filled = piece.replace(INPUT_PLACEHOLDER, text)
                ids.extend(self._tokenizer.encode(filled, add_special_tokens=False).ids)
        return ids

    def cut_source(self, token_ids: Sequence[int], room: int | None) -> tuple[int, ...]:
        """What an encoder with `room` tokens reads of a source: its beginning.

        An end-of-text token at the end of the source stays there.
        """
        if room is None or len(token_ids) <= room:
            return tuple(token_ids)
        end = token_ids[-1:] if token_ids[-1] in self.eos_token_ids else ()
        return (*token_ids[: room - len(end)], *end)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a whole row; special tokens are left out."""
        detokenizer = self.detokenizer()
        return "".join([detokenizer.push(token) for token in token_ids]) + detokenizer.flush()

    def token_text(self, token_id: int) -> str:
        """What one token alone stands for, special tokens included."""
        if self._token_bytes is None or token_id in self.special_ids:
            return self._tokenizer.decode([token_id], skip_special_tokens=False)
        return self._bytes_of(token_id).decode("utf-8", errors="replace")

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer for one row."""
        if self._token_bytes is not None:
            return _ByteDetokenizer(self._token_bytes)
        return _WindowDetokenizer(self._tokenizer)

    def _bytes_of(self, token_id: int) -> bytes:
        table = self._token_bytes or ()
        return table[token_id] if token_id < len(table) else b""

    def _split_specials(self, template: str) -> list[tuple[str, int | None]]:
        """The template as pieces: (text, None) or (special's text, its id)."""
        pieces: list[tuple[str, int | None]] = []
        rest = template
        while rest:
            found = [(rest.find(text), -len(text), text) for text in self._specials if text in rest]
            if not found:
                pieces.append((rest, None))
                break
            start, _, special = min(found)
            pieces.append((rest[:start], None))
            pieces.append((special, self._specials[special]))
            rest = rest[start + len(special) :]
        return pieces


class _ByteDetokenizer:
    """Byte-level vocabularies: look up the token's bytes, decode them as they complete."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        data = self._table[token_id] if token_id < len(self._table) else b""
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Other vocabularies: decode a window of tokens and send what no longer changes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent_from, self._sent_to = 0, 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        before = self._tokenizer.decode(self._ids[self._sent_from : self._sent_to])
        now = self._tokenizer.decode(self._ids[self._sent_from :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._sent_from, self._sent_to = self._sent_to, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        before = self._tokenizer.decode(self._ids[self._sent_from : self._sent_to])
        now = self._tokenizer.decode(self._ids[self._sent_from :])
        self._sent_from = self._sent_to = len(self._ids)
        return now[len(before) :]


def _plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text → id of the added tokens that are special."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special}


def _byte_table(
    tokenizer_json: str, tokenizer: Tokenizer, special_ids: frozenset[int]
) -> list[bytes] | None:
    """Bytes of every token id for a byte-level vocabulary; None for another kind."""
    if not _is_byte_level(json.loads(tokenizer_json).get("decoder")):
        return None
    alphabet = _byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id in special_ids:
            continue
        if token_id in added or not alphabet.keys() >= set(token):
            table[token_id] = token.encode()
        else:
            table[token_id] = bytes(alphabet[character] for character in token)
    return table


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    return decoder is not None and decoder.get("type") == "ByteLevel"


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019), character → byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet
