"""Text ↔ token ids: what the user wrote stays text unless it is asked for to be more.

Encoders are immutable, one per mode: switching a shared tokenizer's special-token mode per call
would be a race in which a user's `<|endoftext|>` becomes the real one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.errors import InvalidRequest
from app.model.detokenizer import (
    BROKEN,
    MAX_BROKEN,
    CleanedDetokenizer,
    Detokenizer,
    Vocabulary,
    WindowDetokenizer,
    clean_up,
)

INPUT_PLACEHOLDER = "{input}"
_SPECIAL_LOOK = re.compile(
    r"<\|[^\s|<>]+\|>|</?s>|<(?:bos|eos|pad|unk|sep|cls|mask|start_of_turn|end_of_turn)>"
    r"|\[(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK)\]"
)
"""How special tokens of common vocabularies look."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenizerFacts:
    """What a tokenizer's configuration says besides its `tokenizer.json`.

    `bos` to `unk` are texts of special tokens. With `cleans_up` blanks before punctuation are taken
    out of what is decoded.
    """

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    cleans_up: bool = False
    chat_template: str | None = None
    kind: str = "PreTrainedTokenizerFast"


class Text:
    """The tokenizer of a base model.

    `tokenizer_json` is the content of a `tokenizer.json`; `vocab_size` is the model's, and bounds
    the token ids that requests may name. Any of `eos_token_ids` ends a reply.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        facts: TokenizerFacts | None = None,
    ) -> None:
        self._tokenizer = _plain_tokenizer(tokenizer_json)
        self._parser = _plain_tokenizer(tokenizer_json, parses_special=True)
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self.facts = facts or TokenizerFacts()
        self._specials = _special_tokens(self._tokenizer)
        self.special_ids = frozenset(self._specials.values())
        # of specials that begin alike the longest is meant
        texts = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, texts))})")
        self._special_texts = {token_id: text for text, token_id in self._specials.items()}
        steps = _decoding_steps(json.loads(tokenizer_json).get("decoder"))
        self._token_bytes = _byte_table(steps, self._tokenizer, self.special_ids)
        self._vocabulary = Vocabulary(self._tokenizer, _byte_tokens(steps, self._tokenizer))
        self.end_id = _end_id(eos_token_ids, self._specials.get(self.facts.eos or ""))
        self.doubles_blanks = self._doubles_blanks()

    def special_text(self, token_id: int | None) -> str | None:
        """How a special token is written in a template; None if it is no special token."""
        return None if token_id is None else self._special_texts.get(token_id)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of user text: special tokens in it are ordinary characters.

        With `add_special_tokens` come those that the tokenizer adds to every input (Llama's first
        token, for example); with `parse_special` those in the text are parsed. InvalidRequest if
        the text has a token that the model has not.
        """
        tokenizer = self._parser if parse_special else self._tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        if max(ids, default=0) >= self.vocab_size:
            raise self._unknown(max(ids))
        return ids

    def render(self, template: str, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `template` with `text` in the place of `{input}`.

        Special tokens of the template are parsed, those of `text` with `parse_special` alone; what
        stands between two special tokens is encoded as one piece. Nothing is added. InvalidRequest
        as above.
        """
        if template.count(INPUT_PLACEHOLDER) != 1:
            raise InvalidRequest(f"an input template must contain {INPUT_PLACEHOLDER} exactly once")
        if parse_special:
            template, text = template.replace(INPUT_PLACEHOLDER, text), ""
        ids: list[int] = []
        for piece in self._special_pattern.split(template) if self._specials else (template,):
            if piece in self._specials:
                ids.append(self._specials[piece])
            elif piece:
                filled = piece if parse_special else piece.replace(INPUT_PLACEHOLDER, text)
                ids.extend(self._tokenizer.encode(filled, add_special_tokens=False).ids)
        if max(ids, default=0) >= self.vocab_size:
            raise self._unknown(max(ids))
        return ids

    def unknown_specials(self, template: str) -> list[str]:
        """Parts of a template that look like special tokens and are none of this tokenizer's."""
        found = dict.fromkeys(_SPECIAL_LOOK.findall(template))
        return [part for part in found if part not in self._specials]

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
        text = self._decode(list(token_ids))
        return clean_up(text) if self.facts.cleans_up else text

    def spell(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text of a whole row, and where in it each token's part begins."""
        detokenizer = self.detokenizer()
        parts, starts = [], []
        for token_id in token_ids:
            parts.append(detokenizer.push(token_id))
            starts.append(detokenizer.start)
        return "".join(parts) + detokenizer.flush(), starts

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text, special tokens included.

        `bytes:\\xf0` and the like for bytes that are no whole character.
        """
        special = self._special_texts.get(token_id)
        if special is not None:
            return special
        if self._token_bytes is not None:
            return _shown_bytes(self._bytes_of(token_id))
        value = self._vocabulary.bytes_of.get(token_id)
        if value is not None:
            return _shown_bytes(bytes([value]))
        return self._vocabulary.text_within(token_id)

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """A fresh incremental detokenizer for one row: what it adds to the prompt's text.

        The pieces together are the text of prompt and row without what it shares with the text of
        the prompt.
        """
        plain: Detokenizer
        if self._token_bytes is not None:
            plain = ByteDetokenizer(self._token_bytes, prompt_ids)
        else:
            plain = WindowDetokenizer(self._vocabulary, prompt_ids)
        if not self.facts.cleans_up:
            return plain
        return CleanedDetokenizer(plain, self._decode(list(prompt_ids)))

    def _doubles_blanks(self) -> bool:
        """Whether the tokenizer adds a blank before every text, even before one with a blank."""
        encode = self._tokenizer.encode
        bare = encode("a", add_special_tokens=False).ids
        spaced = encode(" a", add_special_tokens=False).ids
        return bare != spaced and bool(bare) and self.token_text(bare[0]).startswith(" ")

    def _unknown(self, token_id: int) -> InvalidRequest:
        return InvalidRequest(
            f"the text has the token {self._tokenizer.id_to_token(token_id)!r}, whose id is "
            f"{token_id}; this model's embedding ends at {self.vocab_size - 1}: it cannot "
            "read the token"
        )

    def _decode(self, token_ids: Sequence[int]) -> str:
        if self._token_bytes is None:
            return self._vocabulary.decode(token_ids)
        data = b"".join([self._bytes_of(token_id) for token_id in token_ids])
        return data.decode("utf-8", errors="replace")

    def _bytes_of(self, token_id: int) -> bytes:
        table = self._token_bytes or ()
        return table[token_id] if token_id < len(table) else b""


class ByteDetokenizer:
    """Byte-level vocabularies: look up the token's bytes, decode them as they complete."""

    def __init__(self, table: Sequence[bytes], context: Sequence[int] = ()) -> None:
        self.start = 0
        self._table = table
        self._length = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # bytes enough to know which character is incomplete
        data = b""
        for token_id in reversed(context):
            data = (table[token_id] if token_id < len(table) else b"") + data
            if len(data) > MAX_BROKEN:
                break
        self._decoder.decode(data)
        self._is_incomplete = bool(self._decoder.getstate()[0])
        # the prompt's text has shown its incomplete character as a broken one already
        self._owed = self._is_incomplete

    def push(self, token_id: int) -> str:
        data = self._table[token_id] if token_id < len(self._table) else b""
        if not data:
            self.start = max(self.start, self._length)
            return ""
        if data.isascii() and not self._is_incomplete:
            self.start = self._length
            self._length += len(data)
            return data.decode("ascii")
        first = self._decode(data[:1])
        self.start = max(self.start, self._length - (0 if self._is_incomplete else 1))
        return first + self._decode(data[1:])

    def flush(self) -> str:
        return self._decode(b"", final=True) if self._is_incomplete else ""

    def _decode(self, data: bytes, *, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        self._is_incomplete = bool(self._decoder.getstate()[0])
        if text and self._owed:
            self._owed = False
            text = text.removeprefix(BROKEN)
        self._length += len(text)
        return text


def _plain_tokenizer(tokenizer_json: str, *, parses_special: bool = False) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parses_special
    return tokenizer


def _end_id(eos_token_ids: Sequence[int], own: int | None) -> int | None:
    """What ends a text that is written down: the tokenizer's own token if that ends a reply."""
    if own is not None and own in eos_token_ids:
        return own
    return next(iter(eos_token_ids), None)


def _shown_bytes(data: bytes) -> str:
    """Bytes as OpenAI shows them: as text if they are characters, else spelled out."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + data.decode(errors="backslashreplace")


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text → id of the added tokens that are special."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special}


def _byte_table(
    steps: Sequence[str], tokenizer: Tokenizer, special_ids: frozenset[int]
) -> list[bytes] | None:
    """Bytes of every token id for a byte-level vocabulary; None for another kind."""
    if list(steps) != ["ByteLevel"]:
        return None
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id in special_ids:
            continue
        if not alphabet.keys() >= set(token):
            table[token_id] = token.encode()
        else:
            table[token_id] = bytes(alphabet[character] for character in token)
    return table


def _decoding_steps(decoder: dict[str, Any] | None) -> list[str]:
    """The kinds of the steps by which a tokenizer's `decoder` makes text of tokens."""
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoding_steps(part)]
    return [str(decoder.get("type"))]


def _byte_tokens(steps: Sequence[str], tokenizer: Tokenizer) -> dict[int, int]:
    """Token id → the byte that it stands for, where the decoder joins such tokens."""
    if "ByteFallback" not in steps:
        return {}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found = ((token_id, _BYTE_TOKEN.fullmatch(token)) for token, token_id in vocabulary.items())
    return {token_id: int(match[1], 16) for token_id, match in found if match}
