"""`polyprefix prefix …`: manage the prefixes of a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from app.cli.client import Advance, Client
from app.cli.console import (
    Commands,
    date,
    human_bytes,
    plain,
    print_json,
    printable,
    stderr,
    stdout,
    table,
)
from app.errors import InvalidPrefix, InvalidRequest

SHORT_DIGEST = 12
"""Digits of a digest in tables; enough to name a version."""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "Manage the prefixes of a running server.\n\n"
        "A prefix has immutable *versions*, named by the digest of their content, and *aliases*,"
        " movable names for versions. The alias `latest` follows every upload. Requests name a"
        " prefix as `e2e`, `e2e@stable` or `e2e@3f9a0c21b7d4`."
    ),
)

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


@app.command()
def push(
    file: Annotated[
        Path,
        typer.Argument(
            help="The prefix: a safetensors file in the format polyprefix/1.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the prefix.", show_default=False)],
    alias: Annotated[
        str | None, typer.Option(help="An alias to point at the new version, e.g. `stable`.")
    ] = None,
    server: Server = LOCAL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload FILE as a new version of a prefix; the next request can use it.

    Repeating a push is safe: the same content makes no second version.

    Example: `polyprefix prefix push e2e.safetensors --name e2e --alias stable`
    """
    with Client(server, key) as client, _transfer(file.name, _size(file)) as advance:
        version = client.push(file, name, alias=alias, advance=advance)
    if as_json:
        print_json(version)
        return
    verb = "created" if version["created"] else "known already:"
    stdout().print(
        f"{verb} [bold]{plain(name)}@{_short(version['digest'])}[/bold]"
        f"  length {_lengths(version)}, {human_bytes(version['nbytes'])}"
        + (f", alias {plain(alias)}" if alias else "")
    )
    for warning in version.get("warnings", ()):
        stderr().print(f"warning: {plain(warning)}")


def _size(file: Path) -> int:
    """The file's size; InvalidPrefix names a file of another format."""
    from app.prefix.foreign import looks_like_file

    look = looks_like_file(file)
    if look is not None:
        raise InvalidPrefix(f"{file} is not a prefix file. {look}")
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise InvalidRequest(f"{file} {state}; name the safetensors file of a prefix")
    return file.stat().st_size


@app.command("list")
def list_prefixes(server: Server = LOCAL, key: Key = None, as_json: AsJson = False) -> None:
    """List your prefixes with their versions and aliases."""
    with Client(server, key) as client:
        prefixes = client.list_prefixes()
    if as_json:
        print_json(prefixes)
        return
    if not prefixes:
        stderr().print("There are no prefixes yet. Upload one with `polyprefix prefix push`.")
        return
    shown = table("prefix", "versions", "aliases", "since")
    for prefix in prefixes:
        shown.add_row(
            plain(prefix["name"]),
            str(prefix["versions"]),
            _aliases(prefix["aliases"]),
            date(prefix["created_at"]),
        )
    stdout().print(shown)


@app.command()
def show(name: Name, server: Server = LOCAL, key: Key = None, as_json: AsJson = False) -> None:
    """Show one prefix: its versions from newest to oldest, and its aliases."""
    with Client(server, key) as client:
        prefix = client.get_prefix(name)
    if as_json:
        print_json(prefix)
        return
    shown = table("version", "aliases", "length", "dtype", "size", "base model", "created")
    for version in prefix["versions_data"]:
        names = [alias for alias, to in prefix["aliases"].items() if to == version["digest"]]
        base = plain(str(version.get("base_model") or "unknown"))
        shown.add_row(
            _short(version["digest"]),
            plain(", ".join(sorted(names))),
            _lengths(version),
            plain(version["dtype"]),
            human_bytes(version["nbytes"]),
            base if version["verified"] else f"{base} (unverified)",
            date(version["created_at"]),
        )
    stdout().print(shown)
    template = prefix["versions_data"][0].get("input_template")
    if template is not None:
        stdout().print(Text.assemble("input template: ", (printable(repr(template)), "bold")))


@app.command()
def pull(
    reference: Reference,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; by default NAME.safetensors."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    server: Server = LOCAL,
    key: Key = None,
) -> None:
    """Download the file of a version, exactly as it was uploaded.

    Example: `polyprefix prefix pull e2e@stable -o e2e.safetensors`
    """
    name, selector = _split(reference)
    target = output or Path(f"{Path(name).name}.safetensors")
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists already; --force replaces it")
    with Client(server, key) as client:
        digest = client.digest(name, selector or "latest")
        with _transfer(target.name, None) as advance:
            size = client.pull(name, digest, target, advance=advance)
    stdout().print(f"{plain(str(target))}  {human_bytes(size)}  version {_short(digest)}")


@app.command()
def delete(
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = LOCAL,
    key: Key = None,
) -> None:
    """Delete a prefix with all its versions, or one version if you name it with @VERSION.

    A version that an alias other than `latest` points at cannot be deleted.
    """
    name, selector = _split(reference)
    with Client(server, key) as client:
        digest = client.digest(name, selector) if selector else None
        what = f"version {digest[:SHORT_DIGEST]} of {name}" if digest else f"{name}, all versions"
        if not yes:
            typer.confirm(f"Delete {printable(what)}?", abort=True)
        client.delete(name, digest)
    stdout().print(f"deleted {plain(what)}")


@app.command()
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias, e.g. `stable`.", show_default=False)],
    version: Annotated[
        str | None, typer.Argument(help="Its new version: an alias or a digest.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Return to the previous version.")
    ] = False,
    server: Server = LOCAL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show, move or roll back an alias; the next request follows it.

    Examples: `polyprefix prefix alias e2e stable 3f9a0c21b7d4` moves the alias;
    `polyprefix prefix alias e2e stable --rollback` undoes that.
    """
    if version and rollback:
        raise typer.BadParameter("give a VERSION or --rollback, not both")
    with Client(server, key) as client:
        if rollback:
            result = client.rollback_alias(name, alias)
        elif version:
            result = client.set_alias(name, alias, client.digest(name, version))
        else:
            result = client.get_alias(name, alias)
    if as_json:
        print_json(result)
    else:
        stdout().print(f"{plain(name)}@{plain(alias)} → {_short(result['version'])}")


@contextmanager
def _transfer(title: str, total: int | None) -> Iterator[Advance]:
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


def _split(reference: str) -> tuple[str, str | None]:
    name, _, selector = reference.partition("@")
    return name, selector or None


def _aliases(aliases: dict[str, Any]) -> str:
    return "  ".join(f"{plain(name)} → {_short(to)}" for name, to in sorted(aliases.items()))


def _lengths(version: dict[str, Any]) -> str:
    """The version's length, with the lengths of other modules than the decoder."""
    lengths = version.get("lengths", {})
    others = [f"{name} {count}" for name, count in lengths.items() if name != "decoder"]
    return plain(str(version["length"]) + (f" ({', '.join(others)})" if others else ""))


def _short(digest: Any) -> str:
    return plain(str(digest)[:SHORT_DIGEST])
