"""What is wrong with a file, and how the server must answer it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """A body that must be refused; `says` are parts of the message: what is wrong, and where."""

    body: bytes
    says: tuple[str, ...]
    status: int = 422
    code: str = "invalid_prefix"


def bad(body: bytes, *says: str) -> Hostile:
    """A file that breaks a rule of the format."""
    return Hostile(body, says)
