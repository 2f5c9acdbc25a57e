"""What commands read and check before they work: settings, the base model, folders and files."""

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
    """The settings of the environment and of the options; PolyprefixError names an invalid one."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        # `from None`, as the cause would show the given value, which may be a secret
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise PolyprefixError(f"setting {name} (POLYPREFIX_{name.upper()}): {problem}") from None


def base_model(name: str | None) -> str:
    """The model to load: the demo GPT-2 if none is named; a local folder precedes a demo's name."""
    from app.settings import DEMO_MODEL

    if name is None:
        return str(DEMO_MODEL)
    folder = DEMO_MODEL.parent / name
    is_demo = folder.parent == DEMO_MODEL.parent and folder.is_dir() and not Path(name).exists()
    return str(folder) if is_demo else name


def check_folder(path: Path, option: str, *, written: bool = True) -> None:
    """Make the folder if it is missing; InvalidRequest names `option` if it cannot be used.

    With `written`, the command must be able to create files in it.
    """
    problem = None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.X_OK):
            problem = "it is not readable"
        elif written:
            tempfile.TemporaryFile(dir=path).close()
    except (FileExistsError, NotADirectoryError):
        problem = "a file is in its place"
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem is not None:
        raise InvalidRequest(f"{option}: the folder {path} cannot be used: {problem}")


def check_output(path: Path | None, option: str) -> None:
    """Make the folder of a file to be written later; InvalidRequest names `option` on failure."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidRequest(f"{option}: {path} is a folder; name a file instead")
    check_folder(path.parent, option, written=not path.exists() or path.is_file())
