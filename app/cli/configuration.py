"""Settings as commands get them: the environment, what the command line says, and their folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InvalidRequest, PolyprefixError

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


def check_folder(path: Path, option: str, *, written: bool = True) -> None:
    """Make the folder if it is missing; InvalidRequest names `option` if it cannot be used.

    With `written`, files can be made in it.
    """
    problem = None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.X_OK):
            problem = "it may not be read"
        elif written:
            tempfile.TemporaryFile(dir=path).close()
    except (FileExistsError, NotADirectoryError):
        problem = "there is a file in its place"
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem is not None:
        raise InvalidRequest(f"{option}: the folder {path} cannot be used: {problem}")


def check_output(path: Path | None, option: str) -> None:
    """Whether a file can be written here later; InvalidRequest names `option` if not.

    Its folder is made if it is missing.
    """
    if path is None:
        return
    if path.is_dir():
        raise InvalidRequest(f"{option}: {path} is a folder; name a file")
    check_folder(path.parent, option, written=not path.exists() or path.is_file())
