"""API keys as text: `pfx_<kid>_<secret>_<checksum>`, how they are made, read and digested.

`kid` is public: it names the key in lists, logs and the catalog. The secret has 190 random bits, so
one HMAC is enough to keep. The checksum lets scanners tell a key from other text and refuses typing
errors without a look-up; it protects nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KID, _SECRET, _CHECKSUM = 12, 32, 6
KEY_LENGTH = len("pfx___") + _KID + _SECRET + _CHECKSUM
"""Characters of a key."""

PATTERN = re.compile(
    rf"pfx_([0-9A-Za-z]{{{_KID}}})_[0-9A-Za-z]{{{_SECRET}}}_([0-9A-Za-z]{{{_CHECKSUM}}})"
)
"""What a key looks like; the groups are its kid and its checksum."""

_ANYWHERE = re.compile(rf"(pfx_[0-9A-Za-z]{{{_KID}}})_\w+")

_KID_PATTERN = re.compile(rf"[0-9A-Za-z]{{{_KID}}}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in full: `text` is what its owner sends, and is kept nowhere."""

    kid: str
    text: str = field(repr=False)


def mint() -> ApiKey:
    """A new random key."""
    kid = _random(_KID)
    body = f"pfx_{kid}_{_random(_SECRET)}"
    return ApiKey(kid, f"{body}_{_checksum(body)}")


def read_kid(text: str) -> str | None:
    """The kid of a text that is a key by length, alphabet and checksum; None for any other."""
    if len(text) != KEY_LENGTH:
        return None
    found = PATTERN.fullmatch(text)
    if found is None or _checksum(text[: -_CHECKSUM - 1]) != found[2]:
        return None
    return found[1]


def is_kid(text: str) -> bool:
    """Whether a key may have this kid."""
    return _KID_PATTERN.fullmatch(text) is not None


def redact_keys(text: str) -> str:
    """The text with nothing but the public part of every key in it, whole ones or cut ones."""
    return _ANYWHERE.sub(r"\1_…", text)


def digest(pepper: bytes, text: str) -> str:
    """HMAC-SHA-256 of the whole key under the pepper, in hex: what is kept of a key.

    The text is cut to a key's length, so that no work grows with what strangers send.
    """
    return hmac.digest(pepper, text[:KEY_LENGTH].encode(errors="replace"), "sha256").hex()


def _random(count: int) -> str:
    return "".join(secrets.choice(_DIGITS) for _ in range(count))


def _checksum(body: str) -> str:
    """CRC-32 in Base62, padded with zeros."""
    value = zlib.crc32(body.encode())
    shown = ""
    for _ in range(_CHECKSUM):
        value, digit = divmod(value, len(_DIGITS))
        shown = _DIGITS[digit] + shown
    return shown
