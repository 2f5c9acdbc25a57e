"""Forms that texts must have: patterns for the description, and words for who has sent another."""

from __future__ import annotations

from app.jobs.ids import FILE_ID, NO_ID

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SELECTOR = r"^[a-z0-9][a-z0-9._-]*$"
DIGEST = "^[0-9a-f]{64}$"
DIGEST_START = "^[0-9a-f]{6,64}$"
HEXADECIMAL = "^[0-9a-f]+$"
NOT_BLANK = r"\S"

_DIGITS = "the first 6 or more of its 64 characters 0-9, a-f"

IN_WORDS = {
    FILE_ID: NO_ID[FILE_ID],
    NAME: "is not a name: 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit",
    SELECTOR: f"is neither an alias nor {_DIGITS} of a version's digest; list them with GET "
    "/v1/prefixes/{name} and GET /v1/prefixes/{name}/versions",
    HEXADECIMAL: f"is not a version's digest, or {_DIGITS}; list versions with GET "
    "/v1/prefixes/{name}/versions",
    NOT_BLANK: "has nothing but spaces; give a text",
}
"""What is said of a text that has not the form; of forms that bodies and queries must have."""
