"""What commands print: tables and notes for people, JSON for scripts, errors on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from app.errors import PolyprefixError


class Commands(TyperGroup):
    """A group of commands that prints errors as one sentence and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            words = _in_words(error)
            if words is None:
                raise
            print_error(words)
            raise typer.Exit(1) from error


def command_group(help_text: str, **options: Any) -> typer.Typer:
    """A group of commands; its help is Markdown and is shown if no command is named."""
    return typer.Typer(
        cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", help=help_text, **options
    )


def _in_words(error: Exception) -> str | None:
    """The error in one sentence; None if it is a bug, or a broken pipe, which Typer handles."""
    if isinstance(error, PolyprefixError):
        return error.message
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        reason = error.strerror or str(error) or type(error).__name__
        return ": ".join((*places[:1], reason))
    # compared by name, as importing SQLAlchemy takes longer than most commands
    if not any(kind.__module__ == "sqlalchemy.exc" for kind in type(error).__mro__):
        return None
    # the error's own text repeats statements with their values, which may be secrets
    cause = (str(error.__cause__ or type(error).__name__).splitlines() or [""])[0]
    return f"the catalog's database reports an error: {cause}"


PROGRAM = "polyprefix"

PIPE_COLUMNS = 200
"""Width of tables outside a terminal."""


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_COLUMNS)


def stderr() -> Console:
    """The console for progress, notes and errors, so that stdout can be piped."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(message: str) -> None:
    """Print an error; markup and control codes in it have no effect."""
    stderr().print(Text.assemble(("error: ", "bold red"), printable(message)), soft_wrap=True)


def print_warning(message: str) -> None:
    """Print a warning; the command continues."""
    stderr().print(Text.assemble(("warning: ", "bold yellow"), printable(message)), soft_wrap=True)


def this_program() -> str:
    """How to type this program here: `polyprefix` if the shell finds it, else its path."""
    typed = Path(sys.argv[0])
    if typed.name != PROGRAM or shutil.which(PROGRAM) is not None:
        return PROGRAM
    try:
        return str(typed.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(typed)


def printable(text: str) -> str:
    """The text without control characters, which could command the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def human_bytes(count: float) -> str:
    """1234567 → "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def plain(text: str) -> str:
    """Text for use inside markup; brackets and control characters in it have no effect."""
    return escape(printable(text))


def date(seconds: float | None) -> str:
    """Seconds since 1970 as local time; empty for None."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(int(seconds)).strftime("%Y-%m-%d %H:%M")
    except (OSError, OverflowError, ValueError):
        return "after the year 9999"


def table(*columns: str) -> Table:
    """An empty table for results."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
