"""Settings as commands get them: the environment, and what the command line says on top.

Knows nothing about what settings are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.errors import PolyprefixError

if TYPE_CHECKING:
    from app.settings import Settings


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Environment and options together; PolyprefixError names what is wrong."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        # not the cause of ours: it would show what was given, which may be a secret
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise PolyprefixError(f"setting {name} (POLYPREFIX_{name.upper()}): {problem}") from None
