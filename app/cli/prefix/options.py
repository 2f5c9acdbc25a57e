"""Options and output that the commands of `polyprefix prefix` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from app.cli.client import Advance
from app.cli.console import plain, stderr

SHORT_DIGEST = 12
"""Digits of a digest in tables; enough to name a version."""

Server = Annotated[
    str, typer.Option("--server", envvar="POLYPREFIX_SERVER", help="URL of the server.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        "--api-key",
        envvar="POLYPREFIX_API_KEY",
        help="API key, if the server requires one. Prefer the environment variable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON, for scripts.")]
Name = Annotated[str, typer.Argument(help="Name of the prefix.", show_default=False)]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]",
        help="A prefix, or one of its versions by alias or digest.",
        show_default=False,
    ),
]

LOCAL = "http://127.0.0.1:8000"


@contextmanager
def transfer(title: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr for the transfer of a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = stderr()
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(plain(title), total=total)
        yield lambda count: progress.advance(task, count)


def split(reference: str) -> tuple[str, str | None]:
    """Name and selector of NAME[@VERSION]."""
    name, _, selector = reference.partition("@")
    return name, selector or None


def lengths(version: dict[str, Any]) -> str:
    """The version's length, with the lengths of other modules than the decoder."""
    lengths = version.get("lengths", {})
    others = [f"{name} {count}" for name, count in lengths.items() if name != "decoder"]
    return plain(str(version["length"]) + (f" ({', '.join(others)})" if others else ""))


def short(digest: Any) -> str:
    """A digest as tables show it."""
    return plain(str(digest)[:SHORT_DIGEST])
